#include "worker/agent/core/attempt_path.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace luthier {
namespace {

bool IsJobId(absl::string_view id) {
  const auto allowed = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-'; };
  return !id.empty() && id.size() <= 63 && std::all_of(id.begin(), id.end(), allowed);
}

}  // namespace

std::optional<AttemptPath> AttemptPath::Parse(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  AttemptPath name;
  if (parts.size() != 4 || parts[0] != "jobs" || !IsJobId(parts[1]) || parts[2] != "attempts" ||
      !absl::SimpleAtoi(parts[3], &name.number) || name.number < 1) {
    return std::nullopt;
  }
  name.job = parts[1];
  return name.text() == text ? std::optional(name) : std::nullopt;  // one name for one attempt: no `01`
}

std::string AttemptPath::text() const { return absl::StrCat("jobs/", job, "/attempts/", number); }

}  // namespace luthier
