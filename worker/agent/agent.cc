#include "worker/agent/agent.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/steady_now.h"
#include "lib/wire/agent_protocol.h"
#include "worker/agent/trainer_process.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kTidyInterval = absl::Minutes(10);
constexpr absl::Duration kKillPatience = absl::Seconds(10);
constexpr absl::Duration kLeavePoll = absl::Milliseconds(20);

int64_t BytesOf(const std::string& folder) {
  int64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored) && !entry->is_symlink(ignored))
      bytes += static_cast<int64_t>(entry->file_size(ignored));
  }
  return bytes;
}

void Remove(const std::string& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) std::fprintf(stderr, "luthier-worker: cannot remove %s: %s\n", folder.c_str(), error.message().c_str());
}

}  // namespace

Agent::Agent(Options options, const DataFolder& folder, InputCache& cache, ArtifactSink& artifacts,
             AgentMetrics& metrics, const Inventory& inventory)
    : options_(std::move(options)),
      folder_(folder),
      cache_(cache),
      metrics_(metrics),
      inventory_(inventory),
      node_{.folder = folder,
            .cache = cache,
            .artifacts = artifacts,
            .metrics = metrics,
            .trainer = options_.trainer,
            .shared_store = options_.shared_store,
            .inventory = inventory.Read(),
            .max_checkpoint_bytes = options_.max_checkpoint_bytes,
            .checkpoint_bytes_per_second = options_.checkpoint_bytes_per_second,
            .stall_after = options_.stall_after,
            .on_report =
                [this] {
                  options_.wake_session();
                  ObserveBacklog();
                },
            .on_end =
                [this] {
                  ScheduleTidying();
                  options_.heartbeat_now();
                }},
      roster_([this](AttemptPath name, const v1::StartAttempt& order) {
        return std::make_shared<Attempt>(node_, std::move(name), order);
      }) {
  TakeOver();
  tidier_ = std::thread([this] { Tidy(); });
}

Agent::~Agent() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  tidier_.join();
  // Their threads look at the roster until they end.
  for (const auto& attempt : Snapshot()) {
    const std::lock_guard lock(mutex_);
    roster_.Remove(attempt->name().text());
  }
}

// Trainers die with their agent, but this agent may have been started while they were still dying.
void Agent::TakeOver() {
  const absl::Status ended = EndMarkedProcesses(folder_.root() + ":", kKillPatience);
  if (!ended.ok()) std::fprintf(stderr, "luthier-worker: %s\n", std::string(ended.message()).c_str());
  for (const AttemptPath& name : folder_.Attempts()) {
    roster_.TakeOver(std::make_shared<Attempt>(node_, name));
  }
  ListKeptJobs();
  ObserveBacklog();
  metrics_.ObserveCache(cache_.bytes());
}

void Agent::Leave(Session& session, absl::Duration grace, absl::Duration patience) {
  {
    const std::lock_guard lock(mutex_);
    roster_.Leave();
  }
  session.HeartbeatNow();  // before the first attempt ends: the server would give the job to this node again
  for (const auto& attempt : Snapshot()) attempt->Suspend(grace);
  const auto any = [this](auto&& predicate) {
    const Attempts attempts = Snapshot();
    return std::any_of(attempts.begin(), attempts.end(), [&](const auto& attempt) { return predicate(*attempt); });
  };
  // Every attempt ends by itself: its trainer is killed after the grace.
  while (any([](const Attempt& attempt) { return !attempt.done(); })) absl::SleepFor(kLeavePoll);
  const absl::Time deadline = SteadyNow() + patience;
  while (any([](const Attempt& attempt) { return attempt.backlog() > 0; }) && session.connected() &&
         SteadyNow() < deadline) {
    absl::SleepFor(kLeavePoll);
  }
}

// Under the lock instead of on a snapshot: this runs on an attempt's own thread, which must never be its last owner.
void Agent::ObserveBacklog() {
  const std::lock_guard lock(mutex_);
  int64_t reports = 0;
  for (const auto& [name, entry] : roster_.entries()) reports += static_cast<const Attempt&>(*entry).backlog();
  metrics_.ObserveBacklog(reports);
}

// --- The session's threads.

v1::Register Agent::Registration() {
  v1::Register message;
  message.set_node_id(options_.node_id);
  message.set_instance(options_.instance);
  message.set_agent_version(options_.version);
  message.set_shared_store(options_.shared_store);
  message.mutable_labels()->insert(options_.labels.begin(), options_.labels.end());
  message.set_gang_address(options_.gang_address.host);
  message.set_gang_port(options_.gang_address.port);
  message.set_protocol(kAgentProtocol.newest);
  message.set_oldest_protocol(kAgentProtocol.oldest);
  *message.mutable_inventory() = inventory_.Read();
  const std::lock_guard lock(mutex_);
  roster_.Describe(message);
  for (const std::string& job : kept_jobs_) message.add_kept_jobs("jobs/" + job);
  return message;
}

void Agent::OnRegistered(const v1::Registered& registered) {
  std::fprintf(stderr, "luthier-worker: connected as node %s\n", options_.node_id.c_str());
  for (const std::string& attempt : registered.stale_attempts()) {
    std::fprintf(stderr, "luthier-worker: the server has given %s up, or never had it: it is ended\n", attempt.c_str());
  }
  metrics_.ObserveConnected(true);
  const std::lock_guard lock(mutex_);
  roster_.OnRegistered(registered);
  said_break_ = false;
  untidy_ = true;
  changed_.notify_all();
}

void Agent::OnStart(const v1::StartAttempt& order) {
  const std::lock_guard lock(mutex_);
  if (const absl::Status started = roster_.OnStart(order); !started.ok())
    std::fprintf(stderr, "luthier-worker: an order is ignored: %s\n", std::string(started.message()).c_str());
}

void Agent::OnStop(const v1::StopAttempt& order) {
  {
    const std::lock_guard lock(mutex_);
    roster_.OnStop(order);
  }
  options_.wake_session();  // of one that is not here there is something to report
}

void Agent::OnCheckpoint(const v1::CheckpointAttempt& order) {
  const std::lock_guard lock(mutex_);
  roster_.OnCheckpoint(order);
}

void Agent::OnAck(const v1::ReportAck& ack) {
  {
    const std::lock_guard lock(mutex_);
    roster_.OnAck(ack);
    const auto entry = roster_.entries().find(ack.attempt());
    if (ack.job_over() || (entry != roster_.entries().end() && entry->second->settled())) {
      untidy_ = true;
      changed_.notify_all();
    }
  }
  ObserveBacklog();
}

v1::Heartbeat Agent::NextHeartbeat() {
  v1::Heartbeat heartbeat;
  *heartbeat.mutable_inventory() = inventory_.Read();
  metrics_.ObserveInventory(heartbeat.inventory());
  const std::lock_guard lock(mutex_);
  roster_.Describe(heartbeat);
  return heartbeat;
}

// Attempts without the lock: they read their journals.
std::optional<v1::AttemptReport> Agent::NextReport() {
  {
    const std::lock_guard lock(mutex_);
    if (std::optional<v1::AttemptReport> report = roster_.NextOfUnknown()) return report;
  }
  for (const auto& attempt : Snapshot()) {
    if (std::optional<v1::AttemptReport> report = attempt->NextReport()) return report;
  }
  return std::nullopt;
}

void Agent::OnBreak(const std::string& why) {
  metrics_.ObserveConnected(false);
  const std::lock_guard lock(mutex_);
  if (roster_.leaving() || std::exchange(said_break_, true)) return;
  std::fprintf(stderr, "luthier-worker: no session with the server: %s; training goes on, trying again\n", why.c_str());
}

// --- The tidier.

void Agent::Tidy() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, absl::ToChronoMilliseconds(kTidyInterval), [this] { return closed_ || untidy_; });
      if (closed_) return;
      untidy_ = false;
    }
    RemoveSettled();
    RemoveJobsOver();
    RemoveOldRunFolders();
    ListKeptJobs();
  }
}

// The snapshot keeps an attempt alive until the lock is released: its end waits for a thread that may want the lock.
void Agent::RemoveSettled() {
  for (const auto& attempt : Snapshot()) {
    if (!attempt->settled()) continue;
    Remove(folder_.AttemptFolder(attempt->name()));
    {
      const std::lock_guard lock(mutex_);
      roster_.Remove(attempt->name().text());
    }
    const std::string& job = attempt->name().job;
    // Where another node leads, nothing is kept, and nobody will say that the job is over.
    if (std::error_code error; !fs::exists(folder_.RunFolder(job), error)) RemoveJob(job);
  }
}

void Agent::RemoveJobsOver() {
  std::set<std::string> over;
  {
    const std::lock_guard lock(mutex_);
    over = roster_.jobs_over();
  }
  for (const std::string& job : over) {
    if (!RemoveJob(job)) continue;  // its last reports are still to be acknowledged
    const std::lock_guard lock(mutex_);
    roster_.ForgetJobOver(job);
  }
}

void Agent::RemoveOldRunFolders() {
  std::vector<std::pair<std::string, int64_t>> kept;
  int64_t total = 0;
  for (const std::string& job : folder_.JobsWithRunFolder()) {
    kept.emplace_back(job, BytesOf(folder_.JobFolder(job)));
    total += kept.back().second;
  }
  for (const auto& [job, bytes] : kept) {
    if (total <= options_.max_kept_bytes) return;
    if (RemoveJob(job)) total -= bytes;
  }
}

void Agent::ListKeptJobs() {
  std::vector<std::string> jobs = folder_.JobsWithRunFolder();
  const std::lock_guard lock(mutex_);
  kept_jobs_ = std::move(jobs);
}

// False if an attempt of the job is here. The folder gets another name under the lock, so that an attempt which is
// ordered in the meantime begins with a new one.
bool Agent::RemoveJob(const std::string& job) {
  const std::string discarded = folder_.DiscardedFolder() + "/" + job;
  Remove(discarded);
  {
    const std::lock_guard lock(mutex_);
    if (roster_.HasAttemptOf(job)) return false;
    std::error_code error;
    fs::rename(folder_.JobFolder(job), discarded, error);
  }
  Remove(discarded);
  return true;
}

Agent::Attempts Agent::Snapshot() const {
  const std::lock_guard lock(mutex_);
  Attempts attempts;
  for (const auto& [name, entry] : roster_.entries()) attempts.push_back(std::static_pointer_cast<Attempt>(entry));
  return attempts;
}

void Agent::ScheduleTidying() {
  const std::lock_guard lock(mutex_);
  untidy_ = true;
  changed_.notify_all();
}

}  // namespace luthier
