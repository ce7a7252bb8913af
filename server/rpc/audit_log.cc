#include "server/rpc/audit_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {

AuditLog::AuditLog(Options options) : options_(std::move(options)) {
  if (!options_.path.empty()) Open();
}

void AuditLog::SayIfLost(bool lost) {
  if (std::exchange(losing_, lost) == lost) return;
  std::fprintf(
      stderr, "luthierd: %s %s\n", options_.path.c_str(),
      lost ? "cannot be written: what callers change is not noted; see to its disk and its owner" : "is written again");
}

// Who does what is nobody else's business.
void AuditLog::Open() {
  file_ = Descriptor(open(options_.path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR));
  struct stat found = {};
  bytes_ = file_.is_open() && fstat(file_.get(), &found) == 0 ? found.st_size : 0;
}

void AuditLog::Append(absl::string_view line) {
  const std::string text = absl::StrCat(line, "\n");
  const std::lock_guard lock(mutex_);
  if (options_.path.empty()) return;
  if (!file_.is_open()) Open();  // a start or a rotation at a bad moment must not end the log
  if (bytes_ > 0 && bytes_ + static_cast<int64_t>(text.size()) > options_.max_bytes) Rotate();
  const ssize_t written = !file_.is_open() ? -1 : write(file_.get(), text.data(), text.size());
  const bool whole = written == static_cast<ssize_t>(text.size());
  if (whole) bytes_ += written;
  // Whole or not at all: the next line would go on behind a half one.
  if (written > 0 && !whole && ftruncate(file_.get(), bytes_) != 0) bytes_ += written;
  SayIfLost(!whole);
}

void AuditLog::Rotate() {
  const auto name = [this](int number) { return absl::StrCat(options_.path, ".", number); };
  for (int number = options_.files - 2; number > 0; --number)
    std::rename(name(number).c_str(), name(number + 1).c_str());
  std::rename(options_.path.c_str(), name(1).c_str());
  file_.Close();
  Open();
}

}  // namespace luthier
