#include "worker/trainer/train/step.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <optional>
#include <thread>

#include <cmath>

#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "worker/trainer/ops/place.h"

namespace luthier {
namespace {

class StepTest : public ::testing::Test {
 protected:
  StepTest() {
    WriteTinyBase(folder_.path() + "/base");
    std::string rows;
    for (int i = 0; i < 12; ++i)
      rows += ChatLine("row " + std::to_string(i), i % 3 == 0 ? "a number that three divides" : "odd");
    WriteText(folder_.path() + "/train.jsonl", rows);
    spec_.base_model = folder_.path() + "/base";
    spec_.init = "random";
    spec_.train = {{.path = folder_.path() + "/train.jsonl", .name = "train.jsonl"}};
    spec_.recipe.tuning = "full";
    spec_.recipe.training.max_steps = 3;
    spec_.recipe.training.learning_rate = 1e-3;
    spec_.recipe.training.batch_tokens = 300;
    spec_.recipe.training.micro_batch_tokens = 100;
  }

  std::unique_ptr<luthier::Run> MustPrepare() {
    absl::StatusOr<std::unique_ptr<luthier::Run>> run = Prepare(spec_, "");
    EXPECT_TRUE(run.ok()) << run.status();
    return *std::move(run);
  }

  std::vector<StepResult> Take(luthier::Run& run, int steps) {
    Stepper stepper(run);
    std::vector<StepResult> results;
    const std::vector<Step> plan = PlanEpoch(run.lengths, run.batches, 0);
    for (int i = 0; i < steps; ++i) {
      const absl::StatusOr<StepResult> result = stepper.Take(plan[static_cast<size_t>(i) % plan.size()], 1e-3);
      EXPECT_TRUE(result.ok()) << result.status();
      results.push_back(*result);
    }
    return results;
  }

  TempFolder folder_;
  TrainerSpec spec_;
};

TEST_F(StepTest, MovingWeightsInTheBackwardPassEndsWithTheSameWeights) {
  spec_.recipe.training.clip_norm = 1e6;
  const auto whole = MustPrepare();
  const std::vector<StepResult> expected = Take(*whole, 3);
  spec_.recipe.training.clip_norm.reset();
  spec_.recipe.training.optimizer_in_backward = true;
  const auto in_backward = MustPrepare();
  const std::vector<StepResult> got = Take(*in_backward, 3);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i].loss, expected[i].loss, 1e-6);
    EXPECT_NEAR(got[i].grad_norm, expected[i].grad_norm, 1e-5);
  }
  for (const auto& [name, tensor] : whole->trained) {
    EXPECT_LT((tensor - in_backward->trained.at(name)).abs().max().item<double>(), 1e-6) << name;
    EXPECT_FALSE(in_backward->trained.at(name).grad().defined()) << name;
  }
}

// The mean over the tokens of the whole step, not a mean of the micro-batches' means (bug 1).
TEST_F(StepTest, LossAndGradientAreTheSameHoweverAStepIsSplit) {
  const auto split = MustPrepare();
  ASSERT_GT(PlanEpoch(split->lengths, split->batches, 0)[0].size(), 1u);
  const StepResult in_parts = Take(*split, 1)[0];
  spec_.recipe.training.micro_batch_tokens = 1000;
  const auto whole = MustPrepare();
  ASSERT_EQ(PlanEpoch(whole->lengths, whole->batches, 0)[0].size(), 1u);
  const StepResult at_once = Take(*whole, 1)[0];
  EXPECT_EQ(in_parts.trained_tokens, at_once.trained_tokens);
  EXPECT_NEAR(in_parts.loss, at_once.loss, 1e-6);
  EXPECT_NEAR(in_parts.grad_norm, at_once.grad_norm, 1e-5 * at_once.grad_norm);
}

// Bug 2: steps are cut evenly (PlanEpoch), and one with few tokens is the mean over those.
TEST_F(StepTest, AShortStepIsTheMeanOverItsOwnTokens) {
  const auto run = MustPrepare(), fresh = MustPrepare();
  const MicroBatch row = {1};
  Stepper stepper(*run);
  const absl::StatusOr<StepResult> result = stepper.Take({row}, 1e-3);
  ASSERT_TRUE(result.ok()) << result.status();
  const PackedBatch batch = Pack(*fresh, row);
  const Tensor mean = SumLoss(*fresh->model, batch) / static_cast<double>(batch.trained_tokens());
  mean.backward();
  EXPECT_NEAR(result->loss, mean.item<double>(), 1e-6);
  EXPECT_NEAR(result->grad_norm, GlobalGradientNorm(fresh->trained), 1e-5 * result->grad_norm);
}

// Bug 22: around 1, bf16 is a grid of 1/128, on which a step of 1e-5 is none. The first step of AdamW moves every
// weight by the learning rate.
TEST_F(StepTest, ABf16RunKeepsStepsThatBf16WouldRoundAway) {
  spec_.recipe.training.precision = "bf16";
  const auto run = MustPrepare();
  Stepper stepper(*run);
  const absl::StatusOr<StepResult> result = stepper.Take(PlanEpoch(run->lengths, run->batches, 0)[0], 1e-5);
  ASSERT_TRUE(result.ok()) << result.status();
  const Tensor moved = (run->trained.at("model.norm.weight").detach() - 1).abs();
  EXPECT_NEAR(moved.min().item<double>(), 1e-5, 1e-6);
  EXPECT_NEAR(moved.max().item<double>(), 1e-5, 1e-6);
}

TEST_F(StepTest, LossesOfRowsAddUpToThatOfTheStep) {
  const auto run = MustPrepare();
  const StepResult result = Take(*run, 1)[0];
  double sum = 0;
  for (const auto& [row, loss] : result.row_losses) {
    sum += loss * static_cast<double>(run->examples[static_cast<size_t>(row)].TrainedTokens());
    const PackedBatch alone = Pack(*MustPrepare(), {row});  // weights have moved: the losses were those of fresh ones
    EXPECT_NEAR(
        loss, SumLoss(*MustPrepare()->model, alone).item<double>() / static_cast<double>(alone.trained_tokens()), 1e-4)
        << row;
  }
  EXPECT_NEAR(sum / static_cast<double>(result.trained_tokens), result.loss, 1e-6);
}

// Ranks whose parts hold very different numbers of trained tokens, one of which is hard to predict and one is not, so
// that a mean of the ranks' means would be another number (bug 3). A third rank has nothing to do.
TEST_F(StepTest, RanksTakeTheStepThatOneTakes) {
  std::string rows;
  for (int i = 0; i < 3; ++i) rows += ChatLine("say a", "a");
  rows += ChatLine("say much", std::string(150, 'z'));
  WriteText(folder_.path() + "/train.jsonl", rows);
  const Step step = {{0, 1, 2}, {3}};

  const auto one = MustPrepare();
  Stepper alone(*one);
  const double mean_of_means = (SumLoss(*one->model, Pack(*one, step[0])).item<double>() / 6 +
                                SumLoss(*one->model, Pack(*one, step[1])).item<double>() /
                                    static_cast<double>(one->examples[3].TrainedTokens())) /
                               2;
  std::vector<StepResult> expected;
  for (int i = 0; i < 3; ++i) expected.push_back(*alone.Take(step, 1e-3));
  ASSERT_EQ(expected[0].trained_tokens, 6 + one->examples[3].TrainedTokens());
  ASSERT_GT(std::abs(mean_of_means - expected[0].loss), 1e-3) << "the rows cannot tell the two apart";

  constexpr int kRanks = 3;
  const int rendezvous = memfd_create("rendezvous", 0);
  std::vector<std::unique_ptr<luthier::Run>> runs;
  std::vector<std::vector<StepResult>> results(kRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    runs.push_back(MustPrepare());
    threads.emplace_back([&results, &step, &run = *runs.back(), rank, rendezvous] {
      run.ranks = Ranks({rank, kRanks, rendezvous});
      Stepper stepper(run);
      for (int i = 0; i < 3; ++i) results[static_cast<size_t>(rank)].push_back(*stepper.Take(step, 1e-3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  close(rendezvous);
  for (const std::vector<StepResult>& of_rank : results) {
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(of_rank[i].loss, expected[i].loss, 1e-5);
      EXPECT_NEAR(of_rank[i].grad_norm, expected[i].grad_norm, 1e-4 * expected[i].grad_norm);
      EXPECT_EQ(of_rank[i].tokens, expected[i].tokens);
      EXPECT_EQ(of_rank[i].trained_tokens, expected[i].trained_tokens);
      for (size_t row = 0; row < expected[i].row_losses.size(); ++row) {
        EXPECT_EQ(of_rank[i].row_losses[row].first, expected[i].row_losses[row].first);
        EXPECT_NEAR(of_rank[i].row_losses[row].second, expected[i].row_losses[row].second, 1e-4);
      }
    }
  }
  for (const auto& [name, tensor] : one->trained) {
    EXPECT_LT((tensor - runs[0]->trained.at(name)).norm().item<double>(), 1e-3 * tensor.norm().item<double>()) << name;
    for (const auto& run : runs) EXPECT_TRUE(at::equal(run->trained.at(name), runs[0]->trained.at(name))) << name;
  }
}

// On a GPU a step ends in other operations, which wait for nothing.
TEST_F(StepTest, WithoutKernelsTheStepsAreTheSame) {
  spec_.recipe.training.weight_decay = 0.1;
  const auto whole = MustPrepare();
  const std::vector<StepResult> expected = Take(*whole, 3);
  const auto composed = MustPrepare();
  const ops::WithoutKernels without_kernels;
  const std::vector<StepResult> got = Take(*composed, 3);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i].loss, expected[i].loss, 1e-5);
    EXPECT_NEAR(got[i].grad_norm, expected[i].grad_norm, 1e-4 * expected[i].grad_norm);
    ASSERT_EQ(got[i].row_losses.size(), expected[i].row_losses.size());
  }
  for (const auto& [name, tensor] : whole->trained) {
    EXPECT_LT((tensor - composed->trained.at(name)).norm().item<double>(), 1e-3 * tensor.norm().item<double>()) << name;
  }
}

TEST_F(StepTest, LossesThatAreNotFiniteLeaveTheWeightsAsTheyAre) {
  for (const char* how : {"kernels", "in backward", "composed"}) {
    spec_.recipe.training.optimizer_in_backward = std::string(how) == "in backward";
    std::optional<ops::WithoutKernels> without_kernels;
    if (std::string(how) == "composed") without_kernels.emplace();
    const auto run = MustPrepare();
    {
      at::NoGradGuard no_grad;
      run->trained.at("model.norm.weight").fill_(NAN);
    }
    const Tensor before = run->trained.at("model.layers.0.mlp.up_proj.weight").clone();
    Stepper stepper(*run);
    const auto result = stepper.Take(PlanEpoch(run->lengths, run->batches, 0)[0], 1e-3);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_TRUE(at::equal(run->trained.at("model.layers.0.mlp.up_proj.weight"), before));
  }
}

// The loss alone does not tell: logits near the end of fp32 have a finite one, and a gradient that overflows.
TEST_F(StepTest, GradientsThatAreNotFiniteLeaveTheWeightsAsTheyAre) {
  const auto run = MustPrepare();
  {
    at::NoGradGuard no_grad;
    run->trained.at("model.norm.weight").fill_(3e36);
  }
  const Tensor before = run->trained.at("model.layers.0.mlp.up_proj.weight").clone();
  const Step step = PlanEpoch(run->lengths, run->batches, 0)[0];
  ASSERT_TRUE(std::isfinite(SumLoss(*run->model, Pack(*run, step[0])).item<double>())) << "this proves nothing";
  Stepper stepper(*run);
  const auto result = stepper.Take(step, 1e-3);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kOutOfRange) << result.status();
  EXPECT_TRUE(at::equal(run->trained.at("model.layers.0.mlp.up_proj.weight"), before));
}

}  // namespace
}  // namespace luthier
