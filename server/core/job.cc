#include "server/core/job.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
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
    case JobState::kPausing: return "PAUSING";
    case JobState::kPaused: return "PAUSED";
    case JobState::kHeld: return "HELD";
    case JobState::kPreempting: return "PREEMPTING";
  }
  return "UNKNOWN";
}

absl::string_view InputName(JobInput input) {
  switch (input) {
    case JobInput::kPlaced: return "placed";
    case JobInput::kTrainerStarted: return "trainer started";
    case JobInput::kTrainerFinished: return "trainer finished";
    case JobInput::kArtifactStored: return "artifact stored";
    case JobInput::kAttemptFailed: return "attempt failed";
    case JobInput::kAttemptLost: return "attempt lost";
    case JobInput::kRetriesExhausted: return "retries exhausted";
    case JobInput::kAttemptStopped: return "attempt stopped";
    case JobInput::kCancelRequested: return "cancel requested";
    case JobInput::kPauseRequested: return "pause requested";
    case JobInput::kResumeRequested: return "resume requested";
    case JobInput::kStartRequested: return "start requested";
    case JobInput::kRetryRequested: return "retry requested";
    case JobInput::kPreempted: return "preempted";
  }
  return "unknown";
}

int HeldDevices(const Job& job) {
  size_t devices = job.held.size();
  for (const Place& place : job.others) devices += place.devices.size();
  return static_cast<int>(devices);
}

const std::vector<int>* HeldOn(const Job& job, absl::string_view node) {
  if (node == job.node) return &job.held;
  for (const Place& place : job.others) {
    if (node == place.node) return &place.devices;
  }
  return nullptr;
}

std::vector<Place> PlacesOf(const Job& job) {
  std::vector<Place> places = {{job.node, job.held}};
  places.insert(places.end(), job.others.begin(), job.others.end());
  return places;
}

std::vector<std::string> ResourcesOf(const Job& job) {
  std::vector<std::string> names = {absl::StrCat("baseModels/", job.base_model)};
  for (const absl::string_view id : absl::StrSplit(job.datasets, ',', absl::SkipEmpty())) {
    names.push_back(absl::StrCat(id.find('/') == absl::string_view::npos ? "datasets/" : "", id));
  }
  return names;
}

std::string CrashText(const Job& job) {
  const auto last = job.crashed_on.end() - 1;
  return absl::StrCat("its trainer died on ", job.crashed_on.size(), " nodes, ",
                      absl::StrJoin(job.crashed_on.begin(), last, ", "), " and ", *last);
}

std::string LabelText(const std::map<std::string, std::string>& labels) {
  return absl::StrJoin(labels, ",", absl::PairFormatter("="));
}

std::string SizeText(int64_t bytes) {
  const auto size = static_cast<double>(bytes);
  if (bytes < 1'000'000) return absl::StrFormat("%.1f kB", size / 1e3);
  return bytes < 1'000'000'000 ? absl::StrFormat("%.1f MB", size / 1e6) : absl::StrFormat("%.1f GB", size / 1e9);
}

std::string AttemptName(const AttemptId& id) { return absl::StrCat("jobs/", id.job, "/attempts/", id.attempt); }

std::string AttemptName(const Job& job) { return AttemptName(AttemptId{job.id, job.attempt}); }

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
