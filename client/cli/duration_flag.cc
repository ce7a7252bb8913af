#include "client/cli/duration_flag.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/duration_text.h"

namespace luthier {

absl::StatusOr<absl::Duration> ParseDurationFlag(const std::string& flag, const std::string& value) {
  absl::Duration duration;
  if (value.empty()) return absl::InfiniteDuration();
  const bool read = ReadDuration(value, &duration);
  if (read && duration > absl::ZeroDuration() && duration < absl::InfiniteDuration()) return duration;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": '", value, "' is no duration above 0; give for example 90s, 10m, 1h30m or 7d"));
}

}  // namespace luthier
