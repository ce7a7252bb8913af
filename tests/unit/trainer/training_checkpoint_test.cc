// What is on disk when writing a checkpoint fails. That runs go on from them exactly:
// tests/integration/trainer_program_test.
#include "worker/trainer/train/training_checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "tests/support/file_size_limit.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

TrainingState StateOf(int64_t step) {
  TrainingState state;
  state.step = step;
  state.weights = {{"w", at::full({8}, static_cast<double>(step))}};
  state.optimizer = {{"w.first", at::zeros({8})}};
  state.generator_states = at::detail::getDefaultCPUGenerator().get_state();
  state.spec_hash = "spec";
  return state;
}

// Bug 30: the disk is full when the weights are written and the optimizer's state is not.
TEST(CheckpointDiskTest, OneThatCannotBeFinishedLeavesTheOneBefore) {
  const TempFolder folder;
  const TrainingState before = StateOf(1), after = StateOf(2);
  const auto bytes = static_cast<rlim_t>(before.generator_states.numel());
  ASSERT_TRUE(WriteCheckpoint(folder.path(), before, 1).ok());
  {
    const FileSizeLimit limit(bytes / 2);
    EXPECT_EQ(WriteCheckpoint(folder.path(), after, 1).status().code(), absl::StatusCode::kResourceExhausted);
  }
  const auto newest =
      ReadNewestCheckpoint(folder.path(), "spec", [](const std::string& warning) { ADD_FAILURE() << warning; });
  ASSERT_TRUE(newest.ok()) << newest.status();
  ASSERT_TRUE(newest->has_value());
  EXPECT_EQ((*newest)->step, 1);
  EXPECT_TRUE(at::equal((*newest)->weights.at("w"), before.weights.at("w")));
  ASSERT_TRUE(WriteCheckpoint(folder.path(), after, 1).ok());
  EXPECT_EQ((*ReadNewestCheckpoint(folder.path(), "spec", [](const std::string&) {}))->step, 2);
}

}  // namespace
}  // namespace luthier
