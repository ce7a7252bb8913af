#include "worker/trainer/train/selection.h"

#include <gtest/gtest.h>

#include "worker/trainer/train/row_losses.h"

namespace luthier {
namespace {

EvaluationResult Result(double loss, std::optional<double> exact_match = std::nullopt,
                        std::optional<double> field_f1 = std::nullopt) {
  EvaluationResult result;
  result.loss = loss;
  result.exact_match = exact_match;
  result.field_f1 = field_f1;
  return result;
}

TEST(SelectionTest, ChoosesByTheMetricAndByTheLossWhereThatIsEqual) {
  Selection selection;
  EXPECT_TRUE(selection.Add(10, Result(2.0, 0.5), "exact_match"));
  EXPECT_FALSE(selection.Add(20, Result(1.0, 0.4), "exact_match"));
  EXPECT_TRUE(selection.Add(30, Result(1.5, 0.5), "exact_match"));
  EXPECT_EQ(selection.best_step(), 30);
  EXPECT_TRUE(selection.Add(40, Result(9.0, 0.6), "exact_match"));
  EXPECT_EQ(selection.best_step(), 40);
}

TEST(SelectionTest, AnEqualResultIsNoGain) {
  Selection selection;
  selection.Add(1, Result(2.0), "loss");
  selection.Add(2, Result(2.0), "loss");
  selection.Add(3, Result(2.5), "loss");
  EXPECT_EQ(selection.best_step(), 1);
  EXPECT_EQ(selection.without_gain(), 2);
  selection.Add(4, Result(1.9), "loss");
  EXPECT_EQ(selection.without_gain(), 0);
}

TEST(SelectionTest, FieldsCountWhereTheMetricSaysSo) {
  Selection selection;
  selection.Add(1, Result(2.0, 0.9, 0.5), "field_f1");
  EXPECT_TRUE(selection.Add(2, Result(2.0, 0.1, 0.6), "field_f1"));
}

TEST(SelectionTest, JsonEqualityIsAFigureOfItsOwn) {
  Selection selection;
  EvaluationResult first = Result(2.0, 0.9), second = Result(2.0, 0.1);
  first.json_equality = 0.5;
  second.json_equality = 0.6;
  selection.Add(1, first, "json_equality");
  EXPECT_TRUE(selection.Add(2, second, "json_equality"));
}

// A loss that stands in for a score would choose anything.
TEST(SelectionTest, AMetricThatTheRowsLackIsReplacedBeforeTheRun) {
  EvaluationSplit split;
  EXPECT_EQ(UsableMetric("exact_match", TaskType::kClassification, split), "loss");
  split.prompts = {{{1}, "", "even", 1}};
  EXPECT_EQ(UsableMetric("exact_match", TaskType::kClassification, split), "exact_match");
  EXPECT_EQ(UsableMetric("json_equality", TaskType::kExtraction, split), "exact_match");
  split.prompts.push_back({{1}, "", R"({"a": 1})", 2});
  EXPECT_EQ(UsableMetric("json_equality", TaskType::kExtraction, split), "json_equality");
  Selection selection;
  EXPECT_ANY_THROW(selection.Add(1, Result(2.0), "exact_match"));
}

TEST(SelectionTest, SurvivesACheckpoint) {
  Selection selection;
  selection.Add(3, Result(2.0, 0.5), "exact_match");
  selection.Add(5, Result(2.5, 0.5), "exact_match");
  Selection again = Selection::FromJson(nlohmann::json::parse(selection.ToJson().dump()));
  EXPECT_EQ(again.best_step(), 3);
  EXPECT_EQ(again.without_gain(), 1);
  EXPECT_FALSE(again.Add(7, Result(2.1, 0.5), "exact_match"));
}

TEST(RowLossesTest, TheWorstRowsComeWithFileLineFirstAndLastLoss) {
  std::vector<Example> examples(3);
  examples[0].line = 4;
  examples[1].line = 7;
  examples[2].line = 1;
  examples[2].file = 1;
  RowLosses losses(3);
  losses.Add({{0, 3.0}, {1, 1.0}});
  losses.Add({{1, 2.0}, {0, 0.5}});
  RowLosses again(3);
  again.Restore(losses.State());
  const std::vector<TrainFile> files = {{.name = "a/train.jsonl"}, {.name = "b/train.jsonl"}};
  const auto worst = again.Worst(5, examples, files);
  ASSERT_EQ(worst.size(), 2u);  // row 2 was never trained on
  EXPECT_EQ(worst[0],
            nlohmann::json({{"file", "a/train.jsonl"}, {"line", 7}, {"first_loss", 1.0}, {"last_loss", 2.0}}));
  EXPECT_EQ(worst[1]["line"], 4);
  EXPECT_EQ(worst[1]["first_loss"], 3.0);
  EXPECT_EQ(again.Worst(1, examples, files).size(), 1u);
}

}  // namespace
}  // namespace luthier
