#include "server/rpc/export_plan.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/gguf_adapter.h"
#include "lib/plan/trainer_spec.h"
#include "lib/wire/json_wire.h"
#include "server/core/reason.h"
#include "server/rpc/adapter_inputs.h"
#include "server/rpc/convert.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// The trainer would find out, too, once a node has been taken. Errors: INVALID_ARGUMENT.
absl::Status CheckGgufExport(const v1::AttemptInput& adapter, ArtifactStore& artifacts, const ModelConfig& model,
                             const std::string& version) {
  LUTHIER_ASSIGN_OR_RETURN(const AdapterConfig config,
                           ConfigOfAdapter(absl::StrCat("model_export.model_version: ", version), adapter, artifacts));
  const absl::Status fits = CheckFitsGgufAdapter(config, model);
  if (fits.ok()) return fits;
  return absl::InvalidArgumentError(
      absl::StrCat("model_export.format: GGUF_ADAPTER has no place for ", version, ": ", fits.message()));
}

// Of a trainer's start, and of reading, merging, writing, reading again and comparing: some passes over the weights by
// one disk and a few cores. 86 million parameters took 7 s on two; a wrong one only makes a forecast wrong.
absl::Duration DurationOfExport(const ModelFacts& model) {
  constexpr int64_t kBytesPerSecond = 200'000'000;
  return absl::Seconds(5) + absl::Seconds(4 * model.parameters / kBytesPerSecond);
}

absl::Status CheckIsAdapter(const v1::ModelVersion& version) {
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("model_export.model_version: ", version.name(), " ", why));
  };
  if (version.kind() == v1::ModelVersion::FULL_MODEL)
    return refuse("is a whole model already; download it as it is (GGUF of whole models is not supported)");
  if (version.kind() != v1::ModelVersion::ADAPTER) return refuse("is no adapter; give the version of a LoRA job");
  return absl::OkStatus();
}

absl::Status CheckBaseModel(const v1::ModelVersion& version, const v1::FineTuningSpec& spec) {
  if (absl::StripPrefix(version.base_model(), "baseModels/") == absl::StripPrefix(spec.base_model(), "baseModels/"))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("base_model: ", spec.base_model(), " is not that of ", version.name(),
                                                 ", ", version.base_model(), "; leave it out"));
}

// Its `latest` would be no adapter any more.
absl::Status CheckOutputModel(const v1::ModelVersion& version, const v1::FineTuningSpec& spec) {
  if (!absl::StartsWith(version.name(), absl::StrCat("models/", spec.output_model(), "/"))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("output_model: ", spec.output_model(), " is the model of ",
                                                 version.name(),
                                                 ", which is exported; give another one, or leave it out"));
}

}  // namespace

absl::StatusOr<Recipe> RecipeOfExport(const v1::FineTuningSpec& spec) {
  std::vector<std::string> violations;
  const auto refuse = [&](const char* field, bool given) {
    if (given) violations.push_back(absl::StrCat(field, ": ", kNoEffectOnExport));
  };
  refuse("dataset", spec.has_dataset());
  refuse("task", spec.task() != v1::TASK_UNSPECIFIED);
  refuse("training", spec.has_training());
  refuse("evaluation", spec.has_evaluation());
  refuse("checkpoint", spec.has_checkpoint());
  refuse("chat_template", !spec.chat_template().empty());
  refuse("template_date", !spec.template_date().empty());
  const v1::ModelExport::Format format = spec.model_export().format();
  if (format != v1::ModelExport::MERGED && format != v1::ModelExport::GGUF_ADAPTER)
    violations.emplace_back("model_export.format: is missing or unknown; give MERGED or GGUF_ADAPTER");
  if (!spec.output_model().empty()) {  // else it follows from the version
    if (absl::Status name = CheckId("output_model", spec.output_model(), /*dots=*/true); !name.ok())
      violations.emplace_back(name.message());
  }
  nlohmann::json blocks = nlohmann::json::object();
  if (spec.has_resources()) blocks["resources"] = MessageToJson(spec.resources());
  Recipe recipe = ParseRecipe(blocks, violations);
  RefuseSeveralRanks(recipe.resources, violations);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return recipe;
}

absl::Status CheckExportable(const v1::ModelVersion& version, const v1::FineTuningSpec& spec) {
  return AllOf({CheckIsAdapter(version), CheckBaseModel(version, spec), CheckOutputModel(version, spec)});
}

absl::StatusOr<Plan> MakeExportPlan(const v1::FineTuningSpec& spec, const Recipe& recipe,
                                    const v1::ModelVersion& version, const LoadedModel& base, const DeviceFacts& device,
                                    ArtifactStore& artifacts) {
  const bool merged = spec.model_export().format() == v1::ModelExport::MERGED;
  Plan plan;
  plan.base_model = std::string(absl::StripPrefix(version.base_model(), "baseModels/"));
  plan.datasets = version.name();
  plan.model = spec.output_model();
  plan.node_selector = LabelText(recipe.resources.node_selector);
  LUTHIER_ASSIGN_OR_RETURN(*plan.start.add_inputs(), AdapterToExport(version));
  if (!merged) {
    LUTHIER_RETURN_IF_ERROR(CheckGgufExport(plan.start.inputs(0), artifacts, base.facts.config, version.name()));
  }
  const int64_t adapter_bytes = BytesOf(plan.start.inputs(0).files());
  AddBaseModel(base.message, plan.start);
  plan.start.set_trainer_spec_json(TrainerSpecJson(plan.base_model, recipe, merged ? "merged" : "gguf"));

  const MemoryEstimate memory = EstimateExportMemory(base.facts, merged, adapter_bytes);
  *plan.estimate.mutable_memory() = ToProto(memory);
  // None of a GPU's: so the policy knows that it computes on the CPUs wherever it runs.
  plan.cpu_memory_bytes = static_cast<int64_t>(static_cast<double>(memory.total) / kUsableMemory);
  if (device.kind == DeviceFacts::Kind::kCpu && device.memory_bytes > 0 &&
      plan.cpu_memory_bytes > device.memory_bytes) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrFormat(
            "model_export: needs about %.2f GB and the largest node has %.2f GB; connect one with more memory",
            static_cast<double>(memory.total) / 1e9, static_cast<double>(device.memory_bytes) / 1e9)),
        kTooLarge);
  }
  plan.duration = DurationOfExport(base.facts);

  *plan.job.mutable_spec() = spec;
  AddResolved("base_model", plan.base_model, "that of the adapter", plan.job);
  AddResolved("model_export.model_version", version.name(), "given", plan.job);
  AddResolved("model_export.format", merged ? "MERGED" : "GGUF_ADAPTER", "given", plan.job);
  AddResolved("resources.devices", "1", "an export computes on the CPUs of its node", plan.job);
  Serialize(plan);
  return plan;
}

}  // namespace luthier
