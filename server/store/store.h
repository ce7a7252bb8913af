// The durable record: one SQLite file, one owning connection. WAL with synchronous FULL, so what was committed survives a
// power loss. One connection writes and checkpoints: SQLite before 3.51.3 can corrupt a WAL database that two connections
// write (sqlite.org/wal.html, WAL-reset bug). A mutex lets handlers read history on the same connection.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/state.h"

namespace SQLite {
class Database;
}

namespace luthier {

// A dataset or a base model: what is known of it, as bytes of the layer above.
struct Resource {
  std::string id;
  absl::Time create_time;
  std::string payload;
};

// Which table of resources.
enum class ResourceKind { kDataset, kBaseModel };

class Store {
 public:
  // Opens or creates `data_dir`/luthier.db, locks the folder and runs the migrations that are missing.
  // Errors: FAILED_PRECONDITION if another server holds the folder or the file is of a newer version; DATA_LOSS.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& data_dir);
  ~Store();

  // Everything or nothing, on disk when it returns. Errors: UNAVAILABLE (disk full or failing).
  absl::Status Commit(const Writes& writes, const State& state);
  absl::StatusOr<State> LoadState(absl::Time now);

  // Bytes given to State::Create. Errors: NOT_FOUND.
  absl::StatusOr<std::string> Spec(const std::string& job);
  // Events after `after`, oldest first, of one of `types` (empty: all).
  absl::StatusOr<std::vector<Event>> Events(const std::string& job, int64_t after, int limit,
                                            const std::vector<std::string>& types = {});
  // Newest version first; `model` empty: of all models.
  absl::StatusOr<std::vector<ModelVersion>> Versions(const std::string& model);

  // Errors: ALREADY_EXISTS; UNAVAILABLE.
  absl::Status Insert(ResourceKind kind, const Resource& resource);
  // Newest first.
  absl::StatusOr<std::vector<Resource>> List(ResourceKind kind);
  // Errors: NOT_FOUND.
  absl::StatusOr<Resource> Get(ResourceKind kind, const std::string& id);
  absl::Status Delete(ResourceKind kind, const std::string& id);

  static std::string SqliteVersion();

 private:
  Store(std::unique_ptr<SQLite::Database> database, int lock);
  std::mutex mutex_;
  std::unique_ptr<SQLite::Database> database_;
  int lock_;
};

}  // namespace luthier
