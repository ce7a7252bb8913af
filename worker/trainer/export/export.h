// What a run leaves behind: an adapter in PEFT format, or a whole model in Hugging Face format. Each function writes
// beside its place, reads again, compares bits and logits with those of the trained model, and only then takes the
// place, of which it replaces nothing but an earlier export (export_place.h).
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

inline constexpr const char* kGenerationConfigFile = "generation_config.json";
// What a Hugging Face folder holds besides configs and weights, as far as the base has it.
inline constexpr const char* kTextFiles[] = {"tokenizer.json",
                                             "tokenizer_config.json",
                                             "special_tokens_map.json",
                                             "chat_template.jinja",
                                             "added_tokens.json",
                                             "tokenizer.model",
                                             "vocab.json",
                                             "merges.txt"};

// Of a probe's tokens, the logits of so many are compared: as many rows of a vocabulary of 256,000 take 256 MB.
constexpr int64_t kComparedTokens = 256;
// Besides the longest row, a probe has no more tokens than this.
constexpr int64_t kProbeTokens = 2048;

// Rows to compare exports on, by number: a short one, one of middling length, and the longest at the end. The longest
// is taken whole, since windows and stretched positions act on no other; it was trained whole, so a pass over it fits.
// Requires at least one row.
std::vector<int32_t> ProbeRows(const std::vector<int32_t>& lengths);

// What an export is compared with: the logits of a model for tokens that are spread evenly over `probe`, the first and
// the last among them.
class TrainedModel {
 public:
  // Borrows both.
  TrainedModel(const DecoderModel& model, const PackedBatch& probe);

  // Whether `reloaded`, computing in the same format, computes what was trained, up to `tolerance` in the logits of
  // `share` of the tokens. `path` is for the message. Errors: INTERNAL.
  absl::Status Compare(DecoderModel& reloaded, double tolerance, const std::string& path, double share = 1) const;

  // Between the highest and the lowest logit.
  double spread() const;
  at::Device device() const { return model_.device(); }

 private:
  const DecoderModel& model_;
  const PackedBatch& probe_;
  Tensor rows_N_;  // int64, of the probe
  Tensor logits_NV_;
};

// Errors, here and below: INTERNAL if the files do not compute what was trained; INVALID_ARGUMENT if something else is
// in the place; RESOURCE_EXHAUSTED if the disk is full.
absl::Status ExportAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                           const TrainedModel& trained, const std::string& folder);

// The parts of a model folder.
struct ModelToExport {
  const NamedTensors& weights;
  nlohmann::json config_json;    // names the format of the stored weights
  std::string base_folder;       // where tokenizer, template and generation config are copied from
  std::vector<int32_t> end_ids;  // tokens that end an answer: generation must stop at them
};

// One file, or shards of at most `max_shard_bytes` with an index. Stored as `config_json` says, every tensor must be
// the trained one rounded to that format, bit for bit; that the weights compute what was trained is compared before
// they are rounded, so that one wrong layer cannot hide behind the rounding of all.
absl::Status ExportModel(const ModelToExport& model, const TrainedModel& trained, const std::string& folder,
                         int64_t max_shard_bytes = kMaxShardBytes);

// The config.json of what MergeAdapter made of a base with `config_json`.
nlohmann::json MergedConfig(nlohmann::json config_json, const MergedModel& merged);

// Whether the files in `folder` hold these weights as `stored_as`, bit for bit. Errors: INTERNAL naming a tensor that
// differs.
absl::Status CompareWeights(const NamedTensors& weights, at::ScalarType stored_as, const std::string& folder);
// The same of an adapter, whose files are fp32: a bit that moves no logit of the probe is found too.
absl::Status CompareAdapter(const Adapter& adapter, const std::string& folder);

// Bytes of all files in a folder.
int64_t FolderBytes(const std::string& folder);

// An exact copy computes the same logits up to the order of sums.
constexpr double kExactTolerance = 1e-4;

}  // namespace luthier
