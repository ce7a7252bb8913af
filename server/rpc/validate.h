// Names and ids of requests.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/job.h"

namespace luthier {

// The id in `collection/{id}`. Errors: INVALID_ARGUMENT.
absl::StatusOr<std::string> ParseName(absl::string_view field, absl::string_view collection, absl::string_view name);

// 1 to 63 characters [a-z0-9-] (and dots if `dots`), a letter first. Errors: INVALID_ARGUMENT.
absl::Status CheckId(absl::string_view field, absl::string_view id, bool dots = false);

// The last that a Timestamp of protobuf may hold: no client could print a job with a later one.
inline constexpr absl::Time kLatestTime = absl::FromUnixSeconds(253402300799);

inline constexpr size_t kMostPath = 4096;

// The same error, about a field.
absl::Status InField(absl::string_view field, const absl::Status& status);

// `collection`: `datasets/` for example. As the caller gave it if it may be a name; what may be none has line breaks,
// or a megabyte.
std::string NameShown(absl::string_view collection, const std::string& id);

// The beginning of a value, in quotes and on one line: each line of a message is a violation.
std::string Shown(absl::string_view value, size_t most = 80);

// INVALID_ARGUMENT with a violation on each line, of which the first kMostViolations are there and the others, with
// `more` that were not kept, counted: whoever has mended these tries again. OK if there are none.
inline constexpr size_t kMostViolations = 20;
absl::Status Refusal(const std::vector<std::string>& violations, int64_t more = 0);

// Whether it is about the request: another one, at the same moment, would not have got it.
bool IsOfRequest(const absl::Status& status);

// What all of `checks` found, each on lines of its own, of which there are no more than in a Refusal():
// INVALID_ARGUMENT, or the code of all of them if that is the same. What says nothing about the request, such as
// UNAVAILABLE, stands alone, and so does what is the only error; only these keep their reason.
absl::Status AllOf(const std::vector<absl::Status>& checks);

// `models/{model}/versions/{version}`: a number, or an alias, of which `latest` is one. Errors: INVALID_ARGUMENT.
struct VersionName {
  std::string model;
  int number = 0;  // 0: `alias` names it
  std::string alias;
};
absl::StatusOr<VersionName> ParseVersionName(absl::string_view name);

// `jobs/{job}/attempts/{attempt}`. Errors: INVALID_ARGUMENT.
absl::StatusOr<AttemptId> ParseAttempt(absl::string_view name);

std::string RandomUuid();

// `job-` and 11 characters: the time in microseconds, moved on where two calls fall into one. Such ids are in the order
// of creation, so that new ones go to one end of the index. Any thread.
std::string NewJobId(absl::Time now);

}  // namespace luthier
