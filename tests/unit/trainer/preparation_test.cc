#include "worker/trainer/train/preparation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "worker/trainer/train/run.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class PreparationTest : public ::testing::Test {
 protected:
  PreparationTest() {
    WriteTinyBase(folder_.path() + "/base");
    spec_.base_model = folder_.path() + "/base";
    spec_.init = "random";
    spec_.train = {File("train.jsonl", Rows(12))};
    spec_.recipe.tuning = "full";
    spec_.recipe.training.batch_tokens = 200;
  }

  static std::string Rows(int count) {
    std::string rows;
    for (int i = 0; i < count; ++i) rows += ChatLine("row " + std::to_string(i), i % 3 == 0 ? "threefold" : "odd");
    return rows;
  }
  TrainFile File(const std::string& name, const std::string& rows, double weight = 1) {
    WriteText(folder_.path() + "/" + name, rows);
    return {folder_.path() + "/" + name, weight, name};
  }
  std::unique_ptr<luthier::Run> MustPlan() {
    absl::StatusOr<std::unique_ptr<luthier::Run>> run = PlanRun(spec_, "");
    EXPECT_TRUE(run.ok()) << run.status();
    return *std::move(run);
  }

  TempFolder folder_;
  TrainerSpec spec_;
};

// The template cuts the reasoning of earlier turns, so their tokens cannot be told apart; a task that trains every
// token need not.
TEST_F(PreparationTest, ATextTaskTakesConversationsWhoseTurnsCannotBeToldApart) {
  WriteText(folder_.path() + "/base/chat_template.jinja",
            "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content if loop.last else m.content.split('|')[-1] }}"
            "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}");
  spec_.train = {File("turns.jsonl",
                      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x|b"}, )"
                      R"({"role": "user", "content": "c"}, {"role": "assistant", "content": "y|d"}]})")};
  EXPECT_THAT(std::string(PlanRun(spec_, "").status().message()), HasSubstr("cannot be told apart"));
  spec_.recipe.task = "text";
  const auto run = MustPlan();
  EXPECT_EQ(run->training().loss_on, "all");
  EXPECT_EQ(run->examples[0].TrainedTokens(), run->lengths[0] - 1);
}

// Another attempt, or a disk with more room, would end the same.
TEST_F(PreparationTest, AJobThatIsTooLargeForTheDeviceFailsForMemory) {
  WriteTinyBase(folder_.path() + "/base",
                {{"hidden_size", 65536}, {"intermediate_size", 262144}, {"num_hidden_layers", 128}});
  const absl::Status refused = PlanRun(spec_, "").status();
  EXPECT_THAT(std::string(refused.message()), HasSubstr("and the device has"));
  EXPECT_EQ(FailureCause(refused), "OOM");
}

TEST_F(PreparationTest, WeightsOfFilesDecideTheStepsAndWhatARunMayGoOnFrom) {
  spec_.train = {File("a.jsonl", Rows(12)), File("b.jsonl", Rows(6))};
  const auto plain = Prepare(spec_, "").value();
  spec_.train[1].weight = 3;
  const auto weighted = Prepare(spec_, "").value();
  EXPECT_GT(weighted->steps_per_epoch, plain->steps_per_epoch);
  EXPECT_NE(weighted->spec_hash, plain->spec_hash);
  int rows_of_b = 0;
  for (const Step& step : PlanEpoch(weighted->lengths, weighted->batches, 0)) {
    for (const MicroBatch& rows : step) {
      for (const int32_t row : rows) rows_of_b += weighted->examples[static_cast<size_t>(row)].file == 1;
    }
  }
  EXPECT_EQ(rows_of_b, 18);
  spec_.train[1].weight = 1;
  EXPECT_EQ(Prepare(spec_, "").value()->spec_hash, plain->spec_hash);
}

TEST_F(PreparationTest, AJobsOwnTemplateAndItsDateAreWhatIsTrainedOn) {
  const std::string plain = Prepare(spec_, "").value()->spec_hash;
  const std::string source =
      "{{ strftime_now('%F') }}{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}"
      "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% "
      "endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";
  const auto start_of = [](const luthier::Run& run) {
    return run.base.tokenizer.Decode(run.examples[0].ids, false)->substr(0, 10);
  };
  spec_.recipe.chat_template = source;
  const auto undated = Prepare(spec_, "").value();
  EXPECT_EQ(start_of(*undated), "2024-07-26");
  EXPECT_NE(undated->spec_hash, plain);
  spec_.recipe.template_date = "2026-11-25";
  const auto dated = Prepare(spec_, "").value();
  EXPECT_EQ(start_of(*dated), "2026-11-25");
  EXPECT_NE(dated->spec_hash, undated->spec_hash);
  WriteText(folder_.path() + "/own.jinja", source);
  spec_.recipe.chat_template = folder_.path() + "/own.jinja";
  EXPECT_EQ(MustPlan()->examples[0].ids, dated->examples[0].ids);
}

TEST_F(PreparationTest, CountsTheRowsThatAreCutAndLeftOut) {
  spec_.train = {
      File("train.jsonl", Rows(3) + ChatLine(std::string(100, 'q'), "yes") + ChatLine("q", std::string(100, 'a')))};
  spec_.recipe.training.max_length = 60;
  spec_.recipe.training.too_long = "keep_answer";
  const nlohmann::json kept = ToJson(MustPlan()->files);
  EXPECT_EQ(kept[0]["part"], "train");
  EXPECT_EQ(kept[0]["rows"], 5);
  EXPECT_EQ(kept[0]["truncated"], 2);
  EXPECT_EQ(kept[0]["dropped"], 0);
  spec_.recipe.training.too_long = "truncate";
  const nlohmann::json cut = ToJson(MustPlan()->files);
  EXPECT_EQ(cut[0]["truncated"], 1);
  EXPECT_EQ(cut[0]["dropped"], 1);  // its answer lay behind the cut
}

// A score over the rows that happen to be left says nothing of those that are not.
TEST_F(PreparationTest, RowsWhoseAnswersCannotBeScoredAreCountedAndNamed) {
  WriteText(
      folder_.path() + "/base/chat_template.jinja",
      "{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
      "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{% if messages[-1].content == 'odd' %}{{ raise_exception('not this one') }}"
      "{% endif %}<|im_start|>assistant {% endif %}");
  spec_.validation = File("validation.jsonl", ChatLine("even", "a") + ChatLine("odd", "b") + ChatLine("even", "c") +
                                                  R"({"text": "no answer"})")
                         .path;
  const auto run = MustPlan();
  ASSERT_EQ(run->splits.size(), 1u);
  EXPECT_EQ(run->splits[0].prompts.size(), 2u);
  EXPECT_EQ(run->splits[0].unscored, 1);
  EXPECT_THAT(run->plan.warnings, Contains(HasSubstr("validation: 1 rows of 3 are not scored by their answers; the "
                                                     "first: validation.jsonl:2: not this one")));
}

// A run that began on another machine, whose memory and device chose other values.
TEST_F(PreparationTest, WhatAMachineChoseStaysWhenARunGoesOnOnAnother) {
  const std::string out = folder_.path() + "/run";
  const auto began_with = [&](int64_t micro_batch_tokens) {
    TrainingState state;
    state.step = 1;
    state.generator_states = at::zeros({8}, at::kByte);
    state.machine = {micro_batch_tokens, "bf16"};
    ASSERT_TRUE(WriteCheckpoint(out, state, /*keep=*/1).ok());
  };
  const auto reason_of = [](const luthier::Run& run, const std::string& field) {
    for (const ResolvedValue& value : run.plan.values) {
      if (value.field == field) return value.reason;
    }
    return std::string();
  };
  const auto fresh = Prepare(spec_, "").value();
  ASSERT_NE(*fresh->training().micro_batch_tokens, 77);

  began_with(77);
  const auto moved = Prepare(spec_, out).value();
  EXPECT_EQ(moved->training().micro_batch_tokens, 77);
  EXPECT_EQ(moved->training().precision, "bf16");
  EXPECT_THAT(reason_of(*moved, "training.micro_batch_tokens"), HasSubstr("as the run began"));
  EXPECT_THAT(reason_of(*moved, "training.precision"), HasSubstr("as the run began"));
  EXPECT_NE(moved->spec_hash, fresh->spec_hash);

  // What the user gives is no choice of a machine: the same goes on, another is another run.
  spec_.recipe.training.micro_batch_tokens = 77;
  EXPECT_EQ(Prepare(spec_, out).value()->spec_hash, moved->spec_hash);
  spec_.recipe.training.micro_batch_tokens = 78;
  EXPECT_NE(Prepare(spec_, out).value()->spec_hash, moved->spec_hash);
  spec_.recipe.training.micro_batch_tokens.reset();

  constexpr int64_t kTooLarge = 1'000'000'000'000;
  began_with(kTooLarge);
  const auto smaller = Prepare(spec_, out).value();
  EXPECT_LT(*smaller->training().micro_batch_tokens, kTooLarge);
  EXPECT_EQ(smaller->machine.micro_batch_tokens, kTooLarge) << "its checkpoints are still those of the first machine";
  EXPECT_THAT(smaller->plan.warnings, Contains(HasSubstr("do not fit into the memory of this one")));
}

}  // namespace
}  // namespace luthier
