#include "server/store/store.h"

#include <SQLiteCpp/Backup.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "server/core/reason.h"
#include "server/store/connection.h"
#include "server/store/migrations.h"
#include "server/store/store_error.h"

namespace luthier {

int64_t ToMicros(absl::Time time) { return absl::ToUnixMicros(time); }

// ToUnixMicros saturates for "never", which has to come back as itself.
absl::Time FromMicros(int64_t micros) {
  if (micros == std::numeric_limits<int64_t>::min()) return absl::InfinitePast();
  return micros == std::numeric_limits<int64_t>::max() ? absl::InfiniteFuture() : absl::FromUnixMicros(micros);
}

namespace {

// The last kAttemptColumns say something only once a job has had an attempt. Before, they are not read: a restart reads
// a million queued jobs.
constexpr char kJobColumns[] =
    "number, id, base_model, datasets, model, devices, cpu_memory_bytes, gpu_memory_bytes, node_selector, create_time, "
    "state, attempt, end_time, last_event, tenant, "
    "service_class, "
    "priority, estimate, revision, retention, deadline, sweep, max_parallel, "
    "lost_attempts, node, held, not_before, start_time, model_version, last_report, report, attempt_start, "
    "preemptions, lost_here, crashed_on, stored_step";
constexpr int kAttemptColumns = 13;
// What ReadRecordedJob() reads after the columns of the job, and the tables that have it.
constexpr char kSpecColumns[] = "spec, labels, bytes";
constexpr char kSpecTables[] = "job_specs LEFT JOIN plans ON plan_number = plan";
// What ReadRecordedJob() reads, of the job that a condition names.
std::string RecordedJobWhere(absl::string_view condition) {
  return absl::StrCat("SELECT ", kJobColumns, ", ", kSpecColumns, " FROM jobs JOIN ", kSpecTables,
                      " WHERE job = number AND ", condition);
}
// A request and the number of the job that it created; a job has an `id` as well.
constexpr char kRequest[] = "SELECT body_sha256, job AS created FROM requests WHERE id = ?";

// Pages in the log (32 MB) at which a commit also brings them into the database. Every call waits for such a commit,
// tens of milliseconds: with SQLite's default of 1,000 that happened five times a second under load. A thread of its
// own cannot do it: see the head of store.h.
constexpr int kLogPages = 8000;

std::optional<int64_t> DeadlineMicros(absl::Time deadline) {
  return deadline == absl::InfiniteFuture() ? std::nullopt : std::optional(absl::ToUnixMicros(deadline));
}

std::optional<int64_t> RetentionMicros(const std::optional<absl::Duration>& duration) {
  return duration ? std::optional(absl::ToInt64Microseconds(*duration)) : std::nullopt;
}

const char* Table(ResourceKind kind) { return kind == ResourceKind::kDataset ? "datasets" : "base_models"; }

// Files from before the first migration had its present form, when jobs had no numbers.
bool HasEarlySchema(SQLite::Database& database) {
  return database.tableExists("jobs") &&
         database.execAndGet("SELECT count(*) FROM pragma_table_info('jobs') WHERE name = 'number'").getInt() == 0;
}

void Migrate(SQLite::Database& database) {
  const int version = database.execAndGet("PRAGMA user_version").getInt();
  for (int next = version; next < static_cast<int>(std::size(kMigrations)); ++next) {
    SQLite::Transaction transaction(database);
    database.exec(kMigrations[next]);
    database.exec(absl::StrCat("PRAGMA user_version = ", next + 1));
    transaction.commit();
  }
}

std::vector<int> ParseDevices(const std::string& text) {
  std::vector<int> devices;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    int device = 0;
    if (absl::SimpleAtoi(part, &device)) devices.push_back(device);
  }
  return devices;
}

// A `?` for each of kJobColumns.
std::string JobValues() {
  std::string values = "?";
  for (const char c : kJobColumns) values += c == ',' ? ", ?" : "";
  return values;
}

// A changed job rewrites its row but not the columns that never change, nor their index.
void WriteJob(Connection& connection, const Job& job, bool is_new) {
  const std::string held = absl::StrJoin(job.held, ","), crashed_on = absl::StrJoin(job.crashed_on, ",");
  const int64_t state = static_cast<int64_t>(job.state);
  if (is_new) {
    static const std::string sql = absl::StrCat("INSERT INTO jobs (", kJobColumns, ") VALUES (", JobValues(), ")");
    connection.Prepare(sql)
        .Bind(job.number, job.id, job.base_model, job.datasets, job.model, int64_t{job.devices}, job.cpu_memory_bytes,
              job.gpu_memory_bytes, job.node_selector, job.create_time, state, int64_t{job.attempt}, job.end_time,
              job.last_event, job.tenant, static_cast<int64_t>(job.service_class), int64_t{job.priority},
              absl::ToInt64Microseconds(job.estimate), int64_t{job.revision}, RetentionMicros(job.retention),
              DeadlineMicros(job.deadline), job.sweep, int64_t{job.max_parallel}, int64_t{job.lost_attempts}, job.node,
              held, job.not_before, job.start_time, job.model_version, job.last_report, Bytes{job.report},
              job.attempt_start, int64_t{job.preemptions}, int64_t{job.lost_here}, crashed_on, job.stored_step)
        .Run();
    return;
  }
  connection
      .Prepare(
          "UPDATE jobs SET state = ?, attempt = ?, lost_attempts = ?, node = ?, held = ?, not_before = ?, start_time = "
          "?, "
          "end_time = ?, model_version = ?, last_event = ?, last_report = ?, report = ?, priority = ?, attempt_start = "
          "?, "
          "preemptions = ?, lost_here = ?, crashed_on = ?, stored_step = ?, revision = ?, retention = ?, deadline = ?, "
          "expired = 0 WHERE number = ?")
      .Bind(state, int64_t{job.attempt}, int64_t{job.lost_attempts}, job.node, held, job.not_before, job.start_time,
            job.end_time, job.model_version, job.last_event, job.last_report, Bytes{job.report}, int64_t{job.priority},
            job.attempt_start, int64_t{job.preemptions}, int64_t{job.lost_here}, crashed_on, job.stored_step,
            int64_t{job.revision}, RetentionMicros(job.retention), DeadlineMicros(job.deadline), job.number)
      .Run();
}

Job ReadJob(Query& row) {
  Job job;
  job.number = row.Int();
  for (std::string* text : {&job.id, &job.base_model, &job.datasets, &job.model}) *text = row.Text();
  job.devices = static_cast<int>(row.Int());
  for (int64_t* bytes : {&job.cpu_memory_bytes, &job.gpu_memory_bytes}) *bytes = row.Int();
  job.node_selector = row.Text();
  job.create_time = row.Time();
  job.state = static_cast<JobState>(row.Int());
  job.attempt = static_cast<int>(row.Int());
  job.end_time = row.Time();
  job.last_event = row.Int();
  job.tenant = row.Text();
  job.service_class = static_cast<ServiceClass>(row.Int());
  job.priority = static_cast<int>(row.Int());
  job.estimate = absl::Microseconds(row.Int());
  job.revision = static_cast<int>(row.Int());
  if (!row.TakeNull()) job.retention = absl::Microseconds(row.Int());
  if (!row.TakeNull()) job.deadline = row.Time();
  job.sweep = row.Int();
  job.max_parallel = static_cast<int>(row.Int());
  if (job.attempt == 0) {
    row.Skip(kAttemptColumns);
    return job;
  }
  job.lost_attempts = static_cast<int>(row.Int());
  job.node = row.Text();
  job.held = ParseDevices(row.Text());
  for (absl::Time* time : {&job.not_before, &job.start_time}) *time = row.Time();
  job.model_version = row.Text();
  job.last_report = row.Int();
  job.report = row.Blob();
  job.attempt_start = row.Time();
  job.preemptions = static_cast<int>(row.Int());
  job.lost_here = static_cast<int>(row.Int());
  job.crashed_on = absl::StrSplit(row.Text(), ',', absl::SkipEmpty());
  job.stored_step = row.Int();
  return job;
}

std::shared_ptr<const std::string> ReadPlan(Query& row) {
  return row.TakeNull() ? nullptr : std::make_shared<const std::string>(row.Blob());
}

// The jobs that `sql` selects between two numbers. Reading a million of them takes two seconds and indexing them one:
// the newer half is read beside the older one, on a connection of its own.
void LoadJobs(Connection& connection, const std::string& path, const std::string& sql, int64_t last, State& state,
              absl::Time now) {
  const int64_t middle = last / 2;
  std::future<std::vector<std::unique_ptr<Job>>> newer = std::async(std::launch::async, [&] {
    Connection other(path, SQLite::OPEN_READONLY);
    Query rows = other.Prepare(sql);
    rows.Bind(middle + 1, last);
    std::vector<std::unique_ptr<Job>> jobs;
    while (rows.Step()) jobs.push_back(std::make_unique<Job>(ReadJob(rows)));
    return jobs;
  });
  Query rows = connection.Prepare(sql);
  rows.Bind(int64_t{0}, middle);
  while (rows.Step()) state.LoadJob(std::make_unique<Job>(ReadJob(rows)), now);
  for (std::unique_ptr<Job>& job : newer.get()) state.LoadJob(std::move(job), now);
}

RecordedJob ReadRecordedJob(Query& row) {
  RecordedJob recorded{ReadJob(row), {}, std::nullopt};
  recorded.spec.own = row.Blob();
  if (!row.TakeNull()) recorded.labels = row.Blob();
  recorded.spec.plan = ReadPlan(row);
  return recorded;
}

Sweep ReadSweep(Query& row) {
  Sweep sweep;
  sweep.id = row.Text();
  sweep.tenant = row.Text();
  sweep.first_job = row.Int();
  sweep.jobs = static_cast<int>(row.Int());
  sweep.create_time = row.Time();
  sweep.payload = row.Blob();
  return sweep;
}

Resource ReadResource(Query& row) {
  Resource resource;
  resource.id = row.Text();
  resource.create_time = row.Time();
  resource.payload = row.Blob();
  return resource;
}

// Numbers of the states of a job that is not over.
std::string LiveStates() {
  std::vector<int> states;
  for (const JobState state : kAllStates) {
    if (!IsTerminal(state)) states.push_back(static_cast<int>(state));
  }
  return absl::StrJoin(states, ",");
}

void WriteResource(Connection& connection, const Writes::ResourceChange& change) {
  if (!change.resource) {
    connection.Prepare(absl::StrCat("DELETE FROM ", Table(change.kind), " WHERE id = ?")).Bind(change.id).Run();
    return;
  }
  connection.Prepare(absl::StrCat("INSERT INTO ", Table(change.kind), " VALUES (?, ?, ?)"))
      .Bind(change.id, change.resource->create_time, Bytes{change.resource->payload})
      .Run();
}

void WriteAlias(Connection& connection, const Alias& alias) {
  if (alias.version == 0) {
    connection.Prepare("DELETE FROM model_aliases WHERE model = ? AND name = ?").Bind(alias.model, alias.name).Run();
  } else {
    connection.Prepare("REPLACE INTO model_aliases VALUES (?, ?, ?)")
        .Bind(alias.model, alias.name, int64_t{alias.version})
        .Run();
  }
}

void WriteQuarantine(Connection& connection, const Quarantine& quarantine) {
  if (quarantine.end == absl::InfinitePast()) {
    connection.Prepare("DELETE FROM quarantined_nodes WHERE id = ?").Bind(quarantine.node).Run();
  } else {
    const std::string jobs = absl::StrJoin(quarantine.jobs, ",");
    connection.Prepare("REPLACE INTO quarantined_nodes VALUES (?, ?, ?)")
        .Bind(quarantine.node, jobs, quarantine.end)
        .Run();
  }
}

void WriteCheckpoint(Connection& connection, const Writes::CheckpointChange& change) {
  if (!change.payload) {
    connection.Prepare("DELETE FROM checkpoints WHERE job = ?").Bind(change.job).Run();
  } else {
    connection.Prepare("REPLACE INTO checkpoints VALUES (?, ?, ?, ?)")
        .Bind(change.job, int64_t{change.attempt}, change.step, Bytes{*change.payload})
        .Run();
  }
}

constexpr int64_t kNoNumber = std::numeric_limits<int64_t>::max();

// First and last number that a list looks at: a filter that matches little must not walk through a million jobs while
// other calls wait for the reader.
std::pair<int64_t, int64_t> NumbersToLookAt(const JobQuery& wanted, int64_t newest) {
  const JobQuery any;
  const bool bounded = !wanted.tenant.empty() || !wanted.of_tenant.empty() || !wanted.base_model.empty() ||
                       !wanted.model.empty() || wanted.created_from != any.created_from ||
                       wanted.created_before != any.created_before || wanted.ended_from != any.ended_from ||
                       wanted.ended_before != any.ended_before;
  if (wanted.oldest_first) {
    const int64_t last = wanted.cursor + Store::kListWindow;
    return {wanted.cursor + 1, bounded && last < newest ? last : kNoNumber};
  }
  const int64_t last = wanted.cursor > 0 ? wanted.cursor - 1 : newest;
  return {bounded && last > Store::kListWindow ? last - Store::kListWindow + 1 : 0, last};
}

// What a history is without: it goes first where a job made much of it.
void ExpireEvents(Connection& connection, int64_t job) {
  const int deleted =
      connection
          .Prepare(
              "DELETE FROM events WHERE job = ?1 AND sequence IN (SELECT sequence FROM events WHERE job = ?1 "
              "AND type NOT IN ('state', 'evaluation', 'failed', 'published') LIMIT ?2)")
          .Bind(job, int64_t{Store::kExpiredEvents})
          .Run();
  if (deleted == Store::kExpiredEvents) return;
  connection.Prepare("UPDATE jobs SET expired = 1 WHERE number = ?").Bind(job).Run();
}

// The number of the row that holds it, which is made if there is none.
int64_t PlanNumber(Connection& connection, const std::string& plan) {
  const std::string sha256 = Sha256Hex(plan);
  connection.Prepare("INSERT OR IGNORE INTO plans (sha256, bytes) VALUES (?, ?)").Bind(sha256, Bytes{plan}).Run();
  Query query = connection.Prepare("SELECT plan_number FROM plans WHERE sha256 = ?");
  query.Bind(sha256).Step();
  return query.Int();
}

void WriteNewJobs(Connection& connection, const std::vector<Writes::NewJob>& jobs) {
  std::map<const std::string*, int64_t> plans;  // a batch mostly has one
  for (const Writes::NewJob& job : jobs) {
    std::optional<int64_t> plan;
    if (job.spec.plan != nullptr) {
      const auto [known, first] = plans.try_emplace(job.spec.plan.get());
      if (first) known->second = PlanNumber(connection, *job.spec.plan);
      plan = known->second;
    }
    connection.Prepare("INSERT INTO job_specs (job, spec, plan) VALUES (?, ?, ?)")
        .Bind(job.number, Bytes{job.spec.own}, plan)
        .Run();
    if (job.request.id.empty()) continue;
    connection.Prepare("INSERT INTO requests VALUES (?, ?, ?)")
        .Bind(job.request.id, job.request.body_sha256, job.number)
        .Run();
  }
}

void WriteAll(Connection& connection, const Writes& writes) {
  std::set<int64_t> added;
  for (const Writes::NewJob& job : writes.new_jobs) added.insert(job.number);
  for (const Job& job : writes.jobs) WriteJob(connection, job, added.count(job.number) > 0);
  WriteNewJobs(connection, writes.new_jobs);
  for (const Sweep& sweep : writes.sweeps) {
    connection.Prepare("INSERT INTO sweeps VALUES (?, ?, ?, ?, ?, ?)")
        .Bind(sweep.id, sweep.tenant, sweep.first_job, int64_t{sweep.jobs}, sweep.create_time, Bytes{sweep.payload})
        .Run();
  }
  for (const Writes::LabelChange& change : writes.labels) {
    connection.Prepare("UPDATE job_specs SET labels = ? WHERE job = ?").Bind(Bytes{change.labels}, change.number).Run();
  }
  for (const Event& event : writes.events) {
    connection.Prepare("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .Bind(event.job, event.sequence, event.time, int64_t{event.attempt}, event.type, event.message,
              int64_t{event.state}, Bytes{event.payload})
        .Run();
  }
  for (const Writes::CheckpointChange& change : writes.checkpoints) WriteCheckpoint(connection, change);
  for (const int64_t job : writes.expired) ExpireEvents(connection, job);
  for (const ModelVersion& version : writes.versions) {
    connection.Prepare("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)")
        .Bind(version.model, int64_t{version.version}, version.job, int64_t{version.attempt}, version.base_model,
              version.create_time, Bytes{version.payload}, version.tenant)
        .Run();
  }
  for (const auto& [model, version] : writes.deleted_versions) {
    connection.Prepare("UPDATE model_versions SET deleted = 1, payload = x'' WHERE model = ? AND version = ?")
        .Bind(model, int64_t{version})
        .Run();
  }
  for (const Writes::ResourceChange& change : writes.resources) WriteResource(connection, change);
  for (const Tenant& tenant : writes.tenants) {
    connection.Prepare("REPLACE INTO tenants VALUES (?, ?, ?, ?, ?, ?)")
        .Bind(tenant.id, tenant.weight, int64_t{tenant.max_devices}, tenant.max_queued_jobs, tenant.usage,
              tenant.usage_time)
        .Run();
  }
  for (const auto& [node, drained] : writes.drained) {
    connection.Prepare(drained ? "REPLACE INTO drained_nodes VALUES (?)" : "DELETE FROM drained_nodes WHERE id = ?")
        .Bind(node)
        .Run();
  }
  for (const Quarantine& quarantine : writes.quarantines) WriteQuarantine(connection, quarantine);
  for (const Alias& alias : writes.aliases) WriteAlias(connection, alias);
  for (const Token& token : writes.tokens) {
    connection.Prepare("REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .Bind(token.id, token.sha256, static_cast<int64_t>(token.role), token.tenant, token.create_time,
              token.expire_time, token.revoke_time, token.node)
        .Run();
  }
  if (writes.epoch)
    connection.Prepare("INSERT INTO epochs VALUES (?, ?)")
        .Bind(int64_t{writes.epoch->first}, writes.epoch->second)
        .Run();
}

}  // namespace

Store::Store(int lock, std::string path, std::unique_ptr<Connection> writer, std::unique_ptr<Connection> reader)
    : lock_(lock), path_(std::move(path)), writer_(std::move(writer)), reader_(std::move(reader)) {}

Store::~Store() {
  reader_.reset();  // the last connection that closes checkpoints, and that must be the writer
  writer_.reset();
  close(lock_);
}

std::string Store::SqliteVersion() { return sqlite3_libversion(); }

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& data_dir) {
  const std::string lock_path = data_dir + "/lock";
  const int lock = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write to the data folder ", data_dir));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    close(lock);
    return absl::FailedPreconditionError(absl::StrCat("another luthierd uses the data folder ", data_dir,
                                                      "; stop it, or give this one another --data-dir"));
  }
  const std::string path = data_dir + "/luthier.db";
  try {
    auto writer = std::make_unique<Connection>(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    writer->database().exec(absl::StrCat(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = ",
        kLogPages));
    if (writer->database().execAndGet("PRAGMA user_version").getInt() > static_cast<int>(std::size(kMigrations))) {
      close(lock);
      return absl::FailedPreconditionError(
          absl::StrCat(path, " was written by a newer luthierd; start that version again"));
    }
    if (HasEarlySchema(writer->database())) {
      close(lock);
      return absl::FailedPreconditionError(
          absl::StrCat(path,
                       " was written by an early development version, whose tables cannot be "
                       "read; start with another --data-dir, or remove this folder"));
    }
    Migrate(writer->database());
    auto reader = std::make_unique<Connection>(path, SQLite::OPEN_READONLY);
    return std::unique_ptr<Store>(new Store(lock, path, std::move(writer), std::move(reader)));
  } catch (const SQLite::Exception& error) {
    close(lock);
    const absl::Status status = StoreError(error);
    return absl::Status(status.code(), absl::StrCat(path, " cannot be opened: ", status.message()));
  }
}

absl::Status Store::Commit(const Writes& writes) {
  return Guard([&] {
    SQLite::Transaction transaction(writer_->database(), SQLite::TransactionBehavior::IMMEDIATE);
    WriteAll(*writer_, writes);
    transaction.commit();
    return absl::OkStatus();
  });
}

// A reader that stays makes every commit add to the log: pages can go into the database only once nobody needs what was
// there before.
absl::Status Store::EmptyLog() {
  return Guard([&]() -> absl::Status {
    sqlite3* const database = writer_->database().getHandle();
    sqlite3_busy_timeout(database, 0);
    const int code = sqlite3_wal_checkpoint_v2(database, nullptr, SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
    sqlite3_busy_timeout(database, Connection::kBusyMilliseconds);
    if (code != SQLITE_OK && code != SQLITE_BUSY) throw SQLite::Exception(database, code);
    return absl::OkStatus();
  });
}

int64_t Store::LogBytes() const {
  std::error_code none;
  const auto size = std::filesystem::file_size(path_ + "-wal", none);
  return none ? 0 : static_cast<int64_t>(size);
}

absl::StatusOr<State> Store::LoadState(absl::Time now, State::Options options) {
  return Guard([&]() -> absl::StatusOr<State> {
    State state(options);
    Query last = writer_->Prepare("SELECT ifnull(max(number), 0) FROM jobs");
    if (last.Step()) state.LoadLastNumber(last.Int());
    int64_t live = 0, over = 0;
    Query counts = writer_->Prepare("SELECT state, count(*) FROM jobs GROUP BY state");
    while (counts.Step()) {
      const auto of = static_cast<JobState>(counts.Int());
      const int64_t count = counts.Int();
      (IsTerminal(of) ? over : live) += count;
      if (IsTerminal(of)) state.LoadFinished(of, count);
    }
    state.Reserve(static_cast<size_t>(live));
    // The index is for the few among many; where most are wanted, one walk through the table takes half the time.
    const std::string jobs = absl::StrCat("SELECT ", kJobColumns, " FROM jobs", live > over ? " NOT INDEXED" : "",
                                          " WHERE state IN (", LiveStates(), ") AND number BETWEEN ? AND ?");
    LoadJobs(*writer_, path_, jobs, state.last_number(), state, now);
    // With max(), SQLite takes the other columns from the row that has it.
    Query latest = writer_->Prepare("SELECT model, max(version), tenant FROM model_versions GROUP BY model");
    while (latest.Step()) {
      const std::string model = latest.Text();
      const int version = static_cast<int>(latest.Int());
      state.LoadVersion(model, version, latest.Text());
    }
    Query deleted = writer_->Prepare("SELECT model, version FROM model_versions WHERE deleted = 1");
    while (deleted.Step()) {
      const std::string model = deleted.Text();
      state.LoadDeletedVersion(NameOfVersion(model, static_cast<int>(deleted.Int())));
    }
    Query tenants = writer_->Prepare("SELECT id, weight, max_devices, max_queued_jobs, usage, usage_time FROM tenants");
    while (tenants.Step()) {
      Tenant tenant{.id = tenants.Text()};
      tenant.weight = tenants.Real();
      tenant.max_devices = static_cast<int>(tenants.Int());
      tenant.max_queued_jobs = tenants.Int();
      tenant.usage = tenants.Real();
      tenant.usage_time = tenants.Time();
      state.LoadTenant(std::move(tenant));
    }
    Query epoch = writer_->Prepare("SELECT ifnull(max(number), 0) FROM epochs");
    if (epoch.Step()) state.LoadEpoch(static_cast<int>(epoch.Int()));
    Query drained = writer_->Prepare("SELECT id FROM drained_nodes");
    while (drained.Step()) state.LoadDrained(drained.Text());
    Query quarantined = writer_->Prepare("SELECT id, jobs, end_time FROM quarantined_nodes");
    while (quarantined.Step()) {
      Quarantine quarantine{.node = quarantined.Text()};
      quarantine.jobs = absl::StrSplit(quarantined.Text(), ',', absl::SkipEmpty());
      quarantine.end = quarantined.Time();
      state.LoadQuarantine(quarantine, now);
    }
    for (const ResourceKind kind : {ResourceKind::kDataset, ResourceKind::kBaseModel}) {
      Query ids = writer_->Prepare(absl::StrCat("SELECT id FROM ", Table(kind)));
      while (ids.Step()) state.LoadResource(kind, ids.Text());
    }
    return state;
  });
}

absl::StatusOr<std::optional<std::pair<JobRequest, Job>>> Store::FindRequest(const std::string& id) {
  return Guard([&]() -> absl::StatusOr<std::optional<std::pair<JobRequest, Job>>> {
    static const std::string sql =
        absl::StrCat("SELECT body_sha256, ", kJobColumns, " FROM (", kRequest, ") JOIN jobs ON number = created");
    Query query = writer_->Prepare(sql);
    if (!query.Bind(id).Step()) return std::nullopt;
    const JobRequest request{id, query.Text()};
    return std::make_pair(request, ReadJob(query));
  });
}

absl::StatusOr<std::optional<Job>> Store::FindJob(const std::string& id) {
  return Guard([&]() -> absl::StatusOr<std::optional<Job>> {
    static const std::string sql = absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE id = ?");
    Query query = writer_->Prepare(sql);
    if (!query.Bind(id).Step()) return std::nullopt;
    return ReadJob(query);
  });
}

absl::StatusOr<SpecBytes> Store::Spec(int64_t job) {
  return Guard([&]() -> absl::StatusOr<SpecBytes> {
    Query query = writer_->Prepare(absl::StrCat("SELECT spec, bytes FROM ", kSpecTables, " WHERE job = ?"));
    if (!query.Bind(job).Step()) return absl::NotFoundError(absl::StrCat("job number ", job, " has no spec"));
    SpecBytes spec{.own = query.Blob()};
    spec.plan = ReadPlan(query);
    return spec;
  });
}

absl::StatusOr<std::string> Store::Checkpoint(int64_t job) {
  return Guard([&]() -> absl::StatusOr<std::string> {
    Query query = writer_->Prepare("SELECT payload FROM checkpoints WHERE job = ?");
    if (!query.Bind(job).Step()) return absl::NotFoundError(absl::StrCat("job number ", job, " has no checkpoint"));
    return query.Blob();
  });
}

absl::StatusOr<std::vector<std::string>> Store::Checkpoints() {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<std::string>> {
    Query query = reader_->Prepare("SELECT payload FROM checkpoints ORDER BY job");
    std::vector<std::string> payloads;
    while (query.Step()) payloads.push_back(query.Blob());
    return payloads;
  });
}

absl::StatusOr<RecordedJob> Store::GetJob(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<RecordedJob> {
    Query query = reader_->Prepare(RecordedJobWhere("id = ?"));
    if (!query.Bind(id).Step()) return DoesNotExist("jobs/" + id);
    return ReadRecordedJob(query);
  });
}

absl::StatusOr<JobPage> Store::ListJobs(const JobQuery& wanted) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<JobPage> {
    Query newest = reader_->Prepare("SELECT ifnull(max(number), 0) FROM jobs");
    const auto [low, high] = NumbersToLookAt(wanted, newest.Step() ? newest.Int() : 0);
    // One descent of the index for each state: a sort of all jobs in several states would touch every one of them.
    std::vector<int64_t> numbers;
    std::set<JobState> states = wanted.states;
    if (states.empty()) states.insert(JobState(0));  // any
    for (const JobState state : states) {
      Query query = reader_->Prepare(absl::StrCat(
          "SELECT number FROM jobs WHERE ", wanted.states.empty() ? "0 = ?" : "state = ?",
          " AND number BETWEEN ? AND ? AND ? IN ('', tenant) AND ? IN ('', tenant) AND ? IN ('', base_model) "
          "AND ? IN ('', model) AND create_time >= ? AND create_time < ? AND end_time >= ? AND end_time < ? "
          "ORDER BY number ",
          wanted.oldest_first ? "ASC" : "DESC", " LIMIT ?"));
      query.Bind(static_cast<int64_t>(state), low, high, wanted.tenant, wanted.of_tenant, wanted.base_model,
                 wanted.model, wanted.created_from, wanted.created_before, wanted.ended_from, wanted.ended_before,
                 int64_t{wanted.limit} + 1);
      while (query.Step()) numbers.push_back(query.Int());
    }
    std::sort(numbers.begin(), numbers.end());
    if (!wanted.oldest_first) std::reverse(numbers.begin(), numbers.end());
    JobPage page;
    if (static_cast<int>(numbers.size()) > wanted.limit) {
      numbers.resize(static_cast<size_t>(wanted.limit));
      page.next = numbers.back();
    } else if (wanted.oldest_first ? high < kNoNumber : low > 0) {
      page.next = wanted.oldest_first ? high : low;
    }
    for (const int64_t number : numbers) {
      Query query = reader_->Prepare(RecordedJobWhere("number = ?"));
      if (query.Bind(number).Step()) page.jobs.push_back(ReadRecordedJob(query));
    }
    return page;
  });
}

absl::StatusOr<std::optional<std::pair<JobRequest, RecordedJob>>> Store::ReplayedRequest(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::optional<std::pair<JobRequest, RecordedJob>>> {
    Query query =
        reader_->Prepare(absl::StrCat("SELECT body_sha256, ", kJobColumns, ", ", kSpecColumns, " FROM (", kRequest,
                                      ") JOIN jobs ON number = created JOIN ", kSpecTables, " WHERE job = number"));
    if (!query.Bind(id).Step()) return std::nullopt;
    const JobRequest request{id, query.Text()};
    return std::make_pair(request, ReadRecordedJob(query));
  });
}

absl::StatusOr<std::vector<Job>> Store::JobsToExpire(absl::Duration retention, absl::Time now, int limit) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Job>> {
    Query query = reader_->Prepare(absl::StrCat("SELECT ", kJobColumns,
                                                " FROM jobs WHERE end_time > 0 AND expired = 0 AND end_time <= ? - "
                                                "ifnull(retention, ?) ORDER BY end_time LIMIT ?"));
    query.Bind(now, absl::ToInt64Microseconds(retention), int64_t{limit});
    std::vector<Job> jobs;
    while (query.Step()) jobs.push_back(ReadJob(query));
    return jobs;
  });
}

absl::StatusOr<Sweep> Store::GetSweep(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<Sweep> {
    Query query = reader_->Prepare("SELECT id, tenant, first_job, jobs, create_time, payload FROM sweeps WHERE id = ?");
    if (!query.Bind(id).Step()) return DoesNotExist("sweeps/" + id);
    return ReadSweep(query);
  });
}

absl::StatusOr<std::vector<Sweep>> Store::ListSweeps(const std::string& tenant, int64_t before, int limit) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Sweep>> {
    Query query = reader_->Prepare(
        "SELECT id, tenant, first_job, jobs, create_time, payload FROM sweeps WHERE (?1 = '' OR tenant = ?1) "
        "AND (?2 = 0 OR first_job < ?2) ORDER BY first_job DESC LIMIT ?3");
    query.Bind(tenant, before, int64_t{limit});
    std::vector<Sweep> sweeps;
    while (query.Step()) sweeps.push_back(ReadSweep(query));
    return sweeps;
  });
}

absl::StatusOr<std::vector<Job>> Store::JobsOf(const Sweep& sweep) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Job>> {
    Query query = reader_->Prepare(
        absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE number >= ? AND number < ? ORDER BY number"));
    query.Bind(sweep.first_job, sweep.first_job + sweep.jobs);
    std::vector<Job> jobs;
    while (query.Step()) jobs.push_back(ReadJob(query));
    return jobs;
  });
}

absl::StatusOr<std::map<JobState, int64_t>> Store::CountJobsOf(const Sweep& sweep) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::map<JobState, int64_t>> {
    Query query = reader_->Prepare("SELECT state, count(*) FROM jobs WHERE number >= ? AND number < ? GROUP BY state");
    query.Bind(sweep.first_job, sweep.first_job + sweep.jobs);
    std::map<JobState, int64_t> counts;
    while (query.Step()) {
      const auto state = static_cast<JobState>(query.Int());
      counts[state] = query.Int();
    }
    return counts;
  });
}

absl::StatusOr<std::vector<Event>> Store::Events(int64_t job, int64_t after, int limit,
                                                 const std::vector<std::string>& types) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Event>> {
    std::string sql =
        "SELECT sequence, time, attempt, type, message, state, payload FROM events WHERE job = ? AND sequence > ?";
    for (size_t i = 0; i < types.size(); ++i) absl::StrAppend(&sql, i == 0 ? " AND type IN (?" : ", ?");
    absl::StrAppend(&sql, types.empty() ? "" : ")", " ORDER BY sequence LIMIT ?");
    Query query = reader_->Prepare(sql);
    query.Bind(job, after);
    for (const std::string& type : types) query.Add(type);
    query.Add(int64_t{limit});
    std::vector<Event> events;
    while (query.Step()) {
      Event event{.job = job};
      event.sequence = query.Int();
      event.time = query.Time();
      event.attempt = static_cast<int>(query.Int());
      event.type = query.Text();
      event.message = query.Text();
      event.state = static_cast<int>(query.Int());
      event.payload = query.Blob();
      events.push_back(std::move(event));
    }
    return events;
  });
}

absl::StatusOr<int64_t> Store::CursorBefore(int64_t job, const std::string& type, int64_t lines) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<int64_t> {
    Query query = reader_->Prepare(
        "SELECT sequence FROM events WHERE job = ? AND type = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?");
    return query.Bind(job, type, lines).Step() ? query.Int() : 0;
  });
}

absl::StatusOr<std::vector<ModelVersion>> Store::Versions(const std::string& model) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<ModelVersion>> {
    Query query = reader_->Prepare(
        "SELECT model, version, job, attempt, base_model, create_time, payload, tenant FROM model_versions "
        "WHERE (?1 = '' OR model = ?1) AND deleted = 0 ORDER BY create_time DESC, version DESC");
    query.Bind(model);
    std::vector<ModelVersion> versions;
    while (query.Step()) {
      ModelVersion version{.model = query.Text()};
      version.version = static_cast<int>(query.Int());
      version.job = query.Text();
      version.attempt = static_cast<int>(query.Int());
      version.base_model = query.Text();
      version.create_time = query.Time();
      version.payload = query.Blob();
      version.tenant = query.Text();
      versions.push_back(std::move(version));
    }
    return versions;
  });
}

absl::StatusOr<std::vector<Alias>> Store::Aliases(const std::string& model) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Alias>> {
    Query query = reader_->Prepare("SELECT name, version FROM model_aliases WHERE model = ? ORDER BY name");
    query.Bind(model);
    std::vector<Alias> aliases;
    while (query.Step()) {
      Alias alias{.model = model, .name = query.Text()};
      alias.version = static_cast<int>(query.Int());
      aliases.push_back(std::move(alias));
    }
    return aliases;
  });
}

absl::StatusOr<std::vector<Resource>> Store::ListResources(ResourceKind kind) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Resource>> {
    Query query = reader_->Prepare(
        absl::StrCat("SELECT id, create_time, payload FROM ", Table(kind), " ORDER BY create_time DESC, id"));
    std::vector<Resource> resources;
    while (query.Step()) resources.push_back(ReadResource(query));
    return resources;
  });
}

absl::StatusOr<Resource> Store::GetResource(ResourceKind kind, const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<Resource> {
    Query query = reader_->Prepare(absl::StrCat("SELECT id, create_time, payload FROM ", Table(kind), " WHERE id = ?"));
    if (!query.Bind(id).Step()) return DoesNotExist(ResourceName(kind, id));
    return ReadResource(query);
  });
}

absl::StatusOr<std::vector<Token>> Store::Tokens() {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Token>> {
    Query query = reader_->Prepare(
        "SELECT id, sha256, role, tenant, create_time, expire_time, revoke_time, node FROM tokens ORDER BY id");
    std::vector<Token> tokens;
    while (query.Step()) {
      Token token{.id = query.Text()};
      token.sha256 = query.Text();
      token.role = static_cast<Role>(query.Int());
      token.tenant = query.Text();
      token.create_time = query.Time();
      token.expire_time = query.Time();
      token.revoke_time = query.Time();
      token.node = query.Text();
      tokens.push_back(std::move(token));
    }
    return tokens;
  });
}

// One step over all pages is one read transaction: the copy is of one moment, and what is committed meanwhile stays in
// the WAL. A connection of its own, so that no handler waits for it.
absl::Status Store::CopyTo(const std::string& path) {
  return Guard([&]() -> absl::Status {
    Connection source(path_, SQLite::OPEN_READONLY);
    Connection copy(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    copy.database().exec("PRAGMA synchronous = FULL");
    if (SQLite::Backup(copy.database(), source.database()).executeStep(-1) == SQLITE_DONE) return absl::OkStatus();
    return absl::UnavailableError("the server's database is busy and could not be copied; try again");
  });
}

// With a connection of its own: nobody who reads has to wait for it.
absl::Status Store::Check() {
  return Guard([&]() -> absl::Status {
    Connection connection(path_, SQLite::OPEN_READONLY);
    for (const char* pragma : {"PRAGMA integrity_check(1)", "PRAGMA foreign_key_check"}) {
      Query query = connection.Prepare(pragma);
      if (!query.Step()) continue;
      const std::string found = query.Text();
      if (found != "ok") return absl::DataLossError(absl::StrCat(path_, " is damaged: ", found));
    }
    return absl::OkStatus();
  });
}

}  // namespace luthier
