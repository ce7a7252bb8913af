#include "client/cli/duration_flag.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace luthier {

absl::StatusOr<absl::Duration> ParseDurationFlag(const std::string& flag, const std::string& value) {
  absl::Duration duration;
  if (value.empty()) return absl::InfiniteDuration();
  if (absl::ParseDuration(value, &duration) && duration > absl::ZeroDuration()) return duration;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": '", value, "' is no duration; give for example 90s, 10m or 1h30m"));
}

}  // namespace luthier
