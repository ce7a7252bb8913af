// A LoRA adapter as llama.cpp reads it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "worker/trainer/export/export.h"
#include "worker/trainer/lora/lora.h"

namespace luthier {

// Writes one file, reads it again, and compares logits with the trained model's. llama.cpp multiplies B·A by
// adapter.lora.alpha / rank; whatever else the scale of a layer is (rsLoRA, patterns) is folded into its B. Experts
// have their gate and up apart there, so these share their A. Source: github.com/ggml-org/llama.cpp
// convert_lora_to_gguf.py, src/llama-adapter.cpp, build_inp_embd and build_lora_mm_id in src/llama-graph.cpp. Errors:
// INVALID_ARGUMENT for what the format cannot hold (DoRA, whole modules, a tied head or embedding); as ExportAdapter.
absl::Status ExportGgufAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                               const TrainedModel& trained, const std::string& path);

}  // namespace luthier
