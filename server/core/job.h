// A job as the server decides about it. Pure: no clock, no disk, no network.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace luthier {

// Values are those of FineTuningJob.State in the API, and those in the database: never renumber.
enum class JobState {
  kQueued = 1,
  kStarting = 2,
  kRunning = 3,
  kRecovering = 4,
  kPublishing = 5,
  kCancelling = 6,
  kSucceeded = 7,
  kFailed = 8,
  kCancelled = 9,
  kPausing = 10,
  kPaused = 11,
  kHeld = 12,
  kPreempting = 13,
};
inline constexpr std::array kAllStates = {
    JobState::kQueued,     JobState::kStarting,  JobState::kRunning,   JobState::kRecovering, JobState::kPublishing,
    JobState::kCancelling, JobState::kSucceeded, JobState::kFailed,    JobState::kCancelled,  JobState::kPausing,
    JobState::kPaused,     JobState::kHeld,      JobState::kPreempting};

// What can happen to a job.
enum class JobInput {
  kPlaced,            // the policy gave it a node
  kTrainerStarted,    // its trainer reported `started`
  kTrainerFinished,   // its trainer reported `finished`
  kArtifactStored,    // its files are in the store
  kAttemptFailed,     // its trainer said that trying again is of no use
  kAttemptLost,       // node, agent or trainer died
  kRetriesExhausted,  // lost once too often
  kAttemptStopped,    // no process of it is left, as asked
  kCancelRequested,   // a user wants it to end
  kPauseRequested,    // a user wants it to wait
  kResumeRequested,   // and to go on
  kStartRequested,    // a user releases a job that was created on hold
  kRetryRequested,    // a user wants another try at a job that is over
  kPreempted,         // its node is needed for something else
};
inline constexpr std::array kAllInputs = {
    JobInput::kPlaced,          JobInput::kTrainerStarted, JobInput::kTrainerFinished,  JobInput::kArtifactStored,
    JobInput::kAttemptFailed,   JobInput::kAttemptLost,    JobInput::kRetriesExhausted, JobInput::kAttemptStopped,
    JobInput::kCancelRequested, JobInput::kPauseRequested, JobInput::kResumeRequested,  JobInput::kStartRequested,
    JobInput::kRetryRequested,  JobInput::kPreempted};

struct Transition {
  JobState from;
  JobInput input;
  JobState to;
};

// The whole life of a job. What is not listed cannot happen: such an input leaves the job as it is.
inline constexpr Transition kTransitions[] = {
    {JobState::kHeld, JobInput::kStartRequested, JobState::kQueued},
    {JobState::kHeld, JobInput::kCancelRequested, JobState::kCancelled},
    {JobState::kQueued, JobInput::kPlaced, JobState::kStarting},
    {JobState::kQueued, JobInput::kPauseRequested, JobState::kPaused},
    {JobState::kQueued, JobInput::kCancelRequested, JobState::kCancelled},
    {JobState::kStarting, JobInput::kTrainerStarted, JobState::kRunning},
    {JobState::kStarting, JobInput::kAttemptFailed, JobState::kFailed},
    {JobState::kStarting, JobInput::kAttemptLost, JobState::kRecovering},
    {JobState::kStarting, JobInput::kAttemptStopped, JobState::kRecovering},
    {JobState::kStarting, JobInput::kRetriesExhausted, JobState::kFailed},
    {JobState::kStarting, JobInput::kPreempted, JobState::kPreempting},
    {JobState::kStarting, JobInput::kPauseRequested, JobState::kPausing},
    {JobState::kStarting, JobInput::kCancelRequested, JobState::kCancelling},
    {JobState::kRunning, JobInput::kTrainerFinished, JobState::kPublishing},
    {JobState::kRunning, JobInput::kAttemptFailed, JobState::kFailed},
    {JobState::kRunning, JobInput::kAttemptLost, JobState::kRecovering},
    {JobState::kRunning, JobInput::kAttemptStopped, JobState::kRecovering},
    {JobState::kRunning, JobInput::kRetriesExhausted, JobState::kFailed},
    {JobState::kRunning, JobInput::kPreempted, JobState::kPreempting},
    {JobState::kRunning, JobInput::kPauseRequested, JobState::kPausing},
    {JobState::kRunning, JobInput::kCancelRequested, JobState::kCancelling},
    {JobState::kRecovering, JobInput::kPlaced, JobState::kStarting},
    {JobState::kRecovering, JobInput::kPauseRequested, JobState::kPaused},
    {JobState::kRecovering, JobInput::kCancelRequested, JobState::kCancelled},
    {JobState::kPublishing, JobInput::kArtifactStored, JobState::kSucceeded},
    {JobState::kPublishing, JobInput::kAttemptFailed, JobState::kFailed},
    {JobState::kPublishing, JobInput::kAttemptLost, JobState::kRecovering},
    {JobState::kPublishing, JobInput::kAttemptStopped, JobState::kRecovering},
    {JobState::kPublishing, JobInput::kRetriesExhausted, JobState::kFailed},
    {JobState::kPublishing, JobInput::kCancelRequested, JobState::kCancelling},
    {JobState::kPausing, JobInput::kTrainerFinished, JobState::kPublishing},  // it was done before it heard of it
    {JobState::kPausing, JobInput::kAttemptFailed, JobState::kFailed},
    {JobState::kPausing, JobInput::kAttemptLost, JobState::kPaused},
    {JobState::kPausing, JobInput::kAttemptStopped, JobState::kPaused},
    {JobState::kPausing, JobInput::kResumeRequested, JobState::kPreempting},  // it has to stop now, and then goes on
    {JobState::kPausing, JobInput::kCancelRequested, JobState::kCancelling},
    {JobState::kPaused, JobInput::kResumeRequested, JobState::kQueued},
    {JobState::kPaused, JobInput::kCancelRequested, JobState::kCancelled},
    {JobState::kPreempting, JobInput::kTrainerFinished, JobState::kPublishing},
    {JobState::kPreempting, JobInput::kAttemptFailed, JobState::kFailed},
    {JobState::kPreempting, JobInput::kAttemptLost, JobState::kQueued},
    {JobState::kPreempting, JobInput::kAttemptStopped, JobState::kQueued},
    {JobState::kPreempting, JobInput::kPauseRequested, JobState::kPausing},
    {JobState::kPreempting, JobInput::kCancelRequested, JobState::kCancelling},
    {JobState::kCancelling, JobInput::kAttemptFailed, JobState::kCancelled},
    {JobState::kCancelling, JobInput::kAttemptLost, JobState::kCancelled},
    {JobState::kCancelling, JobInput::kAttemptStopped, JobState::kCancelled},
    {JobState::kFailed, JobInput::kRetryRequested, JobState::kQueued},
    {JobState::kCancelled, JobInput::kRetryRequested, JobState::kQueued},
};

constexpr std::optional<JobState> NextState(JobState from, JobInput input) {
  for (const Transition& row : kTransitions) {
    if (row.from == from && row.input == input) return row.to;
  }
  return std::nullopt;
}

constexpr bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed || state == JobState::kCancelled;
}
constexpr bool IsWaiting(JobState state) { return state == JobState::kQueued || state == JobState::kRecovering; }
// A user has it wait.
constexpr bool IsResting(JobState state) { return state == JobState::kHeld || state == JobState::kPaused; }
// Its attempt was told to stop; what ends it now is no loss that counts.
constexpr bool IsStopping(JobState state) {
  return state == JobState::kCancelling || state == JobState::kPausing || state == JobState::kPreempting;
}
// An attempt needs all of its nodes: later only the leading one has something to do.
constexpr bool NeedsAllNodes(JobState state) { return state == JobState::kStarting || state == JobState::kRunning; }
// An attempt of the job holds devices of its nodes.
constexpr bool HoldsDevices(JobState state) {
  return state == JobState::kStarting || state == JobState::kRunning || state == JobState::kPublishing ||
         IsStopping(state);
}

// An attempt says this of itself only when no process of it is left.
constexpr bool SaysProcessEnded(JobInput input) {
  return input == JobInput::kArtifactStored || input == JobInput::kAttemptFailed || input == JobInput::kAttemptLost ||
         input == JobInput::kAttemptStopped;
}

// "QUEUED", as in the API.
absl::string_view StateName(JobState state);
// "attempt lost", as in docs/job-life.md.
absl::string_view InputName(JobInput input);

// Strictly one before the other. Values are those of the API and the database.
enum class ServiceClass { kInteractive = 1, kStandard = 2, kBackground = 3 };
inline constexpr std::array kServiceClasses = {ServiceClass::kInteractive, ServiceClass::kStandard,
                                               ServiceClass::kBackground};

// How the weights of a job's base model are trained. Values are those in the database: never renumber.
enum class Tuning {
  kNone = 0,  // an export; and a job of before the record said which
  kLora = 1,
  kFull = 2,
};

inline constexpr int kMaxPriority = 100;  // and -100 at least

// What an attempt was given of a node.
struct Place {
  std::string node;
  std::vector<int> devices;  // of one that does not lead: none any more once its agent said that its part ended
  bool operator==(const Place&) const = default;
};

// What the server decides with. A queued job should stay small: a million of them lie in memory.
struct Job {
  int64_t number = 0;  // in the order of creation; names its rows in the record
  std::string id;
  std::string base_model;  // id
  std::string datasets;    // ids, separated by commas; and the version whose adapter it goes on from or exports
  std::string model;       // under which the result is published
  int devices = 1;         // of each node that an attempt needs
  int nodes = 1;           // that it needs: with several it is a gang, whose ranks are on all of them or on none
  int64_t cpu_memory_bytes = 0, gpu_memory_bytes = 0;  // that it needs of each, if that is a CPU node or a GPU
  std::string node_selector;  // labels that its node must have, as LabelText() writes them; empty: any
  std::string tenant = "default";
  ServiceClass service_class = ServiceClass::kStandard;
  int priority = 0;                              // -100 to 100; a point is worth an hour of waiting
  Tuning tuning = Tuning::kNone;                 // jobs are alike in speed by it, base model, nodes and devices
  int64_t work_tokens = 0;                       // that training processes in all
  absl::Duration estimate;                       // of the whole work; 0: it follows the speed of jobs like it
  std::optional<absl::Duration> retention;       // of its events once it is over; none: the server's
  absl::Time deadline = absl::InfiniteFuture();  // when it is cancelled
  int64_t sweep = 0;                             // number of the first job of its sweep; 0: it is of none
  int max_parallel = 0;                          // jobs of its sweep that hold devices at a time; 0: no limit
  absl::Time create_time;

  JobState state = JobState::kQueued;
  int attempt = 0;
  int lost_attempts = 0;
  int preemptions = 0;
  // Since a user last had it retried: nodes that were the reason for the loss of an attempt, each as often as it was,
  // and those on which its trainer died of itself.
  std::vector<std::string> lost_on, crashed_on;
  int revision = 1;           // counts what users changed, for `etag`
  std::string node;           // of the current attempt, or of the last one, where its checkpoints lie; leads
  std::vector<int> held;      // devices of `node` that the current attempt holds
  std::vector<Place> others;  // the other nodes of the current attempt, in the order of their ranks
  absl::Time attempt_start = absl::InfinitePast();  // of the current attempt, or of the last one
  absl::Duration charged;                           // that its tenant was charged for, of each device, when it started
  absl::Time not_before = absl::InfinitePast();     // of the next attempt
  absl::Time start_time = absl::InfinitePast();
  absl::Time end_time = absl::InfinitePast();
  std::string model_version;
  int64_t stored_step = 0;   // of its newest checkpoint in the store, from which another node can go on; 0: none
  int64_t stored_bytes = 0;  // of that
  int64_t last_event = 0;
  int64_t last_report = 0;  // highest sequence of the current attempt that was recorded
  std::string report;       // newest progress, evaluations, failure: bytes of the layer above
  // In memory only.
  absl::Time waiting_since;                          // when it was created, or its last attempt ended
  absl::Time expected_end = absl::InfiniteFuture();  // of the current attempt, from its newest progress
};

// Devices of all nodes that an attempt needs.
inline int AllDevices(const Job& job) { return job.nodes * job.devices; }
// Devices that the current attempt holds, on all of its nodes.
int HeldDevices(const Job& job);
// Those of one node. Null if no part of the current attempt is there.
const std::vector<int>* HeldOn(const Job& job, absl::string_view node);
// Where the current attempt is, by the rank of its nodes: the leading one first.
std::vector<Place> PlacesOf(const Job& job);

// Names of what it is made from: `baseModels/B`, `datasets/D`, `models/M/versions/1`.
std::vector<std::string> ResourcesOf(const Job& job);

// "gpu=h100,zone=a": sorted by their names.
std::string LabelText(const std::map<std::string, std::string>& labels);

// "its trainer died on 3 nodes, n1, n2 and n3". Requires: it crashed on several.
std::string CrashText(const Job& job);

// "24.0 GB", "3.1 MB", "0.5 kB".
std::string SizeText(int64_t bytes);

struct AttemptId {
  std::string job;
  int attempt = 0;
};
// `jobs/J/attempts/N`.
std::string AttemptName(const AttemptId& id);
std::string AttemptName(const Job& job);
// Empty if `name` is no attempt name.
std::optional<AttemptId> ParseAttemptName(absl::string_view name);

}  // namespace luthier
