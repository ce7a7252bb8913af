#include "server/store/store.h"

#include <SQLiteCpp/SQLiteCpp.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <iterator>
#include <limits>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "server/store/migrations.h"

namespace luthier {
namespace {

const char* Table(ResourceKind kind) { return kind == ResourceKind::kDataset ? "datasets" : "base_models"; }

void BindBlob(SQLite::Statement& statement, int index, const std::string& bytes) {
  statement.bind(index, static_cast<const void*>(bytes.data()), static_cast<int>(bytes.size()));
}

std::string Blob(SQLite::Statement& statement, int index) {
  const SQLite::Column column = statement.getColumn(index);
  return std::string(static_cast<const char*>(column.getBlob()), static_cast<size_t>(column.getBytes()));
}

int64_t Micros(absl::Time time) { return absl::ToUnixMicros(time); }

// ToUnixMicros saturates for "never", which has to come back as itself.
absl::Time FromMicros(int64_t micros) {
  return micros == std::numeric_limits<int64_t>::min() ? absl::InfinitePast() : absl::FromUnixMicros(micros);
}

absl::Status StoreError(const SQLite::Exception& error) {
  return absl::UnavailableError(absl::StrCat("the server's database cannot be used: ", error.what(),
                                             "; see that the disk of --data-dir has space and works"));
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

void WriteJob(SQLite::Database& database, const Job& job) {
  SQLite::Statement insert(database, R"sql(
INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, attempt = excluded.attempt, lost_attempts = excluded.lost_attempts,
  node = excluded.node, not_before = excluded.not_before, start_time = excluded.start_time, end_time = excluded.end_time,
  model_version = excluded.model_version, last_event = excluded.last_event, last_report = excluded.last_report,
  report = excluded.report)sql");
  int column = 0;
  for (const std::string* text : {&job.id, &job.uid, &job.request_id, &job.body_sha256, &job.base_model, &job.datasets}) {
    insert.bind(++column, *text);
  }
  for (const int64_t number : {int64_t{job.devices}, Micros(job.create_time), static_cast<int64_t>(job.state),
                               int64_t{job.attempt}, int64_t{job.lost_attempts}}) {
    insert.bind(++column, number);
  }
  insert.bind(++column, job.node);
  for (const absl::Time time : {job.not_before, job.start_time, job.end_time}) insert.bind(++column, Micros(time));
  insert.bind(++column, job.model_version);
  insert.bind(++column, job.last_event);
  insert.bind(++column, job.last_report);
  BindBlob(insert, ++column, job.report);
  insert.exec();
}

Job ReadJob(SQLite::Statement& row) {
  Job job;
  int column = 0;
  for (std::string* text : {&job.id, &job.uid, &job.request_id, &job.body_sha256, &job.base_model, &job.datasets}) {
    *text = row.getColumn(column++).getString();
  }
  job.devices = row.getColumn(column++).getInt();
  job.create_time = FromMicros(row.getColumn(column++).getInt64());
  job.state = static_cast<JobState>(row.getColumn(column++).getInt());
  job.attempt = row.getColumn(column++).getInt();
  job.lost_attempts = row.getColumn(column++).getInt();
  job.node = row.getColumn(column++).getString();
  for (absl::Time* time : {&job.not_before, &job.start_time, &job.end_time}) {
    *time = FromMicros(row.getColumn(column++).getInt64());
  }
  job.model_version = row.getColumn(column++).getString();
  job.last_event = row.getColumn(column++).getInt64();
  job.last_report = row.getColumn(column++).getInt64();
  job.report = Blob(row, column);
  return job;
}

void WriteEvent(SQLite::Database& database, const Event& event) {
  SQLite::Statement insert(database, "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  insert.bind(1, event.job);
  insert.bind(2, event.sequence);
  insert.bind(3, Micros(event.time));
  insert.bind(4, event.attempt);
  insert.bind(5, event.type);
  insert.bind(6, event.message);
  insert.bind(7, event.state);
  BindBlob(insert, 8, event.payload);
  insert.exec();
}

void WriteVersion(SQLite::Database& database, const ModelVersion& version) {
  SQLite::Statement insert(database, "INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?)");
  insert.bind(1, version.model);
  insert.bind(2, version.version);
  insert.bind(3, version.job);
  insert.bind(4, version.attempt);
  insert.bind(5, version.base_model);
  insert.bind(6, Micros(version.create_time));
  BindBlob(insert, 7, version.payload);
  insert.exec();
}

}  // namespace

Store::Store(std::unique_ptr<SQLite::Database> database, int lock) : database_(std::move(database)), lock_(lock) {}
Store::~Store() { close(lock_); }

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
  try {
    auto database = std::make_unique<SQLite::Database>(data_dir + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE,
                                                       /*aBusyTimeoutMs=*/5000);
    database->exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON");
    if (database->execAndGet("PRAGMA user_version").getInt() > static_cast<int>(std::size(kMigrations))) {
      close(lock);
      return absl::FailedPreconditionError(
          absl::StrCat(data_dir, "/luthier.db was written by a newer luthierd; start that version again"));
    }
    Migrate(*database);
    return std::unique_ptr<Store>(new Store(std::move(database), lock));
  } catch (const SQLite::Exception& error) {
    close(lock);
    return absl::DataLossError(absl::StrCat(data_dir, "/luthier.db cannot be opened: ", error.what()));
  }
}

absl::Status Store::Commit(const Writes& writes, const State& state) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Transaction transaction(*database_, SQLite::TransactionBehavior::IMMEDIATE);
    for (const std::string& id : writes.jobs) WriteJob(*database_, *state.Find(id));
    for (const auto& [id, spec] : writes.specs) {
      SQLite::Statement insert(*database_, "INSERT INTO job_specs VALUES (?, ?)");
      insert.bind(1, id);
      BindBlob(insert, 2, spec);
      insert.exec();
    }
    for (const Event& event : writes.events) WriteEvent(*database_, event);
    for (const ModelVersion& version : writes.versions) WriteVersion(*database_, version);
    transaction.commit();
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
  return absl::OkStatus();
}

absl::StatusOr<State> Store::LoadState(absl::Time now) {
  const std::lock_guard lock(mutex_);
  try {
    State state;
    SQLite::Statement jobs(*database_, "SELECT * FROM jobs");
    while (jobs.executeStep()) state.LoadJob(ReadJob(jobs), now);
    SQLite::Statement latest(*database_, "SELECT model, max(version) FROM model_versions GROUP BY model");
    while (latest.executeStep()) state.LoadVersion(latest.getColumn(0).getString(), latest.getColumn(1).getInt());
    return state;
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

absl::StatusOr<std::string> Store::Spec(const std::string& job) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Statement query(*database_, "SELECT spec FROM job_specs WHERE job = ?");
    query.bind(1, job);
    if (!query.executeStep()) return absl::NotFoundError(absl::StrCat("jobs/", job, " does not exist"));
    return Blob(query, 0);
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

absl::StatusOr<std::vector<Event>> Store::Events(const std::string& job, int64_t after, int limit,
                                                 const std::vector<std::string>& types) {
  const std::lock_guard lock(mutex_);
  try {
    std::string sql = "SELECT * FROM events WHERE job = ? AND sequence > ?";
    for (size_t i = 0; i < types.size(); ++i) absl::StrAppend(&sql, i == 0 ? " AND type IN (?" : ", ?");
    absl::StrAppend(&sql, types.empty() ? "" : ")", " ORDER BY sequence LIMIT ", limit);
    SQLite::Statement query(*database_, sql);
    query.bind(1, job);
    query.bind(2, after);
    for (size_t i = 0; i < types.size(); ++i) query.bind(static_cast<int>(i) + 3, types[i]);
    std::vector<Event> events;
    while (query.executeStep()) {
      events.push_back({query.getColumn(0).getString(), query.getColumn(1).getInt64(),
                        FromMicros(query.getColumn(2).getInt64()), query.getColumn(3).getInt(),
                        query.getColumn(4).getString(), query.getColumn(5).getString(), query.getColumn(6).getInt(),
                        Blob(query, 7)});
    }
    return events;
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

absl::StatusOr<std::vector<ModelVersion>> Store::Versions(const std::string& model) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Statement query(*database_, "SELECT * FROM model_versions WHERE ?1 = '' OR model = ?1 "
                                        "ORDER BY create_time DESC, version DESC");
    query.bind(1, model);
    std::vector<ModelVersion> versions;
    while (query.executeStep()) {
      versions.push_back({query.getColumn(0).getString(), query.getColumn(1).getInt(), query.getColumn(2).getString(),
                          query.getColumn(3).getInt(), query.getColumn(4).getString(),
                          FromMicros(query.getColumn(5).getInt64()), Blob(query, 6)});
    }
    return versions;
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

absl::Status Store::Insert(ResourceKind kind, const Resource& resource) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Statement insert(*database_, absl::StrCat("INSERT INTO ", Table(kind), " VALUES (?, ?, ?)"));
    insert.bind(1, resource.id);
    insert.bind(2, Micros(resource.create_time));
    BindBlob(insert, 3, resource.payload);
    insert.exec();
  } catch (const SQLite::Exception& error) {
    if (error.getErrorCode() == SQLITE_CONSTRAINT) return absl::AlreadyExistsError(absl::StrCat(resource.id, " exists"));
    return StoreError(error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Resource>> Store::List(ResourceKind kind) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Statement query(*database_, absl::StrCat("SELECT * FROM ", Table(kind), " ORDER BY create_time DESC, id"));
    std::vector<Resource> resources;
    while (query.executeStep()) {
      resources.push_back({query.getColumn(0).getString(), FromMicros(query.getColumn(1).getInt64()), Blob(query, 2)});
    }
    return resources;
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

absl::StatusOr<Resource> Store::Get(ResourceKind kind, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(std::vector<Resource> resources, List(kind));
  for (Resource& resource : resources) {
    if (resource.id == id) return std::move(resource);
  }
  const char* collection = kind == ResourceKind::kDataset ? "datasets/" : "baseModels/";
  return absl::NotFoundError(absl::StrCat(collection, id, " does not exist"));
}

absl::Status Store::Delete(ResourceKind kind, const std::string& id) {
  const std::lock_guard lock(mutex_);
  try {
    SQLite::Statement statement(*database_, absl::StrCat("DELETE FROM ", Table(kind), " WHERE id = ?"));
    statement.bind(1, id);
    return statement.exec() > 0 ? absl::OkStatus() : absl::NotFoundError(absl::StrCat(id, " does not exist"));
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

}  // namespace luthier
