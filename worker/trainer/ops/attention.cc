// Shape suffixes as in ops.h; besides: Q queries of a block, S the keys that they see, L tokens of a document, G query
// heads that share a key head.
#include "worker/trainer/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/gemm.h"
#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/tiles.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Queries whose scores exist at a time. With 64 the scores of 1,000 keys fit into a core's cache; fewer make the
// products slow, more compute too much above the diagonal.
constexpr int64_t kQueryBlock = 64;

// The products read fp32, or bf16 as its bits where the processor multiplies it: T is float or uint16_t.
template <typename T>
constexpr bool kIsFloat = std::is_same_v<T, float>;

template <typename T>
Tensor ToOperand(const Tensor& x) {
  return x.to(kIsFloat<T> ? at::kFloat : at::kBFloat16).contiguous();
}

// A right factor that many products share: bf16 is cut once (tiles.h), fp32 is read where it lies.
struct ReadInPlace {
  Matrix<float> Cut(int64_t /*k*/, int64_t /*n*/, const Matrix<float>& b) const { return b; }
};
template <typename T>
using Factor = std::conditional_t<kIsFloat<T>, ReadInPlace, RightFactor>;

template <typename T>
void Multiply(int64_t m, int64_t n, int64_t k, const Matrix<uint16_t>& a, const RightTiles& b, const Result<T>& c) {
  ops::Multiply(m, n, {Term{a, {b.first, k, b.tiles_of_columns}}}, c);
}

// A matrix of n fp32 numbers as the products read it; `scratch` is where it is rounded.
template <typename T>
const T* Rounded(const std::vector<float>& matrix, int64_t n, std::vector<T>& scratch) {
  if constexpr (kIsFloat<T>) {
    return matrix.data();
  } else {
    scratch.resize(matrix.size());
    kernels::Narrow(matrix.data(), n, scratch.data());
    return scratch.data();
  }
}

// The numbers of one head in a [T, heads, H] tensor.
template <typename T>
struct Head {
  T* data;
  int64_t pitch;
  T* row(int64_t token) const { return data + token * pitch; }
  Matrix<T> rows(int64_t token, bool transposed = false) const { return {row(token), pitch, transposed}; }
  Result<T> from(int64_t token, bool add = false) const { return {row(token), pitch, add}; }
};

template <typename T>
Head<T> HeadOf(const Tensor& x_THH, int64_t head) {
  return {static_cast<T*>(x_THH.mutable_data_ptr()) + head * x_THH.size(2), x_THH.size(1) * x_THH.size(2)};
}

// A block of queries and the keys that any of them sees. Row i of a [Q, S] matrix belongs to query begin + i, column 0
// to first_key.
struct Block {
  int64_t begin, end;
  int64_t first_key;
  int64_t window;

  int64_t queries() const { return end - begin; }
  int64_t keys() const { return end - first_key; }
  // Numbers from one row of a [Q, S] matrix to the next. Rounded up, so that whole tiles can be read of it.
  int64_t pitch() const { return TilesIn(keys(), Tile::kInner) * Tile::kInner; }
  // Columns of it that a product with keys reads: of tiles all, of which those beyond the keys are zero.
  template <typename T>
  int64_t inner() const {
    return kIsFloat<T> ? keys() : pitch();
  }
  // Columns that query `i` sees: [seen_from, seen_to).
  int64_t seen_from(int64_t i) const {
    return window == 0 ? 0 : std::max<int64_t>(0, begin + i + 1 - window - first_key);
  }
  int64_t seen_to(int64_t i) const { return begin + i + 1 - first_key; }

  void ClearUnseen(int64_t i, float* matrix_QS) const {
    float* row_S = matrix_QS + i * pitch();
    std::fill(row_S, row_S + seen_from(i), 0.0f);
    std::fill(row_S + seen_to(i), row_S + pitch(), 0.0f);
  }
};

// Calls use(block) for every block of a document's queries. The first key is at the beginning of a tile.
template <typename Use>
void ForEachBlock(std::pair<int64_t, int64_t> document, int64_t window, const Use& use) {
  for (int64_t begin = document.first; begin < document.second; begin += kQueryBlock) {
    const int64_t before = window == 0 ? 0 : std::max<int64_t>(0, begin + 1 - window - document.first);
    const int64_t first_key = document.first + before / Tile::kInner * Tile::kInner;
    use(Block{begin, std::min(begin + kQueryBlock, document.second), first_key, window});
  }
}

// Every document and key head is an item of work: it alone writes what belongs to them.
template <typename Use>
void ForEachDocumentAndKeyHead(const Documents& documents, int64_t key_heads, const Use& use) {
  ParallelItems(static_cast<int64_t>(documents.size()) * key_heads,
                [&](int64_t item) { use(documents[static_cast<size_t>(item / key_heads)], item % key_heads); });
}

// Numbers of the largest [Q, S] matrix of a document. Its first key may be that of the tile before, and its rows are
// rounded up.
size_t LargestBlock(std::pair<int64_t, int64_t> document, int64_t window) {
  const int64_t length = document.second - document.first;
  const int64_t keys = window == 0 ? length : std::min(length, window - 1 + kQueryBlock + Tile::kInner);
  return static_cast<size_t>(kQueryBlock * (keys + Tile::kInner));
}

// The dropout of attention weights: a row of the mask for each head and query.
struct WeightDropout {
  double drop;
  uint64_t seed;
  int64_t tokens;

  void Apply(int64_t head, int64_t query, int64_t count, float* weights) const {
    kernels::Dropout(weights, count, seed, head * tokens + query, drop, weights);
  }
};

// What both passes need besides the tensors.
struct Setting {
  Documents documents;
  AttentionForm form;
  int64_t seed;

  std::optional<WeightDropout> dropout(int64_t tokens) const {
    if (form.dropout == 0) return std::nullopt;
    return WeightDropout{form.dropout, static_cast<uint64_t>(seed), tokens};
  }
};

void Save(const Setting& setting, AutogradContext* context) {
  std::vector<int64_t> bounds;
  for (const auto& [begin, end] : setting.documents) bounds.insert(bounds.end(), {begin, end});
  context->saved_data["documents"] = bounds;
  context->saved_data["form"] = std::vector<double>{setting.form.scale, setting.form.softcap, setting.form.dropout};
  context->saved_data["window"] = setting.form.window;
  context->saved_data["seed"] = setting.seed;
}

Setting Saved(AutogradContext* context) {
  Setting setting;
  const std::vector<int64_t> bounds = context->saved_data["documents"].toIntVector();
  for (size_t i = 0; i + 1 < bounds.size(); i += 2) setting.documents.emplace_back(bounds[i], bounds[i + 1]);
  const std::vector<double> form = context->saved_data["form"].toDoubleVector();
  setting.form = {form[0], context->saved_data["window"].toInt(), form[1], form[2]};
  setting.seed = context->saved_data["seed"].toInt();
  return setting;
}

// Both passes keep scores and softmax statistics in fp32. The softmax is formed block by block and never kept: the
// backward pass forms it again from its logarithmic sums (arXiv:2205.14135). Where the products read bf16, weights and
// their gradients are rounded for them, as in FlashAttention.
template <typename T>
std::pair<Tensor, Tensor> Attend(const Tensor& q, const Tensor& k, const Tensor& v, const Setting& setting) {
  // First, so that what is needed in between leaves no hole in front of it.
  const Tensor result_TNH = at::empty_like(q, q.options(), at::MemoryFormat::Contiguous);
  const Tensor q_TNH = ToOperand<T>(q), k_TKH = ToOperand<T>(k), v_TKH = ToOperand<T>(v);
  const int64_t tokens = q_TNH.size(0), heads = q_TNH.size(1), key_heads = k_TKH.size(1), head_size = q_TNH.size(2);
  const int64_t group = heads / key_heads;
  const AttentionForm& form = setting.form;
  const auto scale = static_cast<float>(form.scale), softcap = static_cast<float>(form.softcap);
  const std::optional<WeightDropout> dropout = setting.dropout(tokens);
  const Tensor out_TNH = q.scalar_type() == q_TNH.scalar_type() ? result_TNH : at::empty_like(q_TNH),
               log_sums_NT = at::empty({heads, tokens}, at::kFloat);
  const auto attend = [&](std::pair<int64_t, int64_t> document, int64_t key_head) {
    const int64_t first = document.first, length = document.second - first;
    Factor<T> of_key, of_value;
    const auto key_HL = of_key.Cut(head_size, length, HeadOf<T>(k_TKH, key_head).rows(first, /*transposed=*/true));
    const auto value_LH = of_value.Cut(length, head_size, HeadOf<T>(v_TKH, key_head).rows(first));
    std::vector<float> weights_QS(LargestBlock(document, form.window));
    std::vector<T> rounded_QS;
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      const Head<T> query = HeadOf<T>(q_TNH, head), out = HeadOf<T>(out_TNH, head);
      float* log_sums_T = log_sums_NT.mutable_data_ptr<float>() + head * tokens;
      ForEachBlock(document, form.window, [&](const Block& block) {
        const int64_t queries = block.queries(), pitch = block.pitch(), begin = block.begin;
        const auto key_HS = key_HL.Columns(block.first_key - first);
        const auto value_SH = value_LH.Rows(block.first_key - first);
        Multiply(queries, block.keys(), head_size, query.rows(begin), key_HS, Result<float>{weights_QS.data(), pitch});
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t from = block.seen_from(i), count = block.seen_to(i) - from;
          float* weights = weights_QS.data() + i * pitch + from;
          if (softcap > 0) kernels::SoftCap(weights, count, scale, softcap, nullptr);
          log_sums_T[begin + i] = kernels::Softmax(weights, count, softcap > 0 ? 1 : scale);
          if (dropout) dropout->Apply(head, begin + i, count, weights);
          block.ClearUnseen(i, weights_QS.data());
        }
        const Matrix<T> weights = {Rounded(weights_QS, queries * pitch, rounded_QS), pitch};
        Multiply(queries, head_size, block.inner<T>(), weights, value_SH, out.from(begin));
      });
    }
  };
  ForEachDocumentAndKeyHead(setting.documents, key_heads, attend);
  if (!out_TNH.is_same(result_TNH)) result_TNH.copy_(out_TNH);
  return {result_TNH, log_sums_NT};
}

// Gradients of q, k and v.
template <typename T>
variable_list AttentionGradients(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_sums_NT,
                                 const Tensor& dout, const Setting& setting) {
  const Tensor q_TNH = ToOperand<T>(q), k_TKH = ToOperand<T>(k), v_TKH = ToOperand<T>(v);
  const Tensor dout_TNH = ToOperand<T>(dout);
  const int64_t tokens = q_TNH.size(0), heads = q_TNH.size(1), key_heads = k_TKH.size(1), head_size = q_TNH.size(2);
  const int64_t group = heads / key_heads;
  const AttentionForm& form = setting.form;
  const auto scale = static_cast<float>(form.scale), softcap = static_cast<float>(form.softcap);
  const std::optional<WeightDropout> dropout = setting.dropout(tokens);
  // What is added up over blocks and heads is fp32.
  const Tensor dq_TNH = at::empty_like(q_TNH), dk_TKH = at::zeros_like(k_TKH, at::kFloat),
               dv_TKH = at::zeros_like(v_TKH, at::kFloat);
  const auto differentiate = [&](std::pair<int64_t, int64_t> document, int64_t key_head) {
    const int64_t first = document.first, length = document.second - first;
    const Head<T> key = HeadOf<T>(k_TKH, key_head), value = HeadOf<T>(v_TKH, key_head);
    const Head<float> dkey = HeadOf<float>(dk_TKH, key_head), dvalue = HeadOf<float>(dv_TKH, key_head);
    Factor<T> of_key, of_key_rows, of_value, of_query, of_dout;
    const auto key_HL = of_key.Cut(head_size, length, key.rows(first, /*transposed=*/true));
    const auto key_LH = of_key_rows.Cut(length, head_size, key.rows(first));
    const auto value_HL = of_value.Cut(head_size, length, value.rows(first, /*transposed=*/true));
    std::vector<float> weights_QS(LargestBlock(document, form.window)), dscores_QS(weights_QS.size());
    std::vector<float> slope_S(static_cast<size_t>(softcap > 0 ? length : 0));
    std::vector<T> rounded_weights_QS, rounded_dscores_QS;
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      const Head<T> query = HeadOf<T>(q_TNH, head), dout_of_head = HeadOf<T>(dout_TNH, head),
                    dquery = HeadOf<T>(dq_TNH, head);
      const float* log_sums_T = log_sums_NT.const_data_ptr<float>() + head * tokens;
      ForEachBlock(document, form.window, [&](const Block& block) {
        const int64_t queries = block.queries(), keys = block.keys(), pitch = block.pitch(), begin = block.begin;
        const int64_t before = block.first_key - first;
        Multiply(queries, keys, head_size, query.rows(begin), key_HL.Columns(before),
                 Result<float>{weights_QS.data(), pitch});
        Multiply(queries, keys, head_size, dout_of_head.rows(begin), value_HL.Columns(before),
                 Result<float>{dscores_QS.data(), pitch});
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t from = block.seen_from(i), count = block.seen_to(i) - from;
          float *weights = weights_QS.data() + i * pitch + from, *dscores = dscores_QS.data() + i * pitch + from;
          if (softcap > 0) kernels::SoftCap(weights, count, scale, softcap, slope_S.data());
          kernels::ExpMinus(weights, count, softcap > 0 ? 1 : scale, log_sums_T[begin + i]);
          if (dropout) dropout->Apply(head, begin + i, count, dscores);
          const float delta = kernels::Dot(weights, dscores, count);
          kernels::SoftmaxBackward(weights, count, delta, scale, dscores);
          // A weight that is alone is 1 whatever its score. What rounding leaves would be a direction for Adam.
          if (count == 1) dscores[0] = 0;
          if (softcap > 0) kernels::Multiply(slope_S.data(), count, dscores);
          if (dropout) dropout->Apply(head, begin + i, count, weights);
          block.ClearUnseen(i, weights_QS.data());
          block.ClearUnseen(i, dscores_QS.data());
        }
        const Matrix<T> dscores = {Rounded(dscores_QS, queries * pitch, rounded_dscores_QS), pitch};
        const Matrix<T> weights = {Rounded(weights_QS, queries * pitch, rounded_weights_QS), pitch};
        const Matrix<T> dscores_t = {dscores.data, pitch, true}, weights_t = {weights.data, pitch, true};
        Multiply(queries, head_size, block.inner<T>(), dscores, key_LH.Rows(before), dquery.from(begin));
        Multiply(keys, head_size, queries, dscores_t, of_query.Cut(queries, head_size, query.rows(begin)),
                 dkey.from(block.first_key, /*add=*/true));
        Multiply(keys, head_size, queries, weights_t, of_dout.Cut(queries, head_size, dout_of_head.rows(begin)),
                 dvalue.from(block.first_key, /*add=*/true));
      });
    }
  };
  ForEachDocumentAndKeyHead(setting.documents, key_heads, differentiate);
  const auto type = q.scalar_type();
  return {dq_TNH.to(type), dk_TKH.to(type), dv_TKH.to(type)};
}

bool ReadsBf16(const Tensor& q) { return q.scalar_type() == at::kBFloat16 && HasBf16Products(); }

struct AttentionFunction : Function<AttentionFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Setting& setting) {
    const auto attend = ReadsBf16(q) ? &Attend<uint16_t> : &Attend<float>;
    const auto [result_TNH, log_sums_NT] = attend(q, k, v, setting);
    context->save_for_backward({q, k, v, log_sums_NT});
    Save(setting, context);
    return result_TNH;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto gradients = ReadsBf16(saved[0]) ? &AttentionGradients<uint16_t> : &AttentionGradients<float>;
    variable_list of_inputs = gradients(saved[0], saved[1], saved[2], saved[3], grads[0], Saved(context));
    of_inputs.emplace_back();  // of the setting
    return of_inputs;
  }
};

// --- Without kernels: out of LibTorch's operations, under recorded autograd.

// FlashAttention (arXiv:2307.08691), which takes documents that lie end to end.
bool CanFlash(const Tensor& q, const AttentionForm& form) {
  const int64_t head_size = q.size(2);
  return q.is_cuda() && q.scalar_type() == at::kBFloat16 && head_size <= 256 && head_size % 8 == 0 &&
         form.softcap == 0 && form.dropout == 0;
}

Tensor FlashAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents,
                      const AttentionForm& form) {
  std::vector<int32_t> bounds = {0};
  int64_t longest = 0;
  for (const auto& [begin, end] : documents) {
    bounds.push_back(static_cast<int32_t>(end));
    longest = std::max(longest, end - begin);
  }
  const Tensor bounds_on_device = at::tensor(bounds, at::kInt).to(q_TNH.device());
  std::optional<int64_t> before, after;
  if (form.window > 0) before = form.window - 1, after = 0;
  return std::get<0>(at::_flash_attention_forward(q_TNH, k_TKH, v_TKH, bounds_on_device, bounds_on_device, longest,
                                                  longest, /*dropout_p=*/0, /*is_causal=*/true,
                                                  /*return_debug_mask=*/false, form.scale, before, after));
}

// One document, with all of its scores in memory: for fp32, and for what FlashAttention does not know.
Tensor WholeAttention(const Tensor& q_LNH, const Tensor& k_LKH, const Tensor& v_LKH, const AttentionForm& form) {
  const int64_t group = q_LNH.size(1) / k_LKH.size(1);
  const auto by_head = [](const Tensor& x) { return x.to(at::kFloat).transpose(0, 1); };
  const Tensor q = by_head(q_LNH), k = by_head(k_LKH).repeat_interleave(group, 0),
               v = by_head(v_LKH).repeat_interleave(group, 0);
  Tensor scores_NLL = at::matmul(q, k.transpose(1, 2)) * form.scale;
  if (form.softcap > 0) scores_NLL = at::tanh(scores_NLL / form.softcap) * form.softcap;
  const Tensor positions = at::arange(q_LNH.size(0), q_LNH.options().dtype(at::kLong));
  const Tensor distance = positions.unsqueeze(1) - positions;
  Tensor unseen = distance < 0;
  if (form.window > 0) unseen = unseen.logical_or(distance >= form.window);
  Tensor weights_NLL = scores_NLL.masked_fill(unseen, -INFINITY).softmax(-1);
  if (form.dropout > 0) weights_NLL = Dropout(weights_NLL, form.dropout);
  return at::matmul(weights_NLL, v).transpose(0, 1).to(q_LNH.scalar_type());
}

Tensor ComposedAttention(const Tensor& q, const Tensor& k, const Tensor& v, const Documents& documents,
                         const AttentionForm& form) {
  if (CanFlash(q, form)) return FlashAttention(q, k, v, documents, form);
  std::vector<Tensor> parts;
  for (const auto& [begin, end] : documents)
    parts.push_back(WholeAttention(q.slice(0, begin, end), k.slice(0, begin, end), v.slice(0, begin, end), form));
  return at::cat(parts);
}

Tensor ComposedCachedAttention(const Tensor& q_BNH, const Tensor& keys_BKSH, const Tensor& values_BKSH,
                               const Tensor& positions_B, const AttentionForm& form) {
  const int64_t rows = q_BNH.size(0), key_heads = keys_BKSH.size(1), slots = keys_BKSH.size(2);
  const Tensor q_BKGH = q_BNH.to(at::kFloat).view({rows, key_heads, -1, q_BNH.size(2)});
  Tensor scores_BKGS = at::matmul(q_BKGH, keys_BKSH.to(at::kFloat).transpose(2, 3)) * form.scale;
  if (form.softcap > 0) scores_BKGS = at::tanh(scores_BKGS / form.softcap) * form.softcap;
  const Tensor distance_BS = positions_B.unsqueeze(1) - at::arange(slots, positions_B.options());
  Tensor unseen_BS = distance_BS < 0;
  if (form.window > 0) unseen_BS = unseen_BS.logical_or(distance_BS >= form.window);
  const Tensor weights = scores_BKGS.masked_fill(unseen_BS.view({rows, 1, 1, slots}), -INFINITY).softmax(-1);
  return at::matmul(weights, values_BKSH.to(at::kFloat)).reshape(q_BNH.sizes()).to(q_BNH.scalar_type());
}

}  // namespace

Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents,
                       const AttentionForm& form) {
  Setting setting{documents, form, 0};
  if (!at::GradMode::is_enabled()) setting.form.dropout = 0;
  if (!HasKernels(q_TNH)) return ComposedAttention(q_TNH, k_TKH, v_TKH, documents, setting.form);
  if (setting.form.dropout > 0) setting.seed = DrawMaskSeed();
  return AttentionFunction::apply(q_TNH, k_TKH, v_TKH, setting);
}

Tensor CachedAttention(const Tensor& q_BNH, const Tensor& keys_BKSH, const Tensor& values_BKSH,
                       const Tensor& positions_B, const AttentionForm& form) {
  at::NoGradGuard no_grad;
  if (!HasKernels(q_BNH)) return ComposedCachedAttention(q_BNH, keys_BKSH, values_BKSH, positions_B, form);
  const Tensor q = ToOperand<float>(q_BNH), keys = ToOperand<float>(keys_BKSH), values = ToOperand<float>(values_BKSH),
               out_BNH = at::empty_like(q);
  const int64_t key_heads = keys.size(1), slots = keys.size(2), head_size = keys.size(3), group = q.size(1) / key_heads;
  const auto scale = static_cast<float>(form.scale), softcap = static_cast<float>(form.softcap);
  const int64_t* positions = positions_B.const_data_ptr<int64_t>();
  ParallelItems(q.size(0) * key_heads, [&](int64_t item) {
    const int64_t row = item / key_heads, to = positions[row] + 1;
    const int64_t from = form.window == 0 ? 0 : std::max<int64_t>(0, to - form.window), count = to - from;
    const int64_t first_key = (item * slots + from) * head_size, first_query = item * group * head_size;
    std::vector<float> weights(static_cast<size_t>(group * count));
    Multiply(group, count, head_size, Matrix<float>{q.const_data_ptr<float>() + first_query, head_size},
             Matrix<float>{keys.const_data_ptr<float>() + first_key, head_size, true},
             Result<float>{weights.data(), count});
    for (int64_t head = 0; head < group; ++head) {
      float* of_head = weights.data() + head * count;
      if (softcap > 0) kernels::SoftCap(of_head, count, scale, softcap, nullptr);
      kernels::Softmax(of_head, count, softcap > 0 ? 1 : scale);
    }
    Multiply(group, head_size, count, Matrix<float>{weights.data(), count},
             Matrix<float>{values.const_data_ptr<float>() + first_key, head_size},
             Result<float>{out_BNH.mutable_data_ptr<float>() + first_query, head_size});
  });
  return out_BNH.to(q_BNH.scalar_type());
}

}  // namespace luthier::ops
