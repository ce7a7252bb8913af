#include "worker/agent/attempt_log.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/utf8.h"

namespace luthier {
namespace {

constexpr size_t kTailLines = 5;

}  // namespace

AttemptLog::AttemptLog(const std::string& path, Options options, absl::Time now)
    : options_(options), file_(path, std::ios::app), allowance_(options.burst_lines), refilled_(now) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (!error) file_bytes_ = static_cast<int64_t>(size);
}

void AttemptLog::Add(absl::string_view raw, absl::Time now) {
  std::string line = LogLine({raw.data(), raw.size()});
  if (file_bytes_ < options_.max_file_bytes) {
    file_ << line << '\n' << std::flush;
    file_bytes_ += static_cast<int64_t>(line.size()) + 1;
    if (file_bytes_ >= options_.max_file_bytes) file_ << "(the log is full; nothing more is written)\n" << std::flush;
  }
  tail_.push_back(line);
  if (tail_.size() > kTailLines) tail_.pop_front();

  allowance_ =
      std::min(options_.burst_lines, allowance_ + absl::ToDoubleSeconds(now - refilled_) * options_.lines_per_second);
  refilled_ = now;
  if (allowance_ < 1) {
    ++left_out_;
    return;
  }
  allowance_ -= 1;
  if (left_out_ > 0)
    pending_.add_lines(absl::StrCat("(", left_out_, " lines left out here; the node's trainer.log has more)"));
  left_out_ = 0;
  pending_.add_lines(std::move(line));
}

std::optional<v1::LogLines> AttemptLog::Take() {
  if (pending_.lines_size() == 0) return std::nullopt;
  return std::exchange(pending_, {});
}

std::string AttemptLog::Tail() const { return absl::StrJoin(tail_, "\n"); }

}  // namespace luthier
