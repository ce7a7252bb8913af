// Lines out of what a trainer writes, which may be anything: floods, binary, one line of a gigabyte.
#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace luthier {

// Cuts a stream of bytes into lines in bounded memory. One thread.
class LineSplitter {
 public:
  // `cut`: the line was longer than `max_bytes`, and only its beginning is given.
  using OnLine = std::function<void(std::string line, bool cut)>;

  explicit LineSplitter(size_t max_bytes) : max_bytes_(max_bytes) {}
  void Add(absl::string_view bytes, const OnLine& on_line);
  // Gives out what stands after the last newline.
  void Finish(const OnLine& on_line);

 private:
  const size_t max_bytes_;
  std::string line_;
  bool cut_ = false;
};

}  // namespace luthier
