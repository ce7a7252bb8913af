// The database as a whole: opening, migrations, commits, its log, copies and checks.
#include "server/store/store.h"

#include <SQLiteCpp/Backup.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "server/store/connection.h"
#include "server/store/migrations.h"
#include "server/store/store_error.h"
#include "server/store/writes.h"

namespace luthier {

int64_t ToMicros(absl::Time time) { return absl::ToUnixMicros(time); }

// ToUnixMicros saturates for "never", which has to come back as itself.
absl::Time FromMicros(int64_t micros) {
  if (micros == std::numeric_limits<int64_t>::min()) return absl::InfinitePast();
  return micros == std::numeric_limits<int64_t>::max() ? absl::InfiniteFuture() : absl::FromUnixMicros(micros);
}

namespace {

// Pages in the log (32 MB) at which a commit also brings them into the database. Every call waits for such a commit,
// tens of milliseconds: with SQLite's default of 1,000 that happened five times a second under load. A thread of its
// own cannot do it: see the head of store.h.
constexpr int kLogPages = 8000;

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

// What one of SQLite's checks says first, below its heading; empty if it finds nothing.
std::string FaultFoundBy(const char* pragma, Connection& connection) {
  Query query = connection.Prepare(pragma);
  if (!query.Step()) return "";
  const std::string found = query.Text();
  return found == "ok" ? "" : found.substr(found.rfind('\n') + 1);
}

absl::Status CheckUpTo(int64_t most_bytes, const std::string& path, Connection& connection) {
  Query size = connection.Prepare("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size");
  if (!size.Step() || size.Int() > most_bytes) return absl::OkStatus();
  const std::string fault = FaultFoundBy("PRAGMA quick_check(1)", connection);
  if (fault.empty()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(path, " is damaged: ", fault,
                   "; check its disk, then bring a backup back with `luthierd restore --from BACKUP`"));
}

}  // namespace

Store::Store(Descriptor lock, std::string path, std::unique_ptr<Connection> writer, std::unique_ptr<Connection> reader)
    : lock_(std::move(lock)), path_(std::move(path)), writer_(std::move(writer)), reader_(std::move(reader)) {}

Store::~Store() = default;

std::string Store::SqliteVersion() { return sqlite3_libversion(); }

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& data_dir, int64_t checked_bytes) {
  const std::string lock_path = data_dir + "/lock";
  Descriptor lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.is_open()) {
    const std::string why = std::strerror(errno);
    return absl::FailedPreconditionError(absl::StrCat("--data-dir: ", data_dir, " cannot be written to: ", why,
                                                      "; let luthierd's user write there, or give another folder"));
  }
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
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
      return absl::FailedPreconditionError(
          absl::StrCat(path, " was written by a newer luthierd; start that version again"));
    }
    if (HasEarlySchema(writer->database())) {
      return absl::FailedPreconditionError(
          absl::StrCat(path,
                       " was written by an early development version, whose tables cannot be "
                       "read; start with another --data-dir, or remove this folder"));
    }
    LUTHIER_RETURN_IF_ERROR(CheckUpTo(checked_bytes, path, *writer));
    Migrate(writer->database());
    auto reader = std::make_unique<Connection>(path, SQLite::OPEN_READONLY);
    return std::unique_ptr<Store>(new Store(std::move(lock), path, std::move(writer), std::move(reader)));
  } catch (const SQLite::Exception& error) {
    const absl::Status status = StoreError(error);
    return absl::Status(status.code(), absl::StrCat(path, " cannot be opened: ", status.message()));
  }
}

absl::Status Store::Commit(const Writes& writes) {
  try {
    SQLite::Transaction transaction(writer_->database(), SQLite::TransactionBehavior::IMMEDIATE);
    WriteAll(*writer_, writes);
    transaction.commit();
    return absl::OkStatus();
  } catch (const SQLite::Exception& error) {
    return WriteError(error, path_);
  }
}

// A reader that stays makes every commit add to the log: pages can go into the database only once nobody needs what was
// there before.
absl::Status Store::EmptyLog() {
  sqlite3* const database = writer_->database().getHandle();
  sqlite3_busy_timeout(database, 0);
  const int code = sqlite3_wal_checkpoint_v2(database, nullptr, SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
  sqlite3_busy_timeout(database, Connection::kBusyMilliseconds);
  if (code == SQLITE_OK || code == SQLITE_BUSY) return absl::OkStatus();
  return WriteError(SQLite::Exception(database, code), path_);
}

int64_t Store::LogBytes() const {
  std::error_code none;
  const auto size = std::filesystem::file_size(path_ + "-wal", none);
  return none ? 0 : static_cast<int64_t>(size);
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
      const std::string fault = FaultFoundBy(pragma, connection);
      if (!fault.empty()) return absl::DataLossError(absl::StrCat(path_, " is damaged: ", fault));
    }
    return absl::OkStatus();
  });
}

}  // namespace luthier
