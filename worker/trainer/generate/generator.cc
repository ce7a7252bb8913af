// Shape suffixes as in ops/ops.h.
#include "worker/trainer/generate/generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <memory>
#include <tuple>

namespace luthier {
namespace {

// Divided by less, logits would overflow; and long before, nothing but the most probable token is ever drawn.
constexpr double kLowestTemperature = 1e-20;

// Rows decoded together. More gain little on a CPU, and the cache of 32 rows of a 1B model is already gigabytes.
constexpr size_t kBatchRows = 32;

// Keys and values of every token so far, a row each, right-padded.
class CachedAttention : public Attention {
 public:
  CachedAttention(ops::Documents prompts, int64_t capacity, at::Device device)
      : prompts_(std::move(prompts)), capacity_(capacity) {
    std::vector<int64_t> lengths;
    for (const auto& [begin, end] : prompts_) lengths.push_back(end - begin);
    lengths_B_ = at::tensor(lengths, at::kLong).to(device);
  }

  Tensor Attend(int64_t layer, const ops::AttentionForm& form, const Tensor& q_TNH, const Tensor& k_TKH,
                const Tensor& v_TKH) override {
    if (decoding_) return AttendOne(layer, form, q_TNH, k_TKH, v_TKH);
    const auto batch = static_cast<int64_t>(prompts_.size());
    keys_.push_back(at::zeros({batch, k_TKH.size(1), capacity_, k_TKH.size(2)}, k_TKH.options()));
    values_.push_back(at::zeros_like(keys_.back()));
    for (int64_t b = 0; b < batch; ++b) {
      const auto [begin, end] = prompts_[static_cast<size_t>(b)];
      keys_.back()[b].slice(1, 0, end - begin).copy_(k_TKH.slice(0, begin, end).transpose(0, 1));
      values_.back()[b].slice(1, 0, end - begin).copy_(v_TKH.slice(0, begin, end).transpose(0, 1));
    }
    return ops::PackedAttention(q_TNH, k_TKH, v_TKH, prompts_, form);
  }

  // From here on each pass carries one new token a row.
  void StartDecoding() { decoding_ = true; }
  // After such a pass.
  void Advance() { lengths_B_.add_(1); }
  // Position of the next token of each row.
  const Tensor& lengths_B() const { return lengths_B_; }

 private:
  Tensor AttendOne(int64_t layer, const ops::AttentionForm& form, const Tensor& q_BNH, const Tensor& k_BKH,
                   const Tensor& v_BKH) {
    Tensor& keys_BKSH = keys_[static_cast<size_t>(layer)];
    Tensor& values_BKSH = values_[static_cast<size_t>(layer)];
    const Tensor slot_BK1H = lengths_B_.view({-1, 1, 1, 1}).expand({-1, k_BKH.size(1), 1, k_BKH.size(2)});
    keys_BKSH.scatter_(2, slot_BK1H, k_BKH.unsqueeze(2));
    values_BKSH.scatter_(2, slot_BK1H, v_BKH.unsqueeze(2));
    return ops::CachedAttention(q_BNH, keys_BKSH, values_BKSH, lengths_B_, form);
  }

  ops::Documents prompts_;
  int64_t capacity_;
  bool decoding_ = false;
  Tensor lengths_B_;
  std::vector<Tensor> keys_;  // a layer each, [B, K, S, H]
  std::vector<Tensor> values_;
};

// Changes the logits of one row, which holds these tokens.
void PenalizeRepetition(Tensor logits_V, const std::vector<int64_t>& row, double penalty) {
  // A token counts once, however often it came.
  const Tensor seen = std::get<0>(at::_unique(at::tensor(row, at::kLong), /*sorted=*/false));
  const Tensor scores = logits_V.index_select(0, seen);
  logits_V.index_copy_(0, seen, at::where(scores < 0, scores * penalty, scores / penalty));
}

// Sampling as transformers' logits processors do it: temperature, then top-k, then top-p. A generator for each row.
Tensor Sample(const Tensor& logits_BV, const GenerateOptions& options, std::vector<at::Generator>& generators) {
  if (options.temperature < kLowestTemperature) return logits_BV.argmax(-1);
  auto [sorted_BV, ids_BV] = (logits_BV / options.temperature).sort(-1, /*descending=*/true);
  if (options.top_k > 0 && options.top_k < sorted_BV.size(1)) sorted_BV.slice(1, options.top_k).fill_(-INFINITY);
  const Tensor probabilities_BV = sorted_BV.softmax(-1);
  const Tensor before_BV = probabilities_BV.cumsum(-1) - probabilities_BV;  // mass of the more probable tokens
  const Tensor kept_BV = probabilities_BV.masked_fill(before_BV >= options.top_p, 0);
  std::vector<Tensor> drawn;
  for (size_t b = 0; b < generators.size(); ++b) {
    drawn.push_back(kept_BV[static_cast<int64_t>(b)].multinomial(1, false, generators[b]));
  }
  return ids_BV.gather(1, at::stack(drawn)).squeeze(1);
}

// Rows that are decoded together: what each holds so far, and the cache of it.
class Decoding {
 public:
  Decoding(const DecoderModel& model, std::vector<std::vector<int64_t>> rows, int64_t new_tokens, size_t adapter)
      : model_(model), rows_(std::move(rows)), adapter_(adapter) {
    for (const std::vector<int64_t>& row : rows_)
      capacity_ = std::max(capacity_, static_cast<int64_t>(row.size()) + new_tokens);
    Prefill();
  }

  // Logits of each row's next token.
  Tensor Logits() const { return model_.head().Logits(h_BD_, adapter_); }

  // What each row holds: its prompt, and what was appended.
  const std::vector<std::vector<int64_t>>& rows() const { return rows_; }

  // Appends one token to every row.
  void Append(const Tensor& next_B) {
    bool frequencies_change = false;
    for (size_t b = 0; b < rows_.size(); ++b) {
      frequencies_change = frequencies_change || static_cast<int64_t>(rows_[b].size()) == model_.rotary_switch_length();
      rows_[b].push_back(next_B[static_cast<int64_t>(b)].item<int64_t>());
    }
    // A row that grows beyond the switch is rotated anew from its first token on, as transformers does it.
    if (frequencies_change) return Prefill();
    const Tensor positions_B = cache_->lengths_B();
    h_BD_ = model_.Forward(next_B.to(model_.device()), positions_B, positions_B + 1, cache_,
                           {{adapter_, 0, next_B.size(0)}});
    cache_->Advance();
  }

 private:
  // Every row from its beginning.
  void Prefill() {
    std::vector<int64_t> tokens, positions, lengths, last_rows;
    ops::Documents documents;
    for (const std::vector<int64_t>& row : rows_) {
      const auto begin = static_cast<int64_t>(tokens.size()), length = static_cast<int64_t>(row.size());
      tokens.insert(tokens.end(), row.begin(), row.end());
      lengths.insert(lengths.end(), row.size(), length);
      for (int64_t position = 0; position < length; ++position) positions.push_back(position);
      documents.emplace_back(begin, begin + length);
      last_rows.push_back(begin + length - 1);
    }
    const auto on_device = [&](const std::vector<int64_t>& values) {
      return at::tensor(values, at::kLong).to(model_.device());
    };
    cache_ = std::make_shared<CachedAttention>(std::move(documents), capacity_, model_.device());
    const Tensor h_TD = model_.Forward(on_device(tokens), on_device(positions), on_device(lengths), cache_,
                                       {{adapter_, 0, static_cast<int64_t>(tokens.size())}});
    h_BD_ = h_TD.index_select(0, on_device(last_rows));
    cache_->StartDecoding();
  }

  const DecoderModel& model_;
  std::vector<std::vector<int64_t>> rows_;
  size_t adapter_;
  int64_t capacity_ = 0;
  std::shared_ptr<CachedAttention> cache_;
  Tensor h_BD_;
};

// Tokens that any of the prompts can be continued by. More would only take memory.
int64_t MostNewTokens(const std::vector<const std::vector<int32_t>*>& prompts, const GenerateOptions& options) {
  if (options.context == 0) return options.max_new_tokens;
  size_t shortest = prompts.front()->size();
  for (const std::vector<int32_t>* prompt : prompts) shortest = std::min(shortest, prompt->size());
  return std::min(options.max_new_tokens, options.context - static_cast<int64_t>(shortest));
}

bool FillsContext(size_t tokens, const GenerateOptions& options) {
  return options.context > 0 && static_cast<int64_t>(tokens) >= options.context;
}

// The next token of every row, on the CPU.
Tensor NextTokens(const Decoding& decoding, const GenerateOptions& options, std::vector<at::Generator>& generators) {
  Tensor logits_BV = decoding.Logits().to(at::kCPU, at::kFloat);
  if (options.repetition_penalty != 1) {
    logits_BV = logits_BV.clone();
    for (size_t b = 0; b < decoding.rows().size(); ++b) {
      PenalizeRepetition(logits_BV[static_cast<int64_t>(b)], decoding.rows()[b], options.repetition_penalty);
    }
  }
  return Sample(logits_BV, options, generators);
}

std::vector<std::vector<int32_t>> GenerateBatch(const DecoderModel& model,
                                                const std::vector<const std::vector<int32_t>*>& prompts,
                                                const GenerateOptions& options, size_t adapter) {
  std::vector<std::vector<int64_t>> rows;
  std::vector<at::Generator> generators;
  for (const std::vector<int32_t>* prompt : prompts) {
    rows.emplace_back(prompt->begin(), prompt->end());
    generators.push_back(at::detail::createCPUGenerator(options.seed));
  }
  const int64_t new_tokens = MostNewTokens(prompts, options);
  Decoding decoding(model, std::move(rows), new_tokens, adapter);
  std::vector<std::vector<int32_t>> answers(prompts.size());
  std::vector<bool> ended(prompts.size(), false);
  for (int64_t step = 0; step < new_tokens && !options.interrupted(); ++step) {
    const Tensor next_B = NextTokens(decoding, options, generators);
    for (size_t b = 0; b < prompts.size(); ++b) {
      if (ended[b]) continue;
      const auto id = static_cast<int32_t>(next_B[static_cast<int64_t>(b)].item<int64_t>());
      ended[b] = std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
      if (ended[b]) continue;
      answers[b].push_back(id);
      ended[b] = FillsContext(prompts[b]->size() + answers[b].size(), options) ||
                 (options.is_complete && options.is_complete(answers[b]));
    }
    if (step + 1 == new_tokens || std::all_of(ended.begin(), ended.end(), [](bool e) { return e; })) break;
    decoding.Append(next_B);
  }
  return answers;
}

}  // namespace

std::vector<std::vector<int32_t>> Generate(const DecoderModel& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options, size_t adapter) {
  at::NoGradGuard no_grad;
  // Prompts of similar length together, so that little of a batch is padding.
  std::vector<size_t> order;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (!FillsContext(prompts[i].size(), options)) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return prompts[a].size() < prompts[b].size(); });
  std::vector<std::vector<int32_t>> answers(prompts.size());
  for (size_t begin = 0; begin < order.size(); begin += kBatchRows) {
    const size_t end = std::min(begin + kBatchRows, order.size());
    std::vector<const std::vector<int32_t>*> batch;
    for (size_t i = begin; i < end; ++i) batch.push_back(&prompts[order[i]]);
    auto batch_answers = GenerateBatch(model, batch, options, adapter);
    for (size_t i = begin; i < end; ++i) answers[order[i]] = std::move(batch_answers[i - begin]);
  }
  return answers;
}

StoppedText CutAtStop(std::string text, const std::vector<std::string>& stops) {
  size_t end = std::string::npos;
  for (const std::string& stop : stops) end = std::min(end, text.find(stop));
  if (end == std::string::npos) return {std::move(text), false};
  return {text.substr(0, end), true};
}

}  // namespace luthier
