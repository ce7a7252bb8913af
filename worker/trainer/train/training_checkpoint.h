// Resumable state on disk: `<run>/checkpoints/step-N/` with weights.safetensors, optimizer.safetensors (and the state
// of the random numbers), rows.safetensors and state.json, which is written last. A checkpoint exists once its folder
// has its final name. The hashes are a chain: `hash` in state.json covers everything else in it, which are the step
// (and with it the data cursor), the SHA-256 of each file, and the `hash` of the checkpoint before (`previous`).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/train/selection.h"

namespace luthier {

// What a run chose by the machine that it began on. It keeps that on any other, since its weights depend on it.
struct MachineValues {
  int64_t micro_batch_tokens = 0;
  std::string precision;
};

// Everything that the next step depends on besides the spec. The data cursor is the step itself: batches are a pure
// function of spec and step.
struct TrainingState {
  int64_t step = 0;         // optimizer steps done
  NamedTensors weights;     // what is trained, fp32
  NamedTensors optimizer;   // AdamW::State
  Tensor generator_states;  // of torch's CPU generator in each rank, behind one another: dropout
  std::string spec_hash;    // a resumed run must have the same spec
  MachineValues machine;
  int64_t tokens = 0;          // processed so far, for reports
  double loss = 0;             // of the last step
  double seconds = 0;          // spent by all processes of the run so far
  int64_t evaluated_step = 0;  // the last step whose weights were evaluated
  Selection selection;         // of the evaluations so far
  NamedTensors row_losses;     // RowLosses::State
};

// Of the checkpoint of a step, whether there is one or not.
std::string CheckpointFolder(const std::string& run_folder, int64_t step);

// Of the newest checkpoint whose state.json is intact. Nothing if there is none, or if it does not hold them.
std::optional<MachineValues> MachineValuesOfNewest(const std::string& run_folder);

// Writes a checkpoint and then removes the oldest beyond `keep` and what damaged ones left: nothing is removed before a
// newer one is on disk. Returns its folder. Errors: RESOURCE_EXHAUSTED if the disk is full; the earlier checkpoints
// stay.
absl::StatusOr<std::string> WriteCheckpoint(const std::string& run_folder, const TrainingState& state, int64_t keep);

// Keeps the weights of step `step` as the best so far, in `<run>/checkpoints/best-N`. Those that were the best before
// stay as long as a checkpoint names them.
absl::Status WriteBestWeights(const std::string& run_folder, int64_t step, const NamedTensors& weights);

// Whether it kept those of that step.
bool HasBestWeights(const std::string& run_folder, int64_t step);

// The weights that WriteBestWeights kept of that step. Errors: NOT_FOUND; DATA_LOSS if they are damaged.
absl::StatusOr<NamedTensors> ReadBestWeights(const std::string& run_folder, int64_t step);

// The newest checkpoint that verifies and follows the one before, if that is still there; none if there is no usable
// one. Each damaged one is renamed to `.damaged-step-N`, so that it never counts as one to keep, and `warn` is called.
// Errors: FAILED_PRECONDITION if the newest intact checkpoint belongs to another spec; UNAVAILABLE if memory does not
// suffice to read one; as FileError if they cannot be listed. LibTorch throws if memory ends later.
absl::StatusOr<std::optional<TrainingState>> ReadNewestCheckpoint(const std::string& run_folder,
                                                                  const std::string& spec_hash,
                                                                  const std::function<void(std::string)>& warn);

}  // namespace luthier
