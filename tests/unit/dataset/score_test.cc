#include "lib/dataset/score.h"

#include "gtest/gtest.h"

namespace luthier {
namespace {

struct Case {
  TaskType task;
  const char* expected;
  const char* answer;
  bool exact;
  int64_t fields_expected, fields_answered, fields_right;
};

TEST(ScoreTest, CountsExactAnswersAndFields) {
  const Case cases[] = {
      {TaskType::kClassification, "refund", " refund\n", true, 0, 0, 0},
      {TaskType::kClassification, "refund", "Refund", false, 0, 0, 0},
      {TaskType::kQa, "in 1999", "in 1998", false, 2, 2, 1},
      {TaskType::kQa, "1999", " 1999", true, 1, 1, 1},
      {TaskType::kExtraction, R"({"a": 1, "b": "x"})", R"({"b":"x","a":1})", true, 2, 2, 2},
      {TaskType::kExtraction, R"({"a": 1, "b": "x"})", R"({"a": 1, "b": "y"})", false, 2, 2, 1},
      {TaskType::kExtraction, R"({"a": {"b": 1, "c": 2}})", R"({"a": {"b": 1}})", false, 2, 1, 1},
      {TaskType::kExtraction, R"({"a": 1})", "the value is 1", false, 1, 0, 0},
      {TaskType::kNer, R"({"PER": ["Ann", "Bo"]})", R"({"PER": ["Bo", "Cy", "Ann"]})", false, 2, 3, 2},
      {TaskType::kNer, R"({"PER": ["Ann", "Ann"]})", R"({"PER": ["Ann"]})", false, 2, 1, 1},
      {TaskType::kNer, R"([{"text": "Ann", "type": "PER"}])", R"([{"type": "PER", "text": "Ann"}])", true, 1, 1, 1},
      {TaskType::kNer, "[]", "[]", true, 0, 0, 0},
      {TaskType::kNer, "person: Ann, Bo\nplace: Ulm", "person: Bo\nplace: Ulm, Rome", false, 3, 3, 2},
      {TaskType::kNer, "person: Ann", "place: Ann", false, 1, 1, 0},
      {TaskType::kNer, "person: Ann", R"({"person": "Ann"})", false, 1, 1, 0},
      {TaskType::kToolCalling, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>",
       R"({"name": "f", "arguments": {"x": 1}})", true, 2, 2, 2},
      {TaskType::kToolCalling, R"({"name": "f", "arguments": {"x": 1}})", R"({"name": "g", "arguments": {"x": 1}})",
       false, 2, 2, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.answer);
    const AnswerScore score = ScoreAnswer(c.task, c.expected, c.answer);
    EXPECT_EQ(score.exact, c.exact);
    EXPECT_EQ(score.fields_expected, c.fields_expected);
    EXPECT_EQ(score.fields_answered, c.fields_answered);
    EXPECT_EQ(score.fields_right, c.fields_right);
  }
}

TEST(ScoreTest, AveragesOverAllFields) {
  ScoreTotals totals;
  EXPECT_EQ(totals.exact_match(), 0.0);
  totals.Add(ScoreAnswer(TaskType::kExtraction, R"({"a": 1, "b": 2})", R"({"a": 1, "b": 2})"));
  totals.Add(ScoreAnswer(TaskType::kExtraction, R"({"a": 1, "b": 2})", R"({"a": 1})"));
  EXPECT_EQ(totals.rows(), 2);
  EXPECT_DOUBLE_EQ(totals.exact_match(), 0.5);
  EXPECT_DOUBLE_EQ(totals.field_f1(), 2.0 * 3 / (4 + 3));
}

TEST(TaskTypeTest, HasANameForEveryTaskAndRefusesOthers) {
  for (const TaskType task : {TaskType::kClassification, TaskType::kNer, TaskType::kExtraction, TaskType::kQa,
                              TaskType::kToolCalling, TaskType::kChat, TaskType::kText}) {
    EXPECT_EQ(ParseTaskType(TaskTypeName(task)).value(), task);
  }
  EXPECT_EQ(ParseTaskType("nerd").status(),
            absl::InvalidArgumentError("task: 'nerd' is not known; choose one of classification, ner, extraction, qa, "
                                       "tool_calling, chat, text"));
}

}  // namespace
}  // namespace luthier
