// What a run leaves behind: an adapter in PEFT format, or a whole model in Hugging Face format.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/checkpoint/model_facts.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/train/batch.h"

namespace luthier {

// Writes `folder` (replacing it), reads it again, and compares logits of `probe` with those of the trained model.
// Errors: INTERNAL if the files do not compute what was trained; RESOURCE_EXHAUSTED if the disk is full.
absl::Status ExportAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                           const DecoderModel& trained, const PackedBatch& probe, const std::string& folder);

// Writes config, weights in the format that `config_json` names, tokenizer, template and generation config of `base_folder`.
absl::Status ExportModel(const NamedTensors& weights, const nlohmann::json& config_json, const ModelConfig& config,
                         const std::string& base_folder, const DecoderModel& trained, const PackedBatch& probe,
                         const std::string& folder);

// Bytes of all files in a folder.
int64_t FolderBytes(const std::string& folder);

}  // namespace luthier
