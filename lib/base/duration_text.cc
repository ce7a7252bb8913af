#include "lib/base/duration_text.h"

#include <cstdint>

#include "absl/strings/numbers.h"

namespace luthier {

bool ReadDuration(absl::string_view text, absl::Duration* duration) {
  constexpr int64_t kMostDays = 1'000'000;  // far beyond every use, far below what overflows
  const size_t end_of_days = text.find('d');
  if (end_of_days == absl::string_view::npos) return absl::ParseDuration(text, duration);
  int64_t days = 0;
  if (!absl::SimpleAtoi(text.substr(0, end_of_days), &days) || days < 0 || days > kMostDays) return false;
  const absl::string_view rest = text.substr(end_of_days + 1);
  absl::Duration part;
  if (!rest.empty() && (!absl::ParseDuration(rest, &part) || part < absl::ZeroDuration())) return false;
  *duration = absl::Hours(24 * days) + part;
  return true;
}

}  // namespace luthier
