// A program that gets a text, answers with one and ends. Whatever it does, the caller goes on.
#pragma once

#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace luthier {

struct ChildEnd {
  std::string output;
  int exit_code = -1;  // -1: `signal` ended it
  int signal = 0;
  bool out_of_time = false;  // it was ended, since its time was over
};

// Runs `command` with `input` as its standard input and waits for its end, `time` at most; then, or when it says more
// than a megabyte, it is killed. It gets none of our files; what it writes to standard error is dropped, since users
// could fill our log with it. UNAVAILABLE if it cannot be started, or `stop` was asked for, which kills it at once.
absl::StatusOr<ChildEnd> RunChild(const std::vector<std::string>& command, const std::string& input,
                                  absl::Duration time, const std::stop_token& stop = {});

}  // namespace luthier
