// The server's durable record: one SQLite file in WAL mode with synchronous FULL, so what was committed survives a
// power loss. One connection, owned by the loop's thread, does every write and every checkpoint: SQLite before 3.51.3
// can corrupt a WAL database that two connections write (sqlite.org/wal.html, WAL-reset bug). A second one, read-only,
// serves the handlers.
//
// store.cc opens and keeps the database, store_load.cc reads the state, store_jobs.cc and store_resources.cc the rest,
// and writes.cc has what a commit writes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/descriptor.h"
#include "server/core/state.h"

namespace luthier {

class Connection;

// A job as it is on record. `job.waiting_since` is not set.
struct RecordedJob {
  Job job;
  SpecBytes spec;                     // given to State::Create
  std::optional<std::string> labels;  // bytes given to State::Update; none: those of the spec
};

// Which jobs of the record a list wants.
struct JobQuery {
  std::set<JobState> states;  // empty: any
  std::string tenant;         // empty: any
  std::string of_tenant;      // beside `tenant`, which is that of the caller
  std::string base_model;     // empty: any
  std::string model;          // under which it publishes; empty: any
  absl::Time created_from = absl::InfinitePast(), created_before = absl::InfiniteFuture();
  absl::Time ended_from = absl::InfinitePast(), ended_before = absl::InfiniteFuture();
  bool oldest_first = false;
  int64_t cursor = 0;  // only numbers that come after it in this order; 0: all
  int limit = 50;
};
struct JobPage {
  std::vector<RecordedJob> jobs;
  int64_t next = 0;  // cursor of the next page, which may come before `limit` is reached; 0: there is none
};

class Store {
 public:
  // So many events of a job go in one commit at most: nobody waits long for it.
  static constexpr int kExpiredEvents = 1000;

  // A database up to this size is looked at in 0.15 s of a core: nobody waits long for a start.
  static constexpr int64_t kCheckedAtStart = int64_t{64} << 20;

  // Opens or creates `data_dir`/luthier.db, locks the folder and runs the migrations that are missing. Before these it
  // looks at every page, but for what indexes say, of a database up to `checked_bytes`: a damaged one stays as it is.
  // Errors: FAILED_PRECONDITION if another server holds the folder or the file is of a newer version; DATA_LOSS naming
  // what is damaged, and how to bring it back.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& data_dir, int64_t checked_bytes = 0);
  ~Store();

  // Loop thread only.
  // Everything or nothing, on disk when it returns. Errors: UNAVAILABLE if the disk is full (nothing was written);
  // DATA_LOSS if it failed: what is on it is not known any more, and the server has to stop.
  absl::Status Commit(const Writes& writes);
  // Brings the log into the database and empties its file. If somebody reads what is only there, as much as can be
  // done, without waiting. Errors: as Commit.
  absl::Status EmptyLog();
  absl::StatusOr<State> LoadState(absl::Time now, State::Options options = {});
  // Before LoadState(): what an older version stored, without a word of whose it is or how large, is counted for its
  // tenants. Once for a file, however often it is called. Errors: as Commit.
  struct OlderSizes {
    std::function<Stored(const Resource&)> of_dataset;
    std::function<int64_t(const ModelVersion&)> of_version;  // of which the payload is set
  };
  absl::Status CountOlder(const OlderSizes& sizes);
  // The request of that id and the job it created.
  absl::StatusOr<std::optional<std::pair<JobRequest, Job>>> FindRequest(const std::string& id);
  absl::StatusOr<std::optional<Job>> FindJob(const std::string& id);
  absl::StatusOr<SpecBytes> Spec(int64_t job);
  // Files of a job's stored checkpoint, bytes given to State::Record. Errors: NOT_FOUND.
  absl::StatusOr<std::string> Checkpoint(int64_t job);

  // Any thread: what was committed before the call is seen.
  // Errors: NOT_FOUND.
  absl::StatusOr<RecordedJob> GetJob(const std::string& id);
  // In the order of creation. Looks at kListWindow jobs at most, unless it asks for states only.
  static constexpr int64_t kListWindow = 20000;
  absl::StatusOr<JobPage> ListJobs(const JobQuery& query);
  absl::StatusOr<std::optional<std::pair<JobRequest, RecordedJob>>> ReplayedRequest(const std::string& id);
  // Jobs that have been over for longer than their retention, or `retention`, and have events that go; longest first.
  absl::StatusOr<std::vector<Job>> JobsToExpire(absl::Duration retention, absl::Time now, int limit);
  // Errors: NOT_FOUND.
  absl::StatusOr<Sweep> GetSweep(const std::string& id);
  // Newest first, of one tenant (empty: of all); `before`: only those with lower numbers of jobs; 0: all.
  absl::StatusOr<std::vector<Sweep>> ListSweeps(const std::string& tenant, int64_t before, int limit);
  // In their order.
  absl::StatusOr<std::vector<Job>> JobsOf(const Sweep& sweep);
  absl::StatusOr<std::map<JobState, int64_t>> CountJobsOf(const Sweep& sweep);
  // Events after `after`, oldest first, of one of `types` (empty: all).
  absl::StatusOr<std::vector<Event>> Events(int64_t job, int64_t after, int limit,
                                            const std::vector<std::string>& types = {});
  // The cursor before the last `lines` events of a type; 0 if there are fewer.
  absl::StatusOr<int64_t> CursorBefore(int64_t job, const std::string& type, int64_t lines);
  // Newest version first; `model` empty: of all models, one after the other. Which is newest its number says: clocks
  // are set.
  absl::StatusOr<std::vector<ModelVersion>> Versions(const std::string& model);
  // That the files of a version are counted with; 0 if there is none.
  absl::StatusOr<int64_t> VersionBytes(const std::string& model, int version);
  absl::StatusOr<std::vector<Alias>> Aliases(const std::string& model);
  // Newest first.
  absl::StatusOr<std::vector<Resource>> ListResources(ResourceKind kind);
  // Errors: NOT_FOUND.
  absl::StatusOr<Resource> GetResource(ResourceKind kind, const std::string& id);

  absl::StatusOr<std::vector<Token>> Tokens();
  // Of all jobs.
  absl::StatusOr<std::vector<std::string>> Checkpoints();

  // Size of the log's file.
  int64_t LogBytes() const;
  // Writes a copy of the database, as it is at one moment, to the new file `path`, while commits go on. Durable when it
  // returns.
  absl::Status CopyTo(const std::string& path);
  // Reads every page, beside what reads and writes. Errors: DATA_LOSS naming what is damaged.
  absl::Status Check();

  static std::string SqliteVersion();

 private:
  Store(Descriptor lock, std::string path, std::unique_ptr<Connection> writer, std::unique_ptr<Connection> reader);

  const Descriptor lock_;  // goes when both connections are closed
  const std::string path_;
  std::unique_ptr<Connection> writer_;
  std::mutex reader_mutex_;
  std::unique_ptr<Connection> reader_;  // goes first: the last one that closes checkpoints, and that must be the writer
};

}  // namespace luthier
