// How good generated answers are.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "lib/dataset/task.h"

namespace luthier {

// Counts of one answer. Its fields are compared as a multiset, because entities have no order:
//   the leaves of a JSON value as (path, value), if the expected answer is JSON; an answer that is not has none
//   the leaves of all calls, for tool calling
//   the items of lines such as "person: Ann, Bo" as (name, item), otherwise
//   the words of a QA answer
struct AnswerScore {
  bool exact = false;  // equal text
  // Where a JSON object or list is expected: equal values, whatever the order of keys and the spelling of numbers. For
  // tool calling: the same calls in any order, as one value, a list, or each in a tag; ids do not count.
  std::optional<bool> json_equal;
  int64_t fields_expected = 0, fields_answered = 0, fields_right = 0;
};

// Compares without regard to white space at both ends.
AnswerScore ScoreAnswer(TaskType task, std::string_view expected, std::string_view answer);

// Sums over the rows of a split.
class ScoreTotals {
 public:
  void Add(const AnswerScore& score);
  int64_t rows() const { return rows_; }
  double exact_match() const;  // 0..1; 0 without rows
  // 0..1, over the rows where JSON is expected; nothing if there are none.
  std::optional<double> json_equality() const;
  // Micro-averaged F1 over all fields, 0..1; 1 if nothing was expected and nothing was answered, as with JSON `[]`.
  double field_f1() const;

 private:
  int64_t rows_ = 0, exact_ = 0, json_rows_ = 0, json_equal_ = 0, expected_ = 0, answered_ = 0, right_ = 0;
};

}  // namespace luthier
