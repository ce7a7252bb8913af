// How good generated answers are.
#pragma once

#include <cstdint>
#include <string_view>

#include "lib/dataset/task.h"

namespace luthier {

// Counts of one answer. Fields are the leaves of a JSON value: (path, value) pairs; the elements of
// a list are compared as a multiset, because entities have no order. An answer that is not JSON has
// no fields.
struct AnswerScore {
  bool exact = false;  // equal text, or equal JSON for tasks with fields
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
  // Micro-averaged F1 over all fields, 0..1; 1 if nothing was expected and nothing was answered.
  double field_f1() const;

 private:
  int64_t rows_ = 0, exact_ = 0, expected_ = 0, answered_ = 0, right_ = 0;
};

}  // namespace luthier
