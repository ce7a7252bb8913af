// What is trained of a model: an adapter beside it, or its own weights.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_config.h"
#include "lib/plan/job_spec.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/model.h"

namespace luthier {

struct Tuning {
  Adapter adapter;       // empty for full training
  NamedTensors trained;  // what the optimizer moves; they require gradients
  std::unique_ptr<DecoderModel> model;
};

// Builds a fresh adapter, or takes over the one in folder `start_adapter` if that is not empty. `recipe` is settled,
// and then its `lora` block must agree with the adapter's. `base_name` is written as base_model_name_or_path. Errors:
// INVALID_ARGUMENT naming the field whose names match nothing, or that contradicts the adapter.
absl::StatusOr<Tuning> MakeTuning(const Recipe& recipe, const ModelConfig& config, const NamedTensors& base,
                                  const std::string& base_name, const std::string& start_adapter);

// What the learning rate of each trained tensor is multiplied by, where that is not 1. LoRA+ moves B, and whatever has
// one dimension, faster than A, and an adapter on the embedding at a rate of its own (PEFT's optimizers/loraplus.py).
// Requires: a settled `recipe`.
std::map<std::string, double> LearningRateFactors(const Recipe& recipe, const NamedTensors& trained);

// What decays in no step: norms and biases, which nothing pulls back. Everything else does, the lengths of DoRA too, as
// with transformers' Trainer.
std::set<std::string> WithoutDecay(const NamedTensors& trained);

}  // namespace luthier
