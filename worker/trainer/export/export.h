// What a run leaves behind: an adapter in PEFT format, or a whole model in Hugging Face format. Each function writes a
// folder (replacing it), reads it again, and compares the logits of `probe` with those of the trained model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/model_facts.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/train/batch.h"

namespace luthier {

// Hugging Face's own limit for one file.
constexpr int64_t kMaxShardBytes = int64_t{5} * 1'000'000'000;

// What an exported model is compared with.
struct TrainedModel {
  const DecoderModel& model;
  const PackedBatch& probe;
};

// Errors, here and below: INTERNAL if the files do not compute what was trained; RESOURCE_EXHAUSTED if the disk is
// full.
absl::Status ExportAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                           const TrainedModel& trained, const std::string& folder);

// The parts of a model folder.
struct ModelToExport {
  const NamedTensors& weights;
  nlohmann::json config_json;    // names the format of the stored weights
  std::string base_folder;       // where tokenizer, template and generation config are copied from
  std::vector<int32_t> end_ids;  // tokens that end an answer: generation must stop at them
};

// One file, or shards of at most `max_shard_bytes` with an index.
absl::Status ExportModel(const ModelToExport& model, const TrainedModel& trained, const std::string& folder,
                         int64_t max_shard_bytes = kMaxShardBytes);

// The config.json of what MergeAdapter made of a base with `config_json`.
nlohmann::json MergedConfig(nlohmann::json config_json, const MergedModel& merged);

// Bytes of all files in a folder.
int64_t FolderBytes(const std::string& folder);

// Whether `reloaded`, computing in the same format, computes what was trained, up to `tolerance` in the logits. `path`
// is for the message.
absl::Status CompareLogits(const TrainedModel& trained, DecoderModel& reloaded, double tolerance,
                           const std::string& path);

// An exact copy computes the same logits up to the order of sums.
constexpr double kExactTolerance = 1e-4;

}  // namespace luthier
