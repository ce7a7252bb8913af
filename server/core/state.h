// Everything the server decides about, and the decisions. One thread owns a State (server/loop); it changes only
// through the methods below, which collect what has to be written and what has to be sent. Time is an argument.
//
// Commands are decided in batches. After a batch: TakeWrites(), write them in one transaction, then Commit() and
// TakeEffects(); or Rollback() if they could not be written. Jobs that are over leave the state with Commit(): from
// then on only the record (server/store) knows them.
//
// state.cc has loading, time and batches; state_jobs.cc, state_nodes.cc, state_resources.cc and state_scheduling.cc
// have what their names say.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/job_table.h"
#include "server/core/policy.h"
#include "server/core/speeds.h"
#include "server/core/token.h"

namespace luthier {

inline constexpr absl::Duration kHeartbeatInterval = absl::Seconds(5);
// Six missed heartbeats: a longer pause of a loaded machine must not cost an attempt.
inline constexpr absl::Duration kLease = absl::Seconds(30);
inline constexpr int kMaxLostAttempts = 5;
// A job whose trainer died of itself on so many nodes is more likely to be the reason than they are: it gets no other
// one. Two could be a bad pair; a fourth would only cost others an attempt.
inline constexpr size_t kMaxCrashNodes = 3;
// A record that was brought back from a backup does not know which attempts were started after the backup. Those that
// it starts get numbers from `epoch` times this on, which none of before can have: no job is started ten thousand
// times.
inline constexpr int kAttemptsPerEpoch = 10000;
// The same holds for versions of a model: one that was published after the backup, and may have been downloaded, must
// not share its number with another.
inline constexpr int kVersionsPerEpoch = 10000;

// A node on which attempts of so many different jobs died within the window, and none got through in between, gets
// nothing new for a while: it is more likely to be the reason than they are. Afterwards one more death within the
// window begins the next quarantine.
inline constexpr size_t kQuarantineJobs = 3;
inline constexpr absl::Duration kQuarantineWindow = absl::Minutes(30);
inline constexpr absl::Duration kQuarantine = absl::Minutes(10);
// What dies within so little time died together, with its agent or its machine, and says as much as one.
inline constexpr absl::Duration kIncident = absl::Seconds(5);

// Delay before the attempt that follows the `lost`-th lost one (from 1), at most: 1 s, then 10 s doubling up to 10 min.
// The first loss is mostly an agent that was started again, or a node that was silent for a lease already: ten seconds
// more would help nobody who has that node only. The pauses are for a fault that stays, and the second loss is its
// first sign.
absl::Duration RetryDelay(int lost);
// That of a job which has just lost its attempt: up to a quarter shorter, for jobs that were lost together not to load
// their inputs and checkpoints at one moment. By number and attempt, so that a run can be repeated.
absl::Duration RetryDelayOf(const Job& job);

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
  std::string tenant;  // of the job
  int attempt = 0;
  std::string base_model;
  absl::Time create_time;
  std::string payload;  // kind and files, bytes of the layer above
  int64_t bytes = 0;    // of its files
};

// "models/m/versions/1".
std::string NameOfVersion(const std::string& model, int version);

// A name that points to a version, such as `production`. Version 0: it points nowhere any more.
struct Alias {
  std::string model;
  std::string name;
  int version = 0;
};

// A dataset or a base model: what is known of it, as bytes of the layer above. Never changes.
enum class ResourceKind { kDataset, kBaseModel };
struct Resource {
  std::string id;
  absl::Time create_time;
  std::string payload;
  std::string tenant;  // whose storage it takes; empty: nobody's (base models are everybody's)
  int64_t bytes = 0;   // of its files
};
// Whose storage something takes, and how much of it.
struct Stored {
  std::string tenant;  // empty: nobody's
  int64_t bytes = 0;
};
// "datasets/d" or "baseModels/b".
std::string ResourceName(ResourceKind kind, const std::string& id);

// A request that created or changed a job, so that the same request finds it again.
struct JobRequest {
  std::string id;           // empty: none given
  std::string body_sha256;  // 64 hexadecimal digits
};
// ALREADY_EXISTS if `repeated` is not the request that created or changed `job`.
absl::Status CheckReplay(const JobRequest& repeated, const JobRequest& first, const std::string& job);

// A job for each point of a grid or a list, created together: their numbers follow one another.
struct Sweep {
  std::string id;
  std::string tenant;
  int64_t first_job = 0;  // number
  int jobs = 0;
  absl::Time create_time;
  std::string payload;  // what was asked for, bytes of the layer above
};

// A node that gets nothing until `end`, since attempts of these jobs died there.
struct Quarantine {
  std::string node;
  std::vector<std::string> jobs;
  absl::Time end = absl::InfinitePast();  // InfinitePast: it has none any more
};

// ALREADY_EXISTS.
absl::Status JobExists(const std::string& id);

// What a job is to do, as bytes of the layer above. Jobs of one plan share most of it, which is on record once.
struct SpecBytes {
  std::shared_ptr<const std::string> plan;  // null: all of it is in `own`
  std::string own;
};

// What one batch of decisions has to write, in one transaction.
struct Writes {
  struct NewJob {
    int64_t number = 0;
    SpecBytes spec;
  };
  struct ResourceChange {
    ResourceKind kind;
    std::string id;
    std::optional<Resource> resource;  // none: delete it
  };
  struct LabelChange {
    int64_t number = 0;
    std::string labels;  // bytes of the layer above
  };
  std::vector<Job> jobs;  // new and changed ones, as they now are
  std::vector<NewJob> new_jobs;
  std::vector<std::pair<JobRequest, int64_t>> requests;  // that were answered, and the number of the job of each
  std::vector<LabelChange> labels;
  std::vector<Sweep> sweeps;
  // The checkpoint of a job that is in the store from now on. A job has one at most.
  struct CheckpointChange {
    int64_t job = 0;  // number
    int attempt = 0;  // that wrote it
    int64_t step = 0;
    std::optional<std::string> payload;  // its files, bytes of the layer above; none: the job needs it no more
  };
  std::vector<CheckpointChange> checkpoints;
  std::vector<int64_t> expired;  // jobs, of which events go (Store::kExpiredEvents at a time)
  std::vector<Event> events;
  std::vector<ModelVersion> versions;
  std::vector<std::pair<std::string, int>> deleted_versions;  // model, version
  std::vector<ResourceChange> resources;
  std::vector<Tenant> tenants;                        // changed ones
  std::vector<std::pair<std::string, bool>> drained;  // node, whether it is drained from now on
  std::vector<Quarantine> quarantines;
  std::vector<Alias> aliases;
  std::optional<std::pair<int, absl::Time>> epoch;  // that begins, and when
  std::vector<Token> tokens;                        // new and changed ones
  std::vector<Speed> speeds;                        // that have changed notably
  bool empty() const {
    return jobs.empty() && expired.empty() && resources.empty() && tenants.empty() && drained.empty() &&
           quarantines.empty() && deleted_versions.empty() && aliases.empty() && !epoch && tokens.empty();
  }
};

// Where a node of a gang finds the others.
struct GangPlace {
  int node_rank = 0;    // 0 leads
  std::string meeting;  // host:port at which the leading node waits for the others
  std::string address;  // of this node, for the others
};

// What to tell agents once the writes are durable.
struct Effect {
  // kReconnect: end the session, so that the agent registers anew.
  enum class Kind { kStart, kStop, kCheckpoint, kReconnect };
  Kind kind;
  std::string node;
  std::string attempt;       // name; empty for kReconnect
  int64_t job = 0;           // number
  std::vector<int> devices;  // indices of GPUs; empty on a CPU node
  bool job_goes_on = false;  // of kStop: later, perhaps on another node, from a checkpoint that this attempt stores
  std::optional<GangPlace> gang;  // of kStart, for a job of several nodes
};

// A checkpoint whose files are in the store.
struct StoredCheckpoint {
  int64_t step = 0;
  std::string payload;  // bytes of the layer above
  int64_t bytes = 0;    // of its files
};

// What an attempt reported, already understood by the layer above.
struct Report {
  AttemptId attempt;
  std::string node;  // whose agent sent it; empty: the leading node's
  int64_t sequence = 0;
  std::vector<Event> events;              // `job`, `sequence`, `time`, `attempt` are filled here
  std::optional<std::string> job_report;  // replaces Job::report
  std::optional<JobInput> input;
  std::string message;                      // of the change of state
  std::optional<absl::Duration> time_left;  // as a progress report says
  std::optional<double> tokens_per_second;  // as it says, too
  std::string version_payload;              // for kArtifactStored
  int64_t version_bytes = 0;
  std::optional<StoredCheckpoint> checkpoint;
  bool crashed = false;    // of kAttemptLost: the trainer died of itself, not with agent or node
  bool lost_peer = false;  // of kAttemptLost: its ranks ended only since those of another node did
};

// What a user changes of a job; absent values stay.
struct JobUpdate {
  std::optional<int> priority;
  std::optional<std::string> labels;  // bytes of the layer above
  std::optional<std::optional<absl::Duration>> retention;
  std::optional<absl::Time> deadline;  // InfiniteFuture: none any more
  int revision = 0;                    // that the user has seen; 0: any
};

// Why a job waits.
struct WaitReason {
  Wait code = Wait::kNone;
  std::string message;  // for people
};

class State {
 public:
  struct Options {
    size_t max_live_jobs = 2000000;  // about 1 GB
    // An attempt is not stopped for another job before it has run for so long: it has to get somewhere.
    absl::Duration preempt_after = absl::Minutes(10);
  };
  State() = default;
  explicit State(Options options) : options_(options) {}

  // Reloading after a start. Jobs that are not over; running attempts wait one lease for their agents.
  void LoadJob(std::unique_ptr<Job> job, absl::Time now);
  void LoadFinished(JobState state, int64_t jobs) { jobs_.AddFinished(state, jobs); }
  void Reserve(size_t jobs) { jobs_.Reserve(jobs); }
  void LoadLastNumber(int64_t number) { last_number_ = number; }
  // Of the job that was created last.
  int64_t last_number() const { return last_number_; }
  // The newest one of a model.
  void LoadVersion(const std::string& model, int version, const std::string& tenant) {
    models_[model] = {tenant, version};
  }
  void LoadDeletedVersion(const std::string& name) { deleted_versions_.insert(name); }
  void LoadResource(ResourceKind kind, const std::string& id, Stored stored = {}) {
    resources_[ResourceName(kind, id)] = std::move(stored);
  }
  void LoadTenant(const Tenant& tenant) { tenants_[tenant.id] = tenant; }
  void LoadDrained(const std::string& node) { drained_.insert(node); }
  void LoadQuarantine(const Quarantine& quarantine, absl::Time now);
  void LoadEpoch(int epoch) { epoch_ = epoch; }
  void LoadSpeed(Speed speed) { speeds_.Load(std::move(speed)); }

  // The record was brought back from a backup: every attempt of before is over, without counting as lost, and attempts
  // that agents hold from then on are not current. Requires: `epoch` is above every one of before.
  void BeginEpoch(int epoch, absl::Time now);
  int epoch() const { return epoch_; }

  // Adds a job, or finds the one that the same request created earlier in this batch (`job` is then replaced by it).
  // Whether the record knows request or id is for the caller to see (server/loop/recorded_jobs). Errors: ALREADY_EXISTS
  // (also if another tenant has the name of its model), NOT_FOUND (base model or dataset), RESOURCE_EXHAUSTED.
  absl::Status Create(Job& job, const JobRequest& request, SpecBytes spec, absl::Time now);
  // Adds all jobs of a sweep, or none. The request is that of the first job, which is replaced if the request is a
  // repeated one. Requires: one job or more, all of the sweep's tenant, and as many specs. Errors: as Create.
  absl::Status CreateSweep(Sweep& sweep, std::vector<Job>& jobs, const JobRequest& request,
                           std::vector<SpecBytes> specs, absl::Time now);
  // Whether this job can be added with so many in all, it among them. Errors: as Create.
  absl::Status CheckNew(const Job& job, int64_t jobs) const;
  // What users ask of a job. Asking again for what has happened succeeds, so that a client may repeat itself.
  // Errors: NOT_FOUND if no job that is not over has the id (see Borrow); FAILED_PRECONDITION in a state without such a
  // step.
  absl::Status Cancel(const std::string& id, absl::Time now);
  absl::Status Pause(const std::string& id, absl::Time now);
  absl::Status Resume(const std::string& id, absl::Time now);
  absl::Status StartHeld(const std::string& id, absl::Time now);
  // A job that failed or was cancelled waits again, with all its retries, and goes on from its last checkpoint. Errors
  // also: FAILED_PRECONDITION if what it is made from was deleted, or its name is other content's (not
  // `inputs_remain`), its deadline is over, or the name of its model has become another tenant's;
  // RESOURCE_EXHAUSTED if its tenant has as many waiting as it may.
  absl::Status Retry(const std::string& id, absl::Time now, bool inputs_remain = true);
  // Errors also: ABORTED if the revision is another by now.
  absl::Status Update(const std::string& id, const JobUpdate& update, absl::Time now);
  // A request that changed the job in this batch: the same one again is known by it, and must not change it once more.
  void Remember(const JobRequest& request, const Job& job);
  // The job that the same request was answered with earlier in this batch; null if it was not. Errors: as CheckReplay.
  absl::StatusOr<const Job*> AnswerTo(const JobRequest& request) const;
  // A checkpoint after the running step. Errors: FAILED_PRECONDITION if it does not run.
  absl::Status Checkpoint(const std::string& id);
  // The retention of a job has passed: some of its events go, unless it is not over any more.
  void Expire(const Job& job) {
    if (Find(job.id) == nullptr) writes_.expired.push_back(job.number);
  }
  // Takes a job that is over from the record for a change within this batch.
  void Borrow(Job job);

  // Weight, limits and guarantee of a tenant; a tenant exists once it is named. Its usage and what it stores stay.
  // Errors: INVALID_ARGUMENT for a guarantee above its limit.
  absl::Status SetTenant(const Tenant& tenant, absl::Time now);
  // A drained node gets no attempts; `requeue`: those it has are stopped with a checkpoint and wait for another node.
  // Errors: NOT_FOUND for a node that was never connected.
  absl::Status Drain(const std::string& node, bool requeue, absl::Time now);
  // Ends a drain and a quarantine, and forgets with which nodes it did not meet.
  absl::Status Undrain(const std::string& node);
  // Errors: NOT_FOUND for a version that does not exist.
  absl::Status SetAlias(Alias alias);
  // `aliases`: of the model, as they are on record; `bytes`: that its files are counted with. Errors: NOT_FOUND;
  // FAILED_PRECONDITION while one of them points to it, or a job that is not over goes on from it.
  absl::Status DeleteVersion(const std::string& model, int version, const std::vector<Alias>& aliases, int64_t bytes);
  // Only passed on to the record: who may call is not the state's business.
  void PutToken(Token token) { writes_.tokens.push_back(std::move(token)); }

  // Errors: as CheckResource.
  absl::Status AddResource(ResourceKind kind, Resource resource);
  // Whether it could be added now, before its bytes are sent. Errors: ALREADY_EXISTS; RESOURCE_EXHAUSTED if its tenant
  // would store more than it may.
  absl::Status CheckResource(ResourceKind kind, const Resource& resource) const;
  // Errors: NOT_FOUND; FAILED_PRECONDITION while a job that is not over uses it.
  absl::Status DeleteResource(ResourceKind kind, const std::string& id);

  // A node's agent opened a session. Returns the attempts it holds that are not current any more.
  std::vector<std::string> Register(Node node, const std::vector<std::string>& attempts, absl::Time now);
  // `leaving`: its agent is about to end. What an attempt that is not current any more still uses is given to nobody
  // until a heartbeat or the next Register no longer names it.
  void Heartbeat(const std::string& node, std::string inventory, Processes processes, bool leaving, absl::Time now);
  void Disconnect(const std::string& node);
  // The order to start an attempt could not be sent to one of its nodes, for no reason of the node's.
  void LoseOrder(const AttemptId& attempt, const std::string& node, const std::string& why, absl::Time now);
  // Records a report once. False if the attempt is not current, or has no part on the node: the agent has to end it.
  // What a node that does not lead says of an attempt counts only if it ends its part, or the attempt with it.
  bool Record(Report report, absl::Time now);
  // The wall clock was set, or the machine slept: what is left of leases and delays, and the age of attempts, stay as
  // they are.
  void ClockJumped(absl::Duration by);
  // The server did not run for so long (it was stopped, or its disk hung), and heard nobody: no lease ends by that.
  void StoodStill(absl::Duration duration);
  // Leases that ran out, and placement. Called once a batch and at least twice a second.
  void Tick(absl::Time now);

  // Jobs that are not over.
  const JobTable& jobs() const { return jobs_; }
  const Job* Find(absl::string_view id) const { return jobs_.Find(id); }
  bool IsCurrent(const AttemptId& attempt) const;
  // Not const: what the policy says of the waiting jobs is worked out when it is first asked for.
  WaitReason WhyItWaits(const Job& job, absl::Time now);
  // Every node, and the first `candidates` of the queue. `for_forecast`: and as many of those that wait for others of
  // their sweep to end.
  Snapshot TakeSnapshot(absl::Time now, size_t candidates, bool for_forecast = false) const;
  const Speeds& speeds() const { return speeds_; }
  std::vector<Tenant> tenants() const;
  // One with the default weight and no limits if it was never named.
  Tenant TenantOf(const std::string& id) const;
  // Devices that are guaranteed to tenants, and those of the nodes that take work.
  std::pair<int64_t, int64_t> GuaranteedAndThere() const;
  // What a tenant uses and may use, for people.
  std::string SummaryOf(const std::string& tenant, absl::Time now) const;
  const std::map<std::string, Node>& nodes() const { return nodes_; }

  // Whether there is something since the last Commit() or Rollback() that has to be written or sent.
  bool HasDecided() const;
  Writes TakeWrites();
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }
  void Commit();
  void Rollback();

 private:
  // Everything that changes a job's state goes through here.
  void Apply(const Job& job, JobInput input, const std::string& message, absl::Time now);
  const Job& AddEvent(const Job& job, Event event, absl::Time now);
  void AddNew(Job& job, const JobRequest& request, SpecBytes spec, absl::Time now);
  absl::Status Ask(const std::string& id, JobInput input, const std::vector<JobState>& already,
                   const std::string& message, const std::string& remedy, absl::Time now);
  // How an attempt was lost.
  struct Loss {
    std::string why;
    std::vector<std::string> nodes;  // of which one is the reason: mostly it is known which; none: the server is
    bool crashed = false;            // its trainer died there of itself
    bool missed = false;             // its ranks did not find one another
  };
  // The job waits for another attempt, or has had enough of them.
  void LoseAttempt(const Job& job, const Loss& loss, absl::Time now);
  static Loss LossOf(const Report& report, const Job& job, const std::string& node);
  // The same, by word of a node that may be one of several, or since nothing is heard of it.
  void LoseAttemptOn(const std::string& node, const Job& job, const std::string& why, absl::Time now);
  void LoseAttemptOn(const std::string& node, const Job& job, const Loss& loss, absl::Time now);
  // A report of a node that does not lead.
  bool RecordOfOther(const Job& job, const Report& report, absl::Time now);
  // What becomes of a job that holds devices of a node whose agent is there again, with its attempt or without.
  // `moved`: others reach it by another address than before.
  void GoOnWith(const Job& job, const std::string& node, bool has_it, bool moved, absl::Time now);
  // The node's agent says that no process of the attempt is left there.
  void ForgetProcess(const std::string& node, const std::string& attempt);
  // No process of the attempt is left on a node that does not lead: what it held there is free.
  void EndPart(const Job& job, const std::string& node, absl::Time now);
  // The attempt ends by another node's word: this one is told to stop, and what it uses stays with it until then.
  void StopRest(const Job& job, const Place& place, absl::Time now);
  void ObserveSpeed(const Job& job, double tokens_per_second, absl::Time now);
  // Those of a base model are put back if the batch is not written.
  Speeds& ChangeSpeeds(const std::string& base_model);
  // Of an attempt that holds devices, for all that is known now.
  absl::Time ExpectedEnd(const Job& job) const;
  // Corrects what was charged for devices when the attempt started, which was an estimate.
  void SettleCharge(const Job& job, int devices, absl::Time now);
  // Requires: a state that can be preempted.
  void Preempt(const Job& job, const std::string& why, absl::Time now);
  // Whether something that waits may stop something that runs, for all that can be said without looking closer.
  bool LookForPreemption(absl::Time now);
  // Whether a tenant has jobs waiting and less than is guaranteed to it.
  bool SomeoneWantsItsOwn() const;
  // An attempt of the job died on the node for no reason of the job's.
  void Suspect(const std::string& node, const std::string& job, absl::Time now);
  // Whether the ranks of an attempt that starts found one another, for where others are tried next.
  void NoteMeeting(const Job& job, bool found, absl::Time now);
  // The node may be reached by now.
  void ForgetMissed(const std::string& node);
  // The agent of the node is about to end.
  void StopWhatOthersLead(const std::string& node, absl::Time now);
  void Publish(const Job& job, Report report, absl::Time now);
  void Start(const Decision& decision, absl::Time now);
  void Charge(const std::string& tenant, double device_seconds, absl::Time now);
  Tenant& ChangeTenant(const std::string& id);
  // Counts bytes, below 0 for some that go. What a job that runs has to store is always taken, also beyond the limit of
  // its tenant: only what users add is refused.
  void CountStored(const std::string& tenant, int64_t bytes);
  // RESOURCE_EXHAUSTED if the tenant may not have so many jobs more that wait.
  absl::Status CheckQueue(const std::string& tenant, int64_t jobs) const;
  // RESOURCE_EXHAUSTED if the tenant may not store so much more; above 0.
  absl::Status CheckStorage(const std::string& tenant, int64_t bytes) const;
  // To every node of the current attempt; a checkpoint is the leading one's.
  void Send(Effect::Kind kind, const Job& job);
  // Rank 0 leads.
  void SendTo(int node_rank, Effect::Kind kind, const Job& job);
  std::vector<int> IndicesOf(const std::string& node, const std::vector<int>& devices) const;
  GangPlace GangPlaceOf(const Job& job, int node_rank) const;
  bool Exists(const std::string& resource) const;
  // A model is one tenant's: that of its versions, deleted ones too, and of the jobs that are going to publish some.
  bool IsOfAnother(const std::string& model, const std::string& tenant) const;
  // Errors: FAILED_PRECONDITION while a job that is not over uses it.
  absl::Status CheckUnused(const std::string& resource) const;
  void CancelOverdue(absl::Time now);
  void ExpireLeases(absl::Time now);
  void Schedule(absl::Time now);
  std::vector<NodeView> NodeViews(absl::Time now) const;
  std::map<int64_t, std::map<int64_t, absl::Time>> EndsOfSweeps(absl::Time now) const;
  TenantView ViewOf(const std::string& tenant, absl::Time now) const;

  struct Model {
    std::string tenant;
    int latest = 0;  // version; 0: it has none
  };

  Options options_;
  JobTable jobs_;
  std::map<std::string, Node> nodes_;        // in memory only but for quarantines: agents say what they are
  std::map<std::string, Model> models_;      // that have versions
  std::set<std::string> deleted_versions_;   // names
  std::map<std::string, Stored> resources_;  // by name
  std::set<std::string> drained_;            // nodes
  std::map<std::string, Tenant> tenants_;
  Speeds speeds_;
  std::set<std::string> changed_tenants_;
  // Of the last cycle, by number; none if it decided without looking at each job.
  std::optional<std::map<int64_t, Decision>> decisions_;
  std::map<std::string, std::pair<JobRequest, std::string>> fresh_requests_;  // of this batch: id → request, job
  int64_t last_number_ = 0;
  int epoch_ = 0;          // grows with every restoration from a backup
  bool unsettled_ = true;  // something happened that may let a waiting job start
  absl::Time next_lease_check_ = absl::InfinitePast();
  absl::Time next_preemption_ = absl::InfiniteFuture();  // when more may be preempted for what waits

  Writes writes_;  // without `jobs`, which the table knows
  std::vector<Effect> effects_;
  std::vector<std::function<void()>> undo_;  // of what is not in the table, newest last
};

}  // namespace luthier
