// A file that grows over several tries, in this process or a later one, and is verified before it counts.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/artifact/hash.h"

namespace luthier {

// One thread.
class ResumableFile {
 public:
  // Opens or creates `path`; its folder must exist. What is there already is hashed and kept, unless it is longer than
  // `longest`, and so belongs to something else.
  static absl::StatusOr<ResumableFile> Open(const std::string& path, int64_t longest);
  ResumableFile(ResumableFile&& other) noexcept;
  ResumableFile& operator=(ResumableFile&&) = delete;
  ~ResumableFile();

  // Where the next bytes belong.
  int64_t size() const { return size_; }
  // Errors: RESOURCE_EXHAUSTED if the disk is full.
  absl::Status Append(absl::string_view bytes);
  // Makes the content durable. Errors: DATA_LOSS if it is another; the file is empty then.
  absl::Status Verify(absl::string_view sha256);
  // Makes the content durable, whatever it is.
  absl::Status Flush();
  absl::Status Clear();

 private:
  ResumableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status ReadExisting(int64_t longest);

  std::string path_;
  int fd_;
  int64_t size_ = 0;
  Sha256 hash_;
};

}  // namespace luthier
