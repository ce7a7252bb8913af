// The server's core, its batches and its real store, what agents decide (worker/agent/core), and users, on virtual
// time: one seed decides every delay, loss, crash and full disk. Everything happens on one thread, so a seed can be run
// again. Simulated are the streams between them, trainers, and what an agent's threads, processes and files do for it.
//
// Messages. A session is a stream: in order, until it breaks; then what was under way to the agent is lost, and what
// was under way to the server may still arrive, after the next session has begun. A user's request or its answer may be
// lost, late or sent twice. The server may crash before and after each commit, its disk may be full, and it may be lost
// and come back from a backup.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "luthier/v1/worker.pb.h"
#include "server/core/batch.h"
#include "server/store/store.h"
#include "tests/simulation/random.h"
#include "tests/support/temp_folder.h"
#include "worker/agent/core/roster.h"

namespace luthier {

inline constexpr int kNodes = 4;
inline constexpr absl::Duration kStorm = absl::Minutes(15);
inline constexpr int kJobsOfASweep = 3, kParallelOfASweep = 2;
inline constexpr int kNodesOfAGang = 2;
inline constexpr int64_t kVersionBytes = 1000, kCheckpointBytesAStep = 10;

class Simulation {
 public:
  explicit Simulation(uint64_t seed);
  ~Simulation();

  // Runs to the end; the first promise that was broken, or empty.
  std::string Run();
  // What happened, newest last, for people.
  const std::vector<std::string>& log() const { return log_; }
  // How much was simulated.
  struct Counts {
    int64_t commits = 0, crashes = 0, breaks = 0, full_disks = 0, restorations = 0, jobs = 0, attempts = 0, gangs = 0,
            lost_peers = 0, preemptions = 0, reclaims = 0, checkpoints = 0, resumptions = 0, absences = 0,
            departures = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  // An attempt, or its part, on a node (tests/simulation/attempt.h).
  class Attempt;
  // What a crash of its agent leaves of an attempt: reports, of which those up to `durable` are on the disk for sure.
  struct Journal {
    int64_t base = 0;  // number before the first
    std::vector<v1::AttemptReport> reports;
    int64_t durable = 0;
    int64_t last() const { return base + static_cast<int64_t>(reports.size()); }
  };
  struct Agent {
    std::string node;
    int devices = 1;
    std::unique_ptr<Roster> roster;  // none: it is down
    int link = 0;                    // 0: none
    bool registered = false;
    int64_t life = 0;                         // grows with every crash: timers of an earlier life do nothing
    std::map<std::string, Journal> journals;  // by attempt
    absl::Time link_since = absl::InfinitePast();
    absl::Time partitioned_until = absl::InfinitePast();
  };
  // A stream between an agent and the server.
  struct Link {
    std::string node;
    int64_t server_life = 0;
    bool broken = false;
    bool lost = false;                              // a message to the server, and with it all behind it
    bool refused = false;                           // a report
    bool registered = false;                        // the server has answered
    std::vector<std::function<void(Agent&)>> held;  // what it sends before that waits behind the answer
    absl::Time to_server, to_agent;                 // when the last message arrives: later ones arrive later
  };
  // What a job is going to do when it runs.
  struct Fate {
    absl::Duration training;
    double crash = 0;         // chance of its trainer to die, at each step
    bool user_error = false;  // its first attempt that gets far enough says so
  };
  // What a user asked for and heard.
  struct Request {
    std::string id;
    std::string body;
    Job job;
    std::string sweep;                        // id; empty: it wants one job
    std::optional<std::string> acknowledged;  // job id, of the first
    int tries = 0;
  };
  // A copy of the record, and what had been committed and heard when it was made.
  struct Backup {
    std::map<std::string, Job> durable;
    std::map<std::string, Writes::CheckpointChange> checkpoints;
    std::map<std::string, absl::Time> cancelled;
    std::set<std::string> failed_by_user;
    std::map<std::string, std::set<std::string>> crashed_on;
    std::set<std::string> acknowledged;  // requests
  };
  struct Timer {
    absl::Time time;
    int64_t order;
    std::function<void()> action;
    bool operator<(const Timer& other) const { return std::tie(time, order) > std::tie(other.time, other.order); }
  };
  using Done = std::function<void(const absl::Status&)>;

  // Time.
  void At(absl::Duration delay, std::function<void()> action);
  void Say(const std::string& text);
  void Violate(const std::string& text);

  // The server.
  void StartServer();
  void AddBaseModel();
  void CrashServer(const std::string& when);
  void Post(Command command, Done done);
  void RunServerBatch();
  absl::Status WriteOrCrash(const Writes& writes, bool& crash_after);
  void RememberCommitted(const Writes& writes);
  void Send(const Effect& effect);
  v1::StartAttempt OrderOf(const Effect& effect);
  int64_t StoredStep(int64_t job);
  void ServerTick();
  absl::Time ServerNow() const { return now_ + clock_; }

  // Agents.
  void StartAgent(Agent& agent);
  void CrashAgent(Agent& agent);
  void EndAgent(Agent& agent);
  void Leave(Agent& agent);
  void WaitForAttempts(Agent& agent, absl::Time until);
  void Tidy(Agent& agent);
  void Dial(Agent& agent);
  void Register(Agent& agent, int link);
  v1::Registered Registered(State& state, const v1::Register& message, absl::Time now);
  void Heartbeat(Agent& agent);
  void SendReports(Agent& agent);
  void ReceiveReport(const v1::AttemptReport& message, int link);
  void OnStop(Agent& agent, const v1::StopAttempt& order);
  bool Reaches(const Agent& agent) const;

  // Streams.
  void Break(Agent& agent);
  void ToServer(Agent& agent, std::function<void()> handle);
  void ToAgent(int link, std::function<void(Agent&)> handle);
  void Order(int link, std::function<void(Agent&)> handle);

  // Users.
  void SubmitLater();
  void Submit(const std::shared_ptr<Request>& request);
  absl::Status Create(State& state, const Request& request, Job& job, absl::Time now);
  void AskSomething();
  void Ask(const std::string& job, const std::string& what);

  // Faults.
  void FaultLater();
  void BackUp();
  void LoseTheRecord();
  void BeginEpoch();

  // Promises.
  void ForEachAttempt(const std::function<void(const Agent&, const Attempt&)>& visit) const;
  void CheckState();
  void CheckAttempts();
  void CheckDevices(const std::vector<const Job*>& jobs);
  void CheckHolders(const std::vector<const Job*>& jobs);
  void CheckPlaces(const Job& job, std::map<std::string, std::set<int>>& taken);
  void CheckCounts(const std::vector<const Job*>& jobs);
  void CheckGangs(const Writes& writes, const std::vector<Effect>& effects);
  bool MustBeTold(const std::string& node, const std::string& attempt) const;
  void CheckDecisions(const Writes& writes);
  bool IsWantedBack(const Job& job, const Writes& writes);
  void CheckBorrower(const Job& job, const Writes& writes);
  void CheckUrgency(const Job& job, const Writes& writes);
  int FreeOn(const std::string& id) const;
  void CheckStorage(const State& state);
  void CheckCheckpoints(const Writes& writes);
  void CheckCancelled();
  void CheckRestart(const State& loaded);
  void CheckRecord();
  bool Settled();
  std::string Unsettled() const;

  Random random_;
  TempFolder folder_;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  std::priority_queue<Timer> timers_;
  int64_t order_ = 0;
  std::vector<std::string> log_;
  std::string violation_;
  Counts counts_;
  bool calm_ = false;  // no faults any more

  std::unique_ptr<Store> store_;
  std::optional<State> state_;  // none: the server is down
  int64_t server_life_ = 0;
  std::vector<Command> commands_;
  std::vector<Done> dones_;
  bool batch_planned_ = false;
  bool disk_full_ = false;
  absl::Time last_full_ = absl::InfinitePast();  // when a commit was last refused for it
  const absl::Duration preempt_after_;
  absl::Duration clock_;  // what the server's clock is ahead
  int64_t turns_ = 0;
  std::map<std::string, int> sessions_;                          // node → link, as the server knows it
  std::map<std::string, Job> durable_;                           // jobs that are not over, as they were last committed
  std::map<std::string, Writes::CheckpointChange> checkpoints_;  // of them, as they were last committed
  std::optional<Backup> backup_;
  int epoch_ = 0;
  bool restored_ = false;  // the server has not started since

  std::map<int, Link> links_;
  int last_link_ = 0;
  std::map<std::string, Agent> agents_;
  std::map<std::string, Fate> fates_;            // by job
  std::set<std::string> trained_;                // attempts whose trainer finished
  std::map<std::string, absl::Time> cancelled_;  // jobs, and when a user heard that they are
  std::set<std::string> failed_by_user_;         // jobs whose report of a user error was recorded
  // Nodes on which a job's trainer died, as far as the server has answered: it may know of more.
  std::map<std::string, std::set<std::string>> crashed_on_;
  std::vector<std::shared_ptr<Request>> requests_;
  // Attempts that hold devices of a node whose agent does not have them (node, attempt), and since when.
  std::map<std::pair<std::string, std::string>, absl::Time> missing_;
};

}  // namespace luthier
