// A file of lines that nobody but its owner reads, kept from growing without end.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "absl/strings/string_view.h"
#include "lib/base/descriptor.h"

namespace luthier {

// Any thread.
class AuditLog {
 public:
  struct Options {
    std::string path;  // empty: none is kept
    // A file that would become larger gets the name PATH.1, what had that name PATH.2, and so on; of `files` files the
    // oldest goes. A million lines or so each.
    int64_t max_bytes = int64_t{256} << 20;
    int files = 10;
  };
  explicit AuditLog(Options options);

  // Writes the line and a newline. A line that the disk does not take is lost, which is said once: calls go on.
  void Append(absl::string_view line);

 private:
  void Open();
  void Rotate();
  void SayIfLost(bool lost);

  const Options options_;
  std::mutex mutex_;  // of what follows
  Descriptor file_;
  int64_t bytes_ = 0;
  bool losing_ = false;  // as was said
};

}  // namespace luthier
