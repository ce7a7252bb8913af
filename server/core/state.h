// Everything the server decides about, and the decisions. One thread owns a State (server/loop); it changes only through
// the methods below, which collect what has to be written and what has to be sent. Time is an argument.
#pragma once

#include <cstdint>
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/job.h"

namespace luthier {

inline constexpr absl::Duration kHeartbeatInterval = absl::Seconds(5);
// Six missed heartbeats: a longer pause of a loaded machine must not cost an attempt.
inline constexpr absl::Duration kLease = absl::Seconds(30);
inline constexpr int kMaxLostAttempts = 5;
inline constexpr size_t kMaxWaitingJobs = 100000;

// Delay before the attempt that follows the `lost`-th lost one (from 1): 1 s, then 10 s doubling up to 10 min.
absl::Duration RetryDelay(int lost);

// A machine with an agent.
struct Node {
  std::string id;
  bool ready = false;  // its agent has a session; else its attempts wait for it until `deadline`
  absl::Time deadline = absl::InfinitePast();
  absl::Time last_heartbeat = absl::InfinitePast();
  int devices = 1;  // GPUs, or 1 for the CPUs of a node without any
  bool gpus = false;
  std::string agent_version;
  std::string inventory;  // bytes of the layer above
};

// A line of a job's history; `payload` is bytes of the layer above.
struct Event {
  std::string job;
  int64_t sequence = 0;
  absl::Time time;
  int attempt = 0;
  std::string type;
  std::string message;
  int state = 0;  // JobState if the event changed it, else 0
  std::string payload;
};

struct ModelVersion {
  std::string model;
  int version = 0;
  std::string job;
  int attempt = 0;
  std::string base_model;
  absl::Time create_time;
  std::string payload;  // kind and files, bytes of the layer above
};

// What one batch of decisions has to write, in one transaction.
struct Writes {
  std::set<std::string> jobs;                // ids of jobs to write as they now are
  std::map<std::string, std::string> specs;  // of new jobs: id → bytes
  std::vector<Event> events;
  std::vector<ModelVersion> versions;
  bool empty() const { return jobs.empty() && events.empty() && versions.empty(); }
};

// What to tell agents once the writes are durable.
struct Effect {
  enum class Kind { kStart, kStop };
  Kind kind;
  std::string node;
  std::string attempt;  // name
  std::vector<int> devices;  // indices of GPUs; empty on a CPU node
};

// What an attempt reported, already understood by the layer above.
struct Report {
  AttemptId attempt;
  int64_t sequence = 0;
  std::vector<Event> events;  // `job`, `sequence`, `time`, `attempt` are filled here
  std::optional<std::string> job_report;  // replaces Job::report
  std::optional<JobInput> input;
  std::string message;  // of the change of state
  std::string version_payload;  // for kArtifactStored
};

class State {
 public:
  // Reloading after a start: running attempts wait one lease for their agents.
  void LoadJob(Job job, absl::Time now);
  void LoadVersion(const std::string& model, int version) { latest_[model] = std::max(latest_[model], version); }

  // Keeps the nodes of a state that could not be written; they are in memory only.
  void AdoptNodes(const State& other, absl::Time now);

  // Commands. Errors: ALREADY_EXISTS, RESOURCE_EXHAUSTED, NOT_FOUND, FAILED_PRECONDITION.
  // Adds a job, or finds the one that this request created before (`job` is then replaced by it).
  absl::Status Create(Job& job, std::string spec, absl::Time now);
  absl::Status Cancel(const std::string& id, absl::Time now);
  // A node's agent opened a session. Returns the attempts it holds that are not current any more.
  std::vector<std::string> Register(Node node, const std::vector<std::string>& attempts, absl::Time now);
  // False if the node was taken for lost in the meantime: its agent has to register again.
  bool Heartbeat(const std::string& node, const std::string& inventory, absl::Time now);
  void Disconnect(const std::string& node, absl::Time now);
  // Records a report once. False if the attempt is not current: the agent has to end it.
  bool Record(Report report, absl::Time now);
  // Leases that ran out, and placement.
  void Tick(absl::Time now);

  const Job* Find(const std::string& id) const;
  const std::map<std::string, Job>& jobs() const { return jobs_; }
  const std::map<std::string, Node>& nodes() const { return nodes_; }
  bool IsCurrent(const AttemptId& attempt) const;

  Writes TakeWrites() { return std::exchange(writes_, {}); }
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }

 private:
  void Apply(Job& job, JobInput input, const std::string& message, absl::Time now);
  void AddEvent(Job& job, Event event, absl::Time now);
  void LoseAttempt(Job& job, const std::string& why, absl::Time now);
  void Publish(Job& job, std::string payload, absl::Time now);
  void Start(Job& job, const std::string& node, std::vector<int> devices, absl::Time now);
  void Send(Effect::Kind kind, const Job& job);

  std::map<std::string, Job> jobs_;
  std::set<std::string> active_;  // jobs that are not terminal, so that a tick does not walk through history
  std::map<std::string, std::string> by_request_;
  std::map<std::string, int> latest_;
  std::map<std::string, Node> nodes_;
  std::map<std::string, std::vector<int>> devices_;  // of each attempt that holds some, by job
  Writes writes_;
  std::vector<Effect> effects_;
};

// What the policy decided about one waiting job: a node with devices, or why it waits.
struct Placement {
  std::string job;
  std::string node;  // empty: it waits
  std::vector<int> devices;
  std::string reason;
};

// Oldest job first; a job that was lost goes back to its node if that is ready, because its checkpoint lies there.
std::vector<Placement> Place(const std::vector<const Job*>& waiting, const std::map<std::string, Node>& nodes,
                             const std::map<std::string, std::set<int>>& busy, absl::Time now);

}  // namespace luthier
