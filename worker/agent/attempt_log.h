// What a trainer writes to standard error: into a file of the attempt, and in part to the server. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <fstream>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "luthier/v1/worker.pb.h"

namespace luthier {

class AttemptLog {
 public:
  struct Options {
    // Bytes of the file; a trainer that floods must not fill the disk.
    int64_t max_file_bytes = 16 << 20;
    // Lines reported at once, and then a second. A line is an event of the job for ever, so a flood is thinned out.
    double burst_lines = 500;
    double lines_per_second = 2;
  };

  AttemptLog(const std::string& path, Options options, absl::Time now);

  // A line as it came; LogLine() of it is kept.
  void Add(absl::string_view line, absl::Time now);
  // The lines to report since the last call, if there are any.
  std::optional<v1::LogLines> Take();
  // The last few lines, for the message about a death.
  std::string Tail() const;

 private:
  const Options options_;
  std::ofstream file_;
  int64_t file_bytes_ = 0;
  double allowance_;
  absl::Time refilled_;
  int64_t left_out_ = 0;
  v1::LogLines pending_;
  std::deque<std::string> tail_;
};

}  // namespace luthier
