#include "server/rpc/validate.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace luthier {
namespace {

// Adds the violations of a message, a line each, and counts those that it only counts itself.
void AddLines(absl::string_view message, std::vector<std::string>& violations, int64_t& more) {
  for (const absl::string_view line : absl::StrSplit(message, '\n')) {
    absl::string_view count = line;
    int64_t counted = 0;
    if (absl::ConsumePrefix(&count, "… and ") && absl::ConsumeSuffix(&count, " more") &&
        absl::SimpleAtoi(count, &counted)) {
      more += counted;
    } else {
      violations.emplace_back(line);
    }
  }
}

}  // namespace

bool IsOfRequest(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) || absl::IsAlreadyExists(status) ||
         absl::IsFailedPrecondition(status);
}

std::string Shown(absl::string_view value, size_t most) {
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(value.substr(0, most)), "'");
}

absl::Status Refusal(const std::vector<std::string>& violations, int64_t more) {
  if (violations.empty()) return absl::OkStatus();
  const size_t shown = std::min(violations.size(), kMostViolations);
  more += static_cast<int64_t>(violations.size() - shown);
  std::string text = absl::StrJoin(violations.begin(), violations.begin() + static_cast<int64_t>(shown), "\n");
  if (more > 0) absl::StrAppend(&text, "\n… and ", more, " more");
  return absl::InvalidArgumentError(text);
}

absl::Status AllOf(const std::vector<absl::Status>& checks) {
  std::vector<absl::Status> found;
  std::vector<std::string> violations;
  int64_t more = 0;
  for (const absl::Status& check : checks) {
    if (check.ok()) continue;
    if (!IsOfRequest(check)) return check;
    found.push_back(check);
    AddLines(check.message(), violations, more);
  }
  if (found.size() <= 1) return found.empty() ? absl::OkStatus() : found.front();
  const bool alike = std::all_of(found.begin(), found.end(),
                                 [&](const absl::Status& each) { return each.code() == found.front().code(); });
  const absl::Status all = Refusal(violations, more);
  return alike ? absl::Status(found.front().code(), all.message()) : all;
}

absl::Status InField(absl::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", absl::StripPrefix(status.message(), "name: ")));
}

std::string NameShown(absl::string_view collection, const std::string& id) {
  return absl::StrCat(collection, CheckId("", id, /*dots=*/true).ok() ? id : Shown(id));
}

absl::Status CheckId(absl::string_view field, absl::string_view id, bool dots) {
  const auto allowed = [&](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || (dots && c == '.');
  };
  if (!id.empty() && id.size() <= 63 && absl::ascii_islower(id[0]) && std::all_of(id.begin(), id.end(), allowed)) {
    return absl::OkStatus();
  }
  const std::string wrong = id.empty() ? "is missing" : absl::StrCat(Shown(id), " is no id");
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", wrong, "; give 1 to 63 characters a-z, 0-9, '-'",
                                                 dots ? ", '.'" : "", ", a letter first"));
}

absl::StatusOr<std::string> ParseName(absl::string_view field, absl::string_view collection, absl::string_view name) {
  absl::string_view id = name;
  if (absl::ConsumePrefix(&id, collection) && absl::ConsumePrefix(&id, "/") && CheckId(field, id, true).ok()) {
    return std::string(id);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", Shown(name), " is no name; give ", collection,
                   "/{id}, of which the id is 1 to 63 characters a-z, 0-9, '-', '.', a letter first"));
}

absl::StatusOr<VersionName> ParseVersionName(absl::string_view name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  if (parts.size() == 4 && parts[0] == "models" && CheckId("", parts[1], /*dots=*/true).ok() &&
      parts[2] == "versions") {
    VersionName version{.model = parts[1]};
    // Written as the server writes it: "01" and "+1" name nothing.
    if (absl::SimpleAtoi(parts[3], &version.number) && version.number > 0 && parts[3] == absl::StrCat(version.number))
      return version;
    version.number = 0;
    version.alias = parts[3];
    if (CheckId("", version.alias).ok()) return version;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("name: ", Shown(name), " is no name; give models/{model}/versions/{number, latest or alias}"));
}

absl::StatusOr<AttemptId> ParseAttempt(absl::string_view name) {
  if (std::optional<AttemptId> attempt = ParseAttemptName(name)) return *std::move(attempt);
  return absl::InvalidArgumentError(
      absl::StrCat("attempt: ", Shown(name), " is no attempt; give jobs/{job}/attempts/{attempt}"));
}

std::string NewJobId(absl::Time now) {
  // Crockford's alphabet: nothing in it is mistaken for something else when it is read aloud or typed.
  static constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
  static std::atomic<int64_t> last = 0;
  int64_t before = last;
  int64_t micros;
  do {
    micros = std::max(before + 1, absl::ToUnixMicros(now));
  } while (!last.compare_exchange_weak(before, micros));
  std::string id = "job-";
  for (int shift = 50; shift >= 0; shift -= 5) id += kAlphabet[micros >> shift & 31];
  return id;
}

std::string RandomUuid() {
  thread_local absl::BitGen random;
  const auto high = absl::Uniform<uint64_t>(random), low = absl::Uniform<uint64_t>(random);
  return absl::StrFormat("%08x-%04x-4%03x-%04x-%012x", high >> 32, high >> 16 & 0xffff, high & 0xfff,
                         (low >> 48 & 0x3fff) | 0x8000, low & 0xffffffffffff);
}

}  // namespace luthier
