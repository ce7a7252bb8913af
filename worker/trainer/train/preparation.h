// What a run works on, from its spec: plan, rows, model and steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/dataset/batches.h"
#include "lib/dataset/dataset_facts.h"
#include "lib/dataset/encode.h"
#include "lib/plan/resolve.h"
#include "lib/plan/trainer_spec.h"
#include "lib/text/chat_template.h"
#include "lib/text/tokenizer.h"
#include "worker/trainer/distributed/ranks.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/evaluation.h"
#include "worker/trainer/train/training_checkpoint.h"

namespace luthier {

// Base model and text, opened.
struct Base {
  ModelFacts facts;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::string own_template;  // source of the job's own; empty: the base model's
  const ChatTemplate* template_or_null() const { return chat_template ? &*chat_template : nullptr; }
};

// Everything a run works on. Built once, in the order of the fields.
struct Run {
  const TrainerSpec& spec;
  std::string out_folder;
  Ranks ranks;
  at::Device device;
  Base base;
  ResolvedSpec plan;
  std::vector<Example> examples;
  std::vector<ReportedFile> files;  // of all parts, as they are trained and evaluated
  std::vector<int32_t> lengths;
  std::vector<EvaluationSplit> splits;
  std::vector<int32_t> stop_ids;
  BatchOptions batches;
  int64_t steps_per_epoch = 0;
  int64_t total_steps = 0;
  MachineValues machine;  // of the machine that it began on: part of `spec_hash`, and of every checkpoint
  // From here on: by Prepare only.
  NamedTensors base_weights;
  Adapter adapter;       // empty for full training
  NamedTensors trained;  // what the optimizer moves
  std::unique_ptr<DecoderModel> model;
  std::string spec_hash;

  bool lora() const { return plan.recipe.tuning == "lora"; }
  ComputeOptions compute() const;
  const TrainingSpec& training() const { return plan.recipe.training; }
};

// Reads the spec's files but the weights, settles the plan, and divides the rows into steps: a run without a model.
// Errors: as Prepare.
absl::StatusOr<std::unique_ptr<Run>> PlanRun(const TrainerSpec& spec, const std::string& out_folder, Ranks ranks = {});

// Reads the spec's files, settles the plan and builds the model. Errors: see docs/trainer-protocol.md, `failed`;
// IsUserDataError tells whether the rows are at fault.
absl::StatusOr<std::unique_ptr<Run>> Prepare(const TrainerSpec& spec, const std::string& out_folder, Ranks ranks = {});

// The base model's weights as the spec gives them: from the folder, or drawn from the seed.
absl::StatusOr<NamedTensors> ReadBaseWeights(const Run& run, WeightUse use);

// What a spec may ask of devices in general and this machine cannot give: said, never ignored. INVALID_ARGUMENT.
absl::Status CheckDevices(const Recipe& recipe);

// Whether an error of Prepare is the fault of the rows.
bool IsUserDataError(const absl::Status& status);

}  // namespace luthier
