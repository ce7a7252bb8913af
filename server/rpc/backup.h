// Backups of a server's data folder: made while it serves, checked, and brought back.
//
// A backup is a folder with the database as it was at one moment, the stored files that it names, and `backup.json`,
// which is written last and holds the hashes of all of it. What was acknowledged before the backup began is in it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/artifact/artifact_store.h"
#include "lib/artifact/manifest.h"
#include "server/store/store.h"

namespace luthier {

// What a folder holds, a backup or a data folder.
struct DataFacts {
  absl::Time create_time;  // of a backup: the moment that it shows
  int epoch = 0;
  int64_t jobs = 0;  // those that are over among them
  std::string database_sha256;
  int64_t database_bytes = 0;
  std::vector<ManifestFile> files;  // stored ones; their paths are their hashes
  std::string bucket;               // where these are; empty: here
  int64_t bytes() const;            // of what is here
};

// Copies `store` and what it refers to into the new folder `to`; what lies in a bucket stays there, and is only looked
// for. Nothing may collect garbage meanwhile. `cancelled` ends it early. Errors: ALREADY_EXISTS; RESOURCE_EXHAUSTED;
// DATA_LOSS for a damaged page or file; CANCELLED; UNAVAILABLE.
absl::StatusOr<DataFacts> MakeBackup(Store& store, ArtifactStore& artifacts, const std::string& to, absl::Time now,
                                     const std::function<bool()>& cancelled);

// Reads every byte of a backup, or of a data folder that no server uses. `bucket`: what was given as such, or null.
// Errors: DATA_LOSS naming all that is damaged or missing; FAILED_PRECONDITION if its files are in another bucket.
absl::StatusOr<DataFacts> CheckFolder(const std::string& folder, ArtifactStore* bucket);

// Opens the store that the files of a backup shall be in. `bucket`: where the backup left them; empty: it has them.
using OpenStore = std::function<absl::StatusOr<std::unique_ptr<ArtifactStore>>(const std::string& bucket)>;

// The same of the data folder of a server that works, whose store and files these are. Nothing may collect garbage
// meanwhile; `cancelled` ends it early. Jobs are not counted. Errors also: CANCELLED.
absl::StatusOr<DataFacts> CheckServing(Store& store, ArtifactStore& artifacts, const std::string& data_dir,
                                       const std::function<bool()>& cancelled);

// Makes `data_dir`, which must hold no database, what the backup shows, and begins an epoch: attempts that were started
// after the backup, or before it, are not current any more, and no later one has their number. Errors: NOT_FOUND or
// DATA_LOSS for the backup; FAILED_PRECONDITION if `data_dir` is taken; those of `open_store`.
absl::StatusOr<DataFacts> RestoreBackup(const std::string& backup, const std::string& data_dir,
                                        const OpenStore& open_store, absl::Time now);

}  // namespace luthier
