// Everything the server decides about, and the decisions. One thread owns a State (server/loop); it changes only through
// the methods below, which collect what has to be written and what has to be sent. Time is an argument.
//
// Commands are decided in batches. After a batch: TakeWrites(), write them in one transaction, then Commit() and
// TakeEffects(); or Rollback() if they could not be written. Jobs that are over leave the state with Commit(): from then on
// only the record (server/store) knows them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/job_table.h"
#include "server/core/placement.h"

namespace luthier {

inline constexpr absl::Duration kHeartbeatInterval = absl::Seconds(5);
// Six missed heartbeats: a longer pause of a loaded machine must not cost an attempt.
inline constexpr absl::Duration kLease = absl::Seconds(30);
inline constexpr int kMaxLostAttempts = 5;

// Delay before the attempt that follows the `lost`-th lost one (from 1): 1 s, then 10 s doubling up to 10 min.
absl::Duration RetryDelay(int lost);

// A line of a job's history; `payload` is bytes of the layer above.
struct Event {
  int64_t job = 0;  // its number
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

// A dataset or a base model: what is known of it, as bytes of the layer above. Never changes.
enum class ResourceKind { kDataset, kBaseModel };
struct Resource {
  std::string id;
  absl::Time create_time;
  std::string payload;
};
// "datasets/d" or "baseModels/b".
std::string ResourceName(ResourceKind kind, const std::string& id);

// A request that created a job, so that the same request finds it again.
struct JobRequest {
  std::string id;           // empty: none given
  std::string body_sha256;  // 64 hexadecimal digits
};
// ALREADY_EXISTS if `repeated` is not the request that created `job`.
absl::Status CheckReplay(const JobRequest& repeated, const JobRequest& first, const std::string& job);

// ALREADY_EXISTS.
absl::Status JobExists(const std::string& id);

// What one batch of decisions has to write, in one transaction.
struct Writes {
  struct NewJob {
    int64_t number = 0;
    JobRequest request;
    std::string spec;  // bytes of the layer above
  };
  struct ResourceChange {
    ResourceKind kind;
    std::string id;
    std::optional<Resource> resource;  // none: delete it
  };
  std::vector<Job> jobs;  // new and changed ones, as they now are
  std::vector<NewJob> new_jobs;
  std::vector<Event> events;
  std::vector<ModelVersion> versions;
  std::vector<ResourceChange> resources;
  bool empty() const { return jobs.empty() && resources.empty(); }
};

// What to tell agents once the writes are durable.
struct Effect {
  enum class Kind { kStart, kStop, kReconnect };  // the last: end the session, so that the agent registers anew
  Kind kind;
  std::string node;
  std::string attempt;       // name; empty for kReconnect
  int64_t job = 0;           // number
  std::vector<int> devices;  // indices of GPUs; empty on a CPU node
};

// What an attempt reported, already understood by the layer above.
struct Report {
  AttemptId attempt;
  int64_t sequence = 0;
  std::vector<Event> events;              // `job`, `sequence`, `time`, `attempt` are filled here
  std::optional<std::string> job_report;  // replaces Job::report
  std::optional<JobInput> input;
  std::string message;          // of the change of state
  std::string version_payload;  // for kArtifactStored
};

class State {
 public:
  struct Options {
    size_t max_live_jobs = 2000000;  // about 1 GB
  };
  State() = default;
  explicit State(Options options) : options_(options) {}

  // Reloading after a start. Jobs that are not over; running attempts wait one lease for their agents.
  void LoadJob(Job job, absl::Time now);
  void LoadFinished(JobState state, int64_t jobs) { jobs_.AddFinished(state, jobs); }
  void LoadLastNumber(int64_t number) { last_number_ = number; }
  void LoadVersion(const std::string& model, int version) { latest_[model] = version; }
  void LoadResource(ResourceKind kind, const std::string& id) { resources_.insert(ResourceName(kind, id)); }

  // Adds a job, or finds the one that the same request created earlier in this batch (`job` is then replaced by it). Whether
  // the record knows request or id is for the caller to see (server/loop/create_job).
  // Errors: ALREADY_EXISTS, NOT_FOUND (base model or dataset), RESOURCE_EXHAUSTED.
  absl::Status Create(Job& job, const JobRequest& request, std::string spec, absl::Time now);
  // Errors: NOT_FOUND if no job that is not over has the id.
  absl::Status Cancel(const std::string& id, absl::Time now);
  // Errors: ALREADY_EXISTS.
  absl::Status AddResource(ResourceKind kind, Resource resource);
  // Errors: NOT_FOUND; FAILED_PRECONDITION while a job that is not over uses it.
  absl::Status DeleteResource(ResourceKind kind, const std::string& id);

  // A node's agent opened a session. Returns the attempts it holds that are not current any more.
  std::vector<std::string> Register(Node node, const std::vector<std::string>& attempts, absl::Time now);
  // `leaving`: its agent is about to end.
  void Heartbeat(const std::string& node, std::string inventory, bool leaving, absl::Time now);
  void Disconnect(const std::string& node, absl::Time now);
  // Records a report once. False if the attempt is not current: the agent has to end it.
  bool Record(Report report, absl::Time now);
  // The wall clock was set, or the machine slept: what is left of leases and delays stays as it is.
  void ClockJumped(absl::Duration by);
  // Leases that ran out, and placement. Called once a batch and at least twice a second.
  void Tick(absl::Time now);

  // Jobs that are not over.
  const JobTable& jobs() const { return jobs_; }
  const Job* Find(absl::string_view id) const { return jobs_.Find(id); }
  bool IsCurrent(const AttemptId& attempt) const;
  // Why a job waits, for people; empty if it does not.
  std::string WhyItWaits(const Job& job, absl::Time now) const;
  const std::map<std::string, Node>& nodes() const { return nodes_; }

  Writes TakeWrites();
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }
  void Commit();
  void Rollback();

 private:
  // Everything that changes a job's state goes through here.
  const Job& Apply(const Job& job, JobInput input, const std::string& message, absl::Time now);
  const Job& AddEvent(const Job& job, Event event, absl::Time now);
  void LoseAttempt(const Job& job, const std::string& why, absl::Time now);
  void Publish(const Job& job, std::string payload, absl::Time now);
  void Start(const Placement& placement, absl::Time now);
  void Send(Effect::Kind kind, const Job& job);
  void ExpireLeases(absl::Time now);
  void Schedule(absl::Time now);
  std::vector<NodeView> NodeViews() const;

  Options options_;
  JobTable jobs_;
  std::map<std::string, Node> nodes_;  // in memory only: agents say what they are
  std::map<std::string, int> latest_;  // version of each model
  std::set<std::string> resources_;    // names
  std::map<std::string, std::pair<JobRequest, std::string>> fresh_requests_;  // of this batch: id → request, job
  int64_t last_number_ = 0;
  bool unsettled_ = true;  // something happened that may let a waiting job start
  absl::Time next_lease_check_ = absl::InfinitePast();

  Writes writes_;  // without `jobs`, which the table knows
  std::vector<Effect> effects_;
  std::vector<std::function<void()>> undo_;  // of what is not in the table, newest last
};

}  // namespace luthier
