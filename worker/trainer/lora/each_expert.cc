#include "worker/trainer/lora/each_expert.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/common/experts.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

constexpr absl::string_view kExperts = ".mlp.experts.";

// "model.layers.0.mlp.experts.3.up_proj" of "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight".
std::string ModuleOf(absl::string_view tensor) {
  absl::ConsumePrefix(&tensor, kPeftPrefix);
  return std::string(tensor.substr(0, tensor.find(".lora_")));
}

// Where "3.up_proj" begins in it; npos if it is of no expert alone.
size_t ExpertIn(absl::string_view module) {
  const size_t experts = module.find(kExperts);
  if (experts == absl::string_view::npos) return experts;
  const size_t expert = experts + kExperts.size();
  const bool number = expert < module.size() && absl::ascii_isdigit(static_cast<unsigned char>(module[expert]));
  return number ? expert : absl::string_view::npos;
}

std::string LastOf(const std::string& name) { return name.substr(name.rfind('.') + 1); }

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("adapter_config.json: ", field, ": ", why,
                                                 "; of an adapter that names each expert only plain LoRA on a list of "
                                                 "target_modules is read, with one rank and alpha for all experts"));
}

// What has no form for all experts together, or none that we know. `modules` become parameters.
absl::Status CheckForm(const AdapterConfig& config, const std::set<std::string>& modules) {
  if (config.target_regex || config.all_linear) return Refuse("target_modules", "is no list");
  if (config.dora) return Refuse("use_dora", "true");
  AdapterConfig plain = config;
  plain.rank_pattern.clear();
  plain.alpha_pattern.clear();
  for (const std::string& module : modules) {
    if (config.RankOf(module) != plain.rank) return Refuse("rank_pattern", absl::StrCat("matches ", module));
    if (config.ScaleOf(module) != plain.ScaleOf(module))
      return Refuse("alpha_pattern", absl::StrCat("matches ", module));
  }
  return absl::OkStatus();
}

// The config of the joined adapter: what were modules of experts, of routers and of MLPs beside them are parameters.
absl::StatusOr<AdapterConfig> JoinedConfig(const ModelConfig& model, AdapterConfig config,
                                           const std::map<std::string, TensorView>& stored) {
  std::map<std::string, std::string> weights;  // of routers and MLPs, by their modules
  for (const LinearLayer& linear : ParameterLayers(model)) {
    if (linear.experts == 0) weights[linear.module] = linear.parameter;
  }
  std::set<std::string> modules, parameters;
  for (const auto& [name, view] : stored) {
    const std::string module = ModuleOf(name);
    const size_t expert = ExpertIn(module);
    if (const auto weight = weights.find(module); weight != weights.end()) {
      parameters.insert(weight->second);
    } else if (expert != absl::string_view::npos) {
      parameters.insert(module.substr(0, expert) + (LastOf(module) == "down_proj" ? "down_proj" : "gate_up_proj"));
    } else {
      continue;
    }
    modules.insert(module);
  }
  LUTHIER_RETURN_IF_ERROR(CheckForm(config, modules));
  std::erase_if(config.target_modules, [](const std::string& name) {
    const std::string last = LastOf(name);
    return last == "gate" || last == "gate_proj" || last == "up_proj" || last == "down_proj";
  });
  config.target_parameters.assign(parameters.begin(), parameters.end());
  config.dropout = 0;  // acts in training only, and goes with no parameters
  // The scale stays what it was: alpha / r, or alpha / sqrt(r).
  // In front, since others may match it too.
  config.rank_pattern.emplace(config.rank_pattern.begin(), "gate_up_proj", 2 * config.rank);
  config.alpha_pattern.emplace(config.alpha_pattern.begin(), "gate_up_proj",
                               config.alpha * (config.rslora ? std::numbers::sqrt2 : 2));
  return config;
}

// Takes the tensor out of `stored`.
absl::StatusOr<Tensor> Take(std::map<std::string, TensorView>& stored, const std::string& name,
                            const std::vector<int64_t>& shape) {
  const auto found = stored.find(name);
  constexpr absl::string_view kDoesNotFit = "the adapter does not fit this base model: ";
  if (found == stored.end()) return absl::InvalidArgumentError(absl::StrCat(kDoesNotFit, "missing: ", name));
  if (found->second.shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat(kDoesNotFit, "wrong shape: ", name, " is ",
                                                   ShapeString(found->second.shape), ", must be ", ShapeString(shape)));
  }
  Tensor tensor = ToTensor(found->second, at::kFloat);
  stored.erase(found);
  return tensor;
}

// A and B of all experts of a layer, as their parameter has them.
absl::StatusOr<std::pair<Tensor, Tensor>> Join(const LinearLayer& linear, int64_t rank,
                                               std::map<std::string, TensorView>& stored) {
  const std::vector<std::string> parts = PartsOf(linear);
  const int64_t out = linear.out / static_cast<int64_t>(parts.size());
  const std::string experts = linear.module.substr(0, linear.module.rfind('.') + 1);
  std::vector<Tensor> all_a, all_b;
  for (int64_t expert = 0; expert < linear.experts; ++expert) {
    std::vector<Tensor> of_parts;
    for (const std::string& part : parts) {
      const std::string name = absl::StrCat(kPeftPrefix, experts, expert, ".", part);
      LUTHIER_ASSIGN_OR_RETURN(Tensor a_RI, Take(stored, name + ".lora_A.weight", {rank, linear.in}));
      LUTHIER_ASSIGN_OR_RETURN(Tensor b_OR, Take(stored, name + ".lora_B.weight", {out, rank}));
      all_a.push_back(std::move(a_RI));
      of_parts.push_back(std::move(b_OR));
    }
    all_b.push_back(at::block_diag(of_parts));
  }
  return std::pair(at::cat(all_a), UnstackedB(at::stack(all_b)));
}

}  // namespace

std::vector<std::string> PartsOf(const LinearLayer& linear) {
  if (LastOf(linear.module) == "gate_up_proj") return {"gate_proj", "up_proj"};
  return {LastOf(linear.module)};
}

bool AdaptsEachExpert(const std::map<std::string, TensorView>& stored) {
  return std::any_of(stored.begin(), stored.end(),
                     [](const auto& tensor) { return ExpertIn(tensor.first) != absl::string_view::npos; });
}

absl::StatusOr<NamedTensors> JoinExperts(const ModelConfig& model, AdapterConfig& config,
                                         std::map<std::string, TensorView>& stored) {
  const int64_t rank = config.rank;
  LUTHIER_ASSIGN_OR_RETURN(config, JoinedConfig(model, std::move(config), stored));
  NamedTensors joined;
  for (const LinearLayer& linear : TargetedLayers(config, model)) {
    if (linear.experts == 0) continue;
    LUTHIER_ASSIGN_OR_RETURN(const auto both, Join(linear, rank, stored));
    joined[LoraName(config, linear, "A")] = both.first;
    joined[LoraName(config, linear, "B")] = both.second;
  }
  for (const auto& [name, tensor] : joined) stored[name] = ToWrite(name, tensor);
  return joined;
}

}  // namespace luthier
