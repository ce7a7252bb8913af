// A job's rows, checked with a tokenizer and a chat template that users bring. A template can ask for more memory or
// stack than there is, and that ends the process which renders it. So luthierd has a process of its own check rows,
// `luthierd check-rows`, with limits, and does not even parse a template itself.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/dataset/encode.h"
#include "lib/plan/resolve.h"

namespace luthier {

struct RowCheck {
  struct File {
    std::string part;  // train, validation, test
    std::string name;  // what messages call it
    std::string path;
    double weight = 1;
  };
  std::string base_model;     // folder
  std::string chat_template;  // text; empty: that of the base model
  std::string template_date;  // YYYY-MM-DD, or empty
  EncodeOptions encoding;
  int64_t scored_rows = 0;  // of the validation and the test part each, whose answers an evaluation generates
  std::vector<File> files;
};

struct RowCheckLimits {
  int64_t memory_bytes = 0;       // of addresses
  absl::Duration processor_time;  // whole seconds
  absl::Duration time;
};

// For files of so many bytes in all: more than any dataset needs that is meant to be trained on.
RowCheckLimits LimitsOf(int64_t bytes);

// Encodes every row as training will, and what an evaluation by generation asks of those it scores. Errors:
// INVALID_ARGUMENT with every violation.
absl::StatusOr<DatasetFacts> CheckRows(const RowCheck& check);

// The same in a process of its own. `program`: luthierd. Errors besides: INVALID_ARGUMENT `chat_template: …` if the
// check needs more than the limits; UNAVAILABLE if there is no process for it, or `stop` was asked for.
absl::StatusOr<DatasetFacts> CheckRowsInChild(const std::string& program, const RowCheck& check,
                                              const RowCheckLimits& limits, const std::stop_token& stop = {});

// What `luthierd check-rows PARENT` does; the exit code. `parent`: process id of who started it, with whom it dies.
int AnswerRowCheck(const std::string& parent);

}  // namespace luthier
