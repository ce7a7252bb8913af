// From the `lora` block of a job to an adapter's configuration.
#pragma once

#include <cstdint>

#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/plan/job_spec.h"

namespace luthier {

// The adapter that a settled block asks for; base_model_name is left to the caller.
AdapterConfig AdapterConfigOf(const LoraSpec& lora, const ModelConfig& model);

// Lets a block ask for an adapter of the same shape as one that exists: all but dropout and learning rates.
void TakeShapeOf(const AdapterConfig& adapter, LoraSpec& lora);

// Peak learning rate of an adapter on the embedding where LoRA+ is asked for: the default of PEFT's
// create_loraplus_optimizer (loraplus_lr_embedding).
inline constexpr double kPlusEmbeddingRate = 1e-6;

// Numbers that an adapter trains: A and B, DoRA's lengths, modules that are trained whole.
int64_t TrainedParameters(const AdapterConfig& adapter, const ModelConfig& model);

// Those of them that a token meets: of experts only the ones that it goes through.
int64_t ParametersOfAToken(const AdapterConfig& adapter, const ModelConfig& model);

}  // namespace luthier
