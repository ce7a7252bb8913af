#include "worker/trainer/export/conversion.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/dataset/encode.h"
#include "lib/text/chat_template.h"
#include "lib/text/template_source.h"
#include "lib/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/export/export.h"
#include "worker/trainer/export/gguf_adapter.h"
#include "worker/trainer/export/template_file.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/events.h"
#include "worker/trainer/train/progress.h"

namespace luthier {
namespace {

using nlohmann::json;

constexpr char kGgufFolder[] = "gguf_adapter";

// Something to compare logits with where there is no row of a dataset: any tokens will do, in a short and in a longer
// document.
PackedBatch ProbeTokens(const ModelConfig& config) {
  constexpr int64_t kShort = 24, kLong = 256;
  const auto document = [&](int64_t tokens) {
    Example example;
    for (int64_t i = 0; i < std::min(tokens, config.max_position_embeddings); ++i) {
      example.ids.push_back(static_cast<int32_t>((i * i * 7919 + 1) % config.vocab_size));
      example.trained.push_back(1);
    }
    return example;
  };
  const Example in_short = document(kShort), in_long = document(kLong);
  return MakePackedBatch({&in_short, &in_long}, at::kCPU);
}

absl::StatusOr<std::vector<int32_t>> EndIds(const std::string& base, const TemplateSources& own_template) {
  LUTHIER_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(base));
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat_template,
                           ChatTemplate::OfJob(base, own_template, /*date=*/""));
  return RowEncoder(tokenizer, chat_template ? &*chat_template : nullptr, {}).stop_ids();
}

}  // namespace

absl::Status Convert(const Conversion& conversion) {
  const absl::Status ended = absl::CancelledError("the export was stopped");
  LUTHIER_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(conversion.base));
  // A job's own lies with its adapter, its date in it.
  LUTHIER_ASSIGN_OR_RETURN(const TemplateSources own_template, ReadTemplateFiles(conversion.adapter));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<int32_t> end_ids, EndIds(conversion.base, own_template));
  if (!conversion.goes_on()) return ended;
  LUTHIER_ASSIGN_OR_RETURN(const NamedTensors weights,
                           LoadWeights(conversion.base, facts.config, at::kFloat, WeightUse::kFrozen));
  LUTHIER_ASSIGN_OR_RETURN(const Adapter adapter, ReadAdapter(conversion.adapter, facts.config, &weights));
  LUTHIER_ASSIGN_OR_RETURN(const auto tuned, MakeTunedModel(facts.config, weights, {&adapter}));
  const PackedBatch probe = ProbeTokens(facts.config);
  const TrainedModel trained{*tuned, probe};
  if (!conversion.goes_on()) return ended;
  if (conversion.form == "gguf") return ExportGgufAdapter(adapter, weights, facts.config, trained, conversion.place);
  LUTHIER_ASSIGN_OR_RETURN(const MergedModel merged, MergeAdapter(facts.config, weights, adapter));
  if (!conversion.goes_on()) return ended;
  LUTHIER_RETURN_IF_ERROR(ExportModel(
      {merged.weights, MergedConfig(facts.config_json, merged), conversion.base, end_ids}, trained, conversion.place));
  return ExportTemplate(own_template, /*date=*/"", conversion.base, conversion.place);
}

std::string PlaceOfExport(const TrainerSpec& spec) {
  return spec.export_as == "gguf" ? absl::StrCat(kGgufFolder, "/adapter.gguf") : "model";
}

absl::Status RunExport(const TrainerSpec& spec, const std::string& out_folder, EventWriter& events,
                       RunControl& control) {
  const auto start = std::chrono::steady_clock::now();
  events.Write("started", {{"protocol", kTrainerProtocol},
                           {"device", "cpu"},
                           {"devices", 1},
                           {"export", spec.export_as},
                           {"total_steps", 0},
                           {"resumed_step", 0}});
  const auto goes_on = [&] {
    events.Write("busy", {{"step", 0}, {"with", "export"}});
    return !control.stop;
  };
  const absl::Status written =
      Convert({spec.base_model, spec.start_adapter, spec.export_as, out_folder + "/" + PlaceOfExport(spec), goes_on});
  if (absl::IsCancelled(written)) {  // nothing is left of it: the next attempt begins anew
    events.Write("stopped", {{"step", 0}});
    return absl::OkStatus();
  }
  LUTHIER_RETURN_IF_ERROR(written);
  const bool gguf = spec.export_as == "gguf";
  const std::string kind = gguf ? kGgufFolder : "model", folder = absl::StrCat(out_folder, "/", kind);
  // llama.cpp takes a template that is not the base model's from a file.
  if (gguf) {
    LUTHIER_ASSIGN_OR_RETURN(const TemplateSources own_template, ReadTemplateFiles(spec.start_adapter));
    LUTHIER_RETURN_IF_ERROR(ExportTemplate(own_template, /*date=*/"", spec.base_model, folder));
  }
  json report = {{"step", 0},
                 {"export", spec.export_as},
                 {"stop_reason", "COMPLETED"},
                 {"artifact", {{"kind", kind}, {"path", folder}, {"bytes", FolderBytes(folder)}}},
                 {"seconds", SecondsSince(start)},
                 {"peak_memory_bytes", PeakMemoryBytes()}};
  return FinishRun(out_folder, std::move(report), events);
}

}  // namespace luthier
