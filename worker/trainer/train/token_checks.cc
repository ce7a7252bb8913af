#include "worker/trainer/train/token_checks.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

// Untrained rows are zeros, or what weight decay left of their start (Llama 3's base: below 1e-20). Those that were
// learned differ in length by less than a hundred times.
constexpr double kUntrainedLength = 0.01;

struct TokensOfRows {
  std::vector<int64_t> special, others;
};

TokensOfRows TokensOf(const Run& run) {
  std::vector<bool> seen(static_cast<size_t>(run.base.facts.config.vocab_size));
  for (const Example& example : run.examples) {
    for (const int32_t id : example.ids) seen[static_cast<size_t>(id)] = true;
  }
  TokensOfRows tokens;
  for (size_t id = 0; id < seen.size(); ++id) {
    if (!seen[id]) continue;
    const bool special = run.base.tokenizer.IsSpecial(static_cast<int32_t>(id));
    (special ? tokens.special : tokens.others).push_back(static_cast<int64_t>(id));
  }
  return tokens;
}

// Length of the rows of a [V, D] matrix that these tokens have, on the CPU.
Tensor Lengths(const Tensor& matrix_VD, const std::vector<int64_t>& tokens) {
  const Tensor rows = at::tensor(tokens, at::kLong).to(matrix_VD.device());
  return matrix_VD.detach().index_select(0, rows).to(at::kFloat).norm(2, /*dim=*/1).to(at::kCPU);
}

const Tensor& MatrixOf(const Run& run, const std::string& module) {
  const auto head = run.base_weights.find(kHead);
  return module == kHeadModule && head != run.base_weights.end() ? head->second : run.base_weights.at(kEmbedding);
}

std::string Quoted(const Run& run, int32_t token) {
  return absl::StrCat("'", run.base.tokenizer.IdToToken(token).value_or(absl::StrCat(token)), "'");
}

// Full training moves a tied head with its embedding; an adapter that replaces one of them leaves the other.
bool IsTrained(const Run& run, const std::string& module) {
  const std::string name = run.base.facts.config.tie_word_embeddings && !run.lora() ? "embed_tokens" : module;
  return std::any_of(run.trained.begin(), run.trained.end(),
                     [&](const auto& named) { return absl::StrContains(named.first, name); });
}

}  // namespace

absl::Status CheckTokensHaveEmbeddings(const Run& run) {
  const int64_t embeddings = run.base.facts.config.vocab_size;
  const auto check = [&](const std::string& path, const Example& example) -> absl::Status {
    const auto unknown =
        std::find_if(example.ids.begin(), example.ids.end(), [&](int32_t id) { return id >= embeddings; });
    if (unknown == example.ids.end()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        RowPosition(path, example.line, example.unit), ": token '",
        run.base.tokenizer.IdToToken(*unknown).value_or("?"), "' has the number ", *unknown, ", and the model has ",
        embeddings, " embeddings (config.json: vocab_size); give the tokenizer.json that belongs to the model"));
  };
  for (const Example& example : run.examples)
    LUTHIER_RETURN_IF_ERROR(check(run.spec.train[static_cast<size_t>(example.file)].path, example));
  for (const EvaluationSplit& split : run.splits) {
    const std::string& path = split.name == "test" ? run.spec.test : run.spec.validation;
    for (const Example& example : split.examples) LUTHIER_RETURN_IF_ERROR(check(path, example));
  }
  return absl::OkStatus();
}

std::optional<std::string> UntrainedEndWarning(const Run& run) {
  if (run.stop_ids.empty()) return std::nullopt;
  bool all_are_cut = true;
  for (const Example& example : run.examples) {
    if (static_cast<int64_t>(example.ids.size()) == example.full_length) all_are_cut = false;
    for (size_t t = 0; t < example.ids.size(); ++t) {
      if (example.trained[t] && std::ranges::count(run.stop_ids, example.ids[t]) > 0) return std::nullopt;
    }
  }
  if (all_are_cut) return std::nullopt;  // that is said elsewhere
  std::vector<std::string> ends;
  for (const int32_t id : run.stop_ids) ends.push_back(Quoted(run, id));
  return absl::StrCat("no row trains the end of an answer (", absl::StrJoin(ends, ", "),
                      "), so the model will not learn to stop; give a chat_template that writes it inside "
                      "{% generation %}, or rows that end with it");
}

std::optional<std::string> UntrainedTokensWarning(const Run& run) {
  const TokensOfRows tokens = TokensOf(run);
  if (tokens.special.empty() || tokens.others.empty()) return std::nullopt;
  std::vector<std::string> lacking, modules;
  for (const std::string module : {"embed_tokens", kHeadModule}) {
    if (IsTrained(run, module)) continue;
    const Tensor& matrix_VD = MatrixOf(run, module);
    const double typical = Lengths(matrix_VD, tokens.others).median().item<double>();
    const Tensor lengths = Lengths(matrix_VD, tokens.special);
    const size_t before = lacking.size();
    for (size_t i = 0; i < tokens.special.size(); ++i) {
      if (lengths[static_cast<int64_t>(i)].item<double>() > kUntrainedLength * typical) continue;
      lacking.push_back(Quoted(run, static_cast<int32_t>(tokens.special[i])));
    }
    if (lacking.size() > before) modules.push_back(module);
  }
  if (lacking.empty()) return std::nullopt;
  std::sort(lacking.begin(), lacking.end());
  lacking.erase(std::unique(lacking.begin(), lacking.end()), lacking.end());
  const std::string remedy =
      run.lora() ? absl::StrCat("give lora.modules_to_save: [", absl::StrJoin(modules, ", "), "], or tuning: full")
                 : absl::StrCat("take ", absl::StrJoin(modules, ", "), " out of training.freeze");
  return absl::StrCat("the base model never learned ", absl::StrJoin(lacking, ", "), ", which the rows use, and its ",
                      absl::StrJoin(modules, " and "),
                      " will not learn it here; what does not know the end of a turn never stops; ", remedy,
                      ", or a base model and chat template whose special tokens were trained");
}

}  // namespace luthier
