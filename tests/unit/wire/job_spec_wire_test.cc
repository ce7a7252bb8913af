#include "lib/wire/job_spec_wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace luthier {
namespace {

using ::testing::HasSubstr;

TEST(JobSpecWireTest, AJobFileSurvivesTheWayThroughTheApi) {
  const auto file = nlohmann::json::parse(R"({
    "base_model": "luthier-tiny", "dataset": "intents", "task": "tool_calling", "tuning": "lora",
    "lora": {"rank": 8, "alpha": 16.5, "target_modules": ["q_proj"], "dropout": 0, "dora": true, "plus_ratio": 4,
             "exclude_modules": ["layers.0.self_attn.q_proj"], "layers": [0, 2], "rank_pattern": {"q_proj": 4},
             "alpha_pattern": {"q_proj": 1.5}, "modules_to_save": ["lm_head"], "target_parameters": ["mlp.gate.weight"]},
    "training": {"epochs": 1.5, "learning_rate": 0.0002, "schedule": "cosine", "precision": "bf16", "seed": 9007199254740993},
    "evaluation": {"every": 5}, "checkpoint": {"keep": 2}, "resources": {"nodes": 2, "devices": 1}, "labels": {"team": "support"}})");
  const absl::StatusOr<JobSpec> spec = ParseJobSpec(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  const absl::StatusOr<v1::FineTuningJob> message = JobToProto(*spec);
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->spec().task(), v1::TASK_TOOL_CALLING);
  EXPECT_EQ(message->spec().training().precision(), v1::PRECISION_BF16);
  const absl::StatusOr<JobSpec> back = JobFromProto(*message);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ToJson(*back), ToJson(*spec));
}

TEST(JobSpecWireTest, FullTrainingAndSeparatePartsSurviveToo) {
  const auto file = nlohmann::json::parse(
      R"({"base_model": "b", "dataset": {"train": "a/train", "test": "c"}, "tuning": "full", "training": {"freeze": ["model.norm"]}})");
  const absl::StatusOr<v1::FineTuningJob> message = JobToProto(*ParseJobSpec(file));
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_TRUE(message->spec().has_full());
  const absl::StatusOr<JobSpec> back = JobFromProto(*message);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->recipe.tuning, "full");
  EXPECT_EQ(back->dataset.test, "c");
  EXPECT_EQ(back->recipe.training.freeze, std::vector<std::string>{"model.norm"});
}

TEST(JobSpecWireTest, PatternsSurviveToo) {
  const auto file = nlohmann::json::parse(
      R"({"base_model": "b", "dataset": "d", "lora": {"target_pattern": ".*_proj", "exclude_pattern": ".*k_proj"}})");
  const absl::StatusOr<v1::FineTuningJob> message = JobToProto(*ParseJobSpec(file));
  ASSERT_TRUE(message.ok()) << message.status();
  const absl::StatusOr<JobSpec> back = JobFromProto(*message);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->recipe.lora.target_pattern, ".*_proj");
  EXPECT_EQ(back->recipe.lora.exclude_pattern, ".*k_proj");
}

TEST(JobSpecWireTest, AMixtureAndATemplateSurviveToo) {
  const auto file = nlohmann::json::parse(
      R"({"base_model": "b", "dataset": {"mixture": [{"dataset": "a/train", "weight": 2.5}, {"dataset": "c"}]},
          "chat_template": "{{ messages }}", "template_date": "2026-11-25"})");
  const absl::StatusOr<v1::FineTuningJob> message = JobToProto(*ParseJobSpec(file));
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->spec().dataset().mixture(1).dataset(), "c");
  const absl::StatusOr<JobSpec> back = JobFromProto(*message);
  ASSERT_TRUE(back.ok()) << back.status();
  ASSERT_EQ(back->dataset.mixture.size(), 2u);
  EXPECT_EQ(back->dataset.mixture[0].weight, 2.5);
  EXPECT_EQ(back->dataset.mixture[1].weight, 1);
  EXPECT_EQ(back->recipe.chat_template, "{{ messages }}");
  EXPECT_EQ(back->recipe.template_date, "2026-11-25");
}

// Numbers of enums come from clients that are newer than the server, or wrong.
TEST(JobSpecWireTest, RefusesANumberThatNoEnumHasByItsField) {
  v1::FineTuningJob job;
  job.mutable_spec()->set_base_model("b");
  job.mutable_spec()->mutable_dataset()->set_dataset("d");
  job.mutable_spec()->set_task(static_cast<v1::Task>(99));
  job.mutable_spec()->mutable_training()->set_precision(static_cast<v1::Precision>(77));
  const absl::Status status = JobFromProto(job).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("task: 99"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("training.precision: 77"));
}

TEST(JobSpecWireTest, RefusesPartsBesideAWholeDatasetInsteadOfLeavingThemUnheard) {
  v1::FineTuningJob job;
  job.mutable_spec()->set_base_model("b");
  job.mutable_spec()->mutable_dataset()->set_dataset("d");
  job.mutable_spec()->mutable_dataset()->set_validation("e/validation");
  const absl::Status status = JobFromProto(job).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("dataset.dataset: excludes"));
}

TEST(JobSpecWireTest, ListsEveryViolationOfARequest) {
  v1::FineTuningJob job;
  job.mutable_spec()->set_base_model("b");
  job.mutable_spec()->mutable_dataset()->set_dataset("d");
  job.mutable_spec()->mutable_lora()->set_rank(0);
  job.mutable_spec()->mutable_training()->set_learning_rate(-1);
  const std::string message(JobFromProto(job).status().message());
  EXPECT_THAT(message, HasSubstr("lora.rank"));
  EXPECT_THAT(message, HasSubstr("training.learning_rate"));
}

}  // namespace
}  // namespace luthier
