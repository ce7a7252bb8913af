#include "lib/dataset/score.h"

#include <optional>
#include <string>

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
      {TaskType::kExtraction, R"({"a": 1, "b": "x"})", R"({"b":"x","a":1})", false, 2, 2, 2},
      {TaskType::kExtraction, R"({"a": 1, "b": "x"})", R"({"a": 1, "b": "y"})", false, 2, 2, 1},
      {TaskType::kExtraction, R"({"a": {"b": 1, "c": 2}})", R"({"a": {"b": 1}})", false, 2, 1, 1},
      {TaskType::kExtraction, R"({"a": 1, "b": [{"c": 20}]})", R"({"a": 1.0, "b": [{"c": 2e1}]})", false, 2, 2, 2},
      {TaskType::kExtraction, R"({"a": 1.5, "b": -0.0})", R"({"a": 15e-1, "b": 0})", false, 2, 2, 2},
      {TaskType::kExtraction, R"({"a": 1})", "the value is 1", false, 1, 0, 0},
      {TaskType::kNer, R"({"PER": ["Ann", "Bo"]})", R"({"PER": ["Bo", "Cy", "Ann"]})", false, 2, 3, 2},
      {TaskType::kNer, R"({"PER": ["Ann", "Ann"]})", R"({"PER": ["Ann"]})", false, 2, 1, 1},
      {TaskType::kNer, R"([{"text": "Ann", "type": "PER"}])", R"([{"type": "PER", "text": "Ann"}])", false, 1, 1, 1},
      {TaskType::kNer, "[]", "[]", true, 0, 0, 0},
      {TaskType::kNer, "person: Ann, Bo\nplace: Ulm", "person: Bo\nplace: Ulm, Rome", false, 3, 3, 2},
      {TaskType::kNer, "person: Ann", "place: Ann", false, 1, 1, 0},
      {TaskType::kNer, "person: Ann", R"({"person": "Ann"})", false, 1, 1, 0},
      {TaskType::kToolCalling, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>",
       R"({"name": "f", "arguments": {"x": 1}})", false, 2, 2, 2},
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

TEST(ScoreTest, JsonIsEqualWhateverItsOrderAndSpelling) {
  struct JsonCase {
    TaskType task;
    const char* expected;
    const char* answer;
    std::optional<bool> equal;
  };
  const char* call = R"({"name": "f", "arguments": {"x": 1, "y": "a"}})";
  const char* two = R"(<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
<tool_call>{"name": "g", "arguments": {}}</tool_call>)";
  const JsonCase cases[] = {
      {TaskType::kExtraction, R"({"a": 1, "b": "x"})", R"({"b":"x","a":1.0})", true},
      {TaskType::kExtraction, R"({"a": 100})", R"({"a": 1e2})", true},
      {TaskType::kExtraction, R"({"a": 1})", R"({"a": "1"})", false},
      {TaskType::kExtraction, R"({"a": [1, 2]})", R"({"a": [2, 1]})", false},
      {TaskType::kExtraction, R"({"a": 1})", R"({"a": 1)", false},
      {TaskType::kExtraction, "nothing", "nothing", std::nullopt},
      {TaskType::kClassification, R"({"a": 1})", R"({"a": 1})", std::nullopt},
      {TaskType::kToolCalling, call, R"(<tool_call>{"arguments": {"y": "a", "x": 1.0}, "name": "f"}</tool_call>)",
       true},
      {TaskType::kToolCalling, call, R"([{"name": "f", "arguments": {"x": 1, "y": "a"}}])", true},
      {TaskType::kToolCalling, call,
       R"([{"id": "7", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1, \"y\": \"a\"}"}}])",
       true},
      {TaskType::kToolCalling, call, R"({"name": "f", "arguments": {"x": 2, "y": "a"}})", false},
      {TaskType::kToolCalling, call, "I cannot do that.", false},
      {TaskType::kToolCalling, two, R"([{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"x": 1}}])", true},
      {TaskType::kToolCalling, two, R"({"name": "f", "arguments": {"x": 1}})", false},
      {TaskType::kToolCalling, two, R"([{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}])",
       false},
      {TaskType::kToolCalling, "It is 7 degrees.", "It is 7 degrees.", std::nullopt},
  };
  for (const JsonCase& c : cases) EXPECT_EQ(ScoreAnswer(c.task, c.expected, c.answer).json_equal, c.equal) << c.answer;
}

// Each call's name and arguments are fields of their own, in whatever form the calls come.
TEST(ScoreTest, AMissingCallCostsItsFieldsOnly) {
  const AnswerScore score = ScoreAnswer(TaskType::kToolCalling,
                                        R"(<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
<tool_call>{"name": "g", "arguments": {"y": 2}}</tool_call>)",
                                        R"({"name": "g", "arguments": {"y": 2}})");
  EXPECT_EQ(score.fields_expected, 4);
  EXPECT_EQ(score.fields_answered, 2);
  EXPECT_EQ(score.fields_right, 2);
}

TEST(ScoreTest, JsonEqualityCountsTheRowsWhereJsonIsExpected) {
  ScoreTotals totals;
  totals.Add(ScoreAnswer(TaskType::kExtraction, "none", "none"));
  EXPECT_EQ(totals.json_equality(), std::nullopt);
  totals.Add(ScoreAnswer(TaskType::kExtraction, R"({"a": 1})", R"({"a": 1})"));
  totals.Add(ScoreAnswer(TaskType::kExtraction, R"({"a": 1})", R"({"a": 2})"));
  EXPECT_EQ(totals.json_equality(), 0.5);
}

TEST(ScoreTest, AnAnswerOfBracketsOnlyIsWrongAndNoMore) {
  const std::string brackets = std::string(300'000, '[') + std::string(300'000, ']');
  EXPECT_FALSE(ScoreAnswer(TaskType::kExtraction, R"({"a": 1})", brackets).exact);
  EXPECT_TRUE(ScoreAnswer(TaskType::kExtraction, brackets, brackets).exact);
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
  EXPECT_EQ(ParseTaskType("classification").value(), TaskType::kClassification);
  EXPECT_EQ(ParseTaskType("ner").value(), TaskType::kNer);
  EXPECT_EQ(ParseTaskType("extraction").value(), TaskType::kExtraction);
  EXPECT_EQ(ParseTaskType("qa").value(), TaskType::kQa);
  EXPECT_EQ(ParseTaskType("tool_calling").value(), TaskType::kToolCalling);
  EXPECT_EQ(ParseTaskType("chat").value(), TaskType::kChat);
  EXPECT_EQ(ParseTaskType("text").value(), TaskType::kText);
  EXPECT_EQ(ParseTaskType("nerd").status(),
            absl::InvalidArgumentError("task: 'nerd' is not known; choose one of classification, ner, extraction, qa, "
                                       "tool_calling, chat, text"));
}

}  // namespace
}  // namespace luthier
