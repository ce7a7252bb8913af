#include "server/core/job.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace luthier {

absl::string_view StateName(JobState state) {
  switch (state) {
    case JobState::kQueued: return "QUEUED";
    case JobState::kStarting: return "STARTING";
    case JobState::kRunning: return "RUNNING";
    case JobState::kRecovering: return "RECOVERING";
    case JobState::kPublishing: return "PUBLISHING";
    case JobState::kCancelling: return "CANCELLING";
    case JobState::kSucceeded: return "SUCCEEDED";
    case JobState::kFailed: return "FAILED";
    case JobState::kCancelled: return "CANCELLED";
  }
  return "UNKNOWN";
}

std::vector<std::string> ResourcesOf(const Job& job) {
  std::vector<std::string> names = {absl::StrCat("baseModels/", job.base_model)};
  for (const absl::string_view id : absl::StrSplit(job.datasets, ',', absl::SkipEmpty())) {
    names.push_back(absl::StrCat("datasets/", id));
  }
  return names;
}

std::string AttemptName(const Job& job) { return absl::StrCat("jobs/", job.id, "/attempts/", job.attempt); }

std::optional<AttemptId> ParseAttemptName(absl::string_view name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  AttemptId id;
  if (parts.size() != 4 || parts[0] != "jobs" || parts[2] != "attempts" || !absl::SimpleAtoi(parts[3], &id.attempt)) {
    return std::nullopt;
  }
  id.job = parts[1];
  return id;
}

}  // namespace luthier
