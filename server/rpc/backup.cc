#include "server/rpc/backup.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/file_artifact_store.h"
#include "lib/artifact/hash.h"
#include "lib/artifact/private_folder.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"
#include "lib/text/json_file.h"
#include "luthier/v1/models.pb.h"
#include "nlohmann/json.hpp"
#include "server/core/batch.h"
#include "server/rpc/stored_files.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kDatabase[] = "/luthier.db";
constexpr char kArtifacts[] = "/artifacts";
constexpr char kFacts[] = "/backup.json";
// The epoch that was last restored from this backup: a second restoration must not begin the same one.
constexpr char kEpochs[] = "/restored-epoch";
// Of a backup that is being made: its server has it locked.
constexpr char kUnfinished[] = "/.unfinished";
constexpr char kPartial[] = ".partial-";
// Where a restoration works, in the data folder, until everything but the database is in its place.
constexpr char kRestoring[] = "/restoring";
constexpr size_t kMaxFaults = 20;

json ToJson(const DataFacts& facts) {
  return {{"version", 1},
          {"create_time", absl::FormatTime(absl::RFC3339_full, facts.create_time, absl::UTCTimeZone())},
          {"epoch", facts.epoch},
          {"jobs", facts.jobs},
          {"database", {{"sha256", facts.database_sha256}, {"bytes", facts.database_bytes}}},
          {"stored", luthier::ToJson(Manifest{facts.files})},
          {"bucket", facts.bucket}};
}

absl::StatusOr<DataFacts> ReadFacts(const std::string& backup) {
  const absl::StatusOr<std::string> text = ReadTextFile(backup + kFacts);
  if (!text.ok()) {
    return absl::NotFoundError(absl::StrCat(
        backup, ": is no backup, or one that was not finished: it has no backup.json; give another folder"));
  }
  DataFacts facts;
  try {
    const json parsed = json::parse(*text);
    if (parsed.at("version") != 1)
      return absl::InvalidArgumentError(absl::StrCat(backup, ": was made by a newer luthierd; use that one"));
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, parsed.at("create_time").get<std::string>(), &facts.create_time, &error)) {
      return absl::DataLossError(absl::StrCat(backup, kFacts, ": is damaged: ", error, "; try an older backup"));
    }
    facts.epoch = parsed.at("epoch");
    facts.jobs = parsed.at("jobs");
    facts.database_sha256 = parsed.at("database").at("sha256");
    facts.database_bytes = parsed.at("database").at("bytes");
    LUTHIER_ASSIGN_OR_RETURN(Manifest stored, ParseManifest(parsed.at("stored")));
    facts.files = std::move(stored.files);
    facts.bucket = parsed.value("bucket", "");
  } catch (const json::exception& error) {
    return absl::DataLossError(absl::StrCat(backup, kFacts, ": is damaged: ", error.what(), "; try an older backup"));
  }
  return facts;
}

// Those of the files that are in `artifacts`. Errors: UNAVAILABLE if it cannot say.
absl::Status FindFiles(ArtifactStore& artifacts, const ArtifactStore::References& used, DataFacts& facts,
                       std::vector<std::string>& missing) {
  for (const std::string& sha256 : used.blobs) {
    const absl::StatusOr<int64_t> size = artifacts.BlobSize(sha256);
    if (size.ok()) {
      facts.files.push_back({sha256, sha256, *size});
    } else if (absl::IsUnavailable(size.status())) {
      return size.status();
    } else {
      missing.emplace_back(size.status().message());
    }
  }
  return absl::OkStatus();
}

// What the database of an open store holds, and the files that it refers to, found in `artifacts`.
absl::StatusOr<DataFacts> FactsOf(Store& store, ArtifactStore& artifacts, absl::Time now,
                                  std::vector<std::string>& missing) {
  DataFacts facts{.create_time = now, .bucket = artifacts.Address()};
  LUTHIER_ASSIGN_OR_RETURN(const State state, store.LoadState(now));
  facts.epoch = state.epoch();
  for (const JobState each : kAllStates) facts.jobs += state.jobs().count(each);
  LUTHIER_ASSIGN_OR_RETURN(const ArtifactStore::References used, ReferencesOf(store));
  LUTHIER_RETURN_IF_ERROR(FindFiles(artifacts, used, facts, missing));
  return facts;
}

absl::Status Damaged(const std::string& folder, std::vector<std::string> faults) {
  const size_t count = faults.size();
  if (count > kMaxFaults) faults.resize(kMaxFaults);
  if (count > kMaxFaults) faults.push_back(absl::StrCat("and ", count - kMaxFaults, " more"));
  return absl::DataLossError(absl::StrCat(folder,
                                          " is damaged; bring a backup back with `luthierd restore --from BACKUP`:\n",
                                          absl::StrJoin(faults, "\n")));
}

// Reads every stored file, and names those that are not there or have another content.
absl::StatusOr<std::vector<std::string>> DamagedFiles(
    ArtifactStore& artifacts, const std::vector<ManifestFile>& files,
    const std::function<bool()>& cancelled = [] { return false; }) {
  std::vector<std::string> faults;
  std::vector<char> buffer(1 << 20);
  for (const ManifestFile& file : files) {
    if (cancelled()) return absl::CancelledError("the check was given up");
    absl::StatusOr<std::unique_ptr<BlobReader>> blob = artifacts.OpenBlob(file.sha256, 0);
    absl::StatusOr<size_t> read = blob.ok() ? absl::StatusOr<size_t>(1) : blob.status();
    while (read.ok() && *read > 0) read = (*blob)->Read(std::span<char>(buffer));
    if (absl::IsUnavailable(read.status())) return read.status();
    if (!read.ok()) faults.emplace_back(read.status().message());
  }
  return faults;
}

// Manifests of published attempts: small, and what a collection of unused files goes by.
absl::Status CopyManifests(ArtifactStore& from, ArtifactStore& to, const ArtifactStore::References& used) {
  for (const auto& [job, attempt] : used.attempts) {
    const ArtifactKey key{job, attempt, "artifact"};
    const absl::StatusOr<Manifest> manifest = from.GetManifest(key);
    if (absl::IsNotFound(manifest.status())) continue;
    LUTHIER_RETURN_IF_ERROR(manifest.status());
    LUTHIER_RETURN_IF_ERROR(to.PutManifest(key, *manifest));
  }
  return absl::OkStatus();
}

// What `from` refers to, out of `artifacts` into the folder of a backup.
absl::Status CopyFiles(FileArtifactStore& artifacts, const ArtifactStore::References& used, const DataFacts& facts,
                       const std::string& folder, const std::function<bool()>& cancelled) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> files, FileArtifactStore::Open(folder));
  for (const ManifestFile& file : facts.files) {
    if (cancelled()) return absl::CancelledError("the backup was given up");
    LUTHIER_RETURN_IF_ERROR(files->AddFrom(artifacts, file.sha256));
  }
  return CopyManifests(artifacts, *files, used);
}

// 1. The database, of one moment.  2. Is it sound?  3. What it refers to.
absl::StatusOr<DataFacts> FillBackup(Store& store, ArtifactStore& artifacts, const std::string& folder, absl::Time now,
                                     const std::function<bool()>& cancelled) {
  LUTHIER_RETURN_IF_ERROR(store.CopyTo(folder + kDatabase));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Store> copy, Store::Open(folder));
  LUTHIER_RETURN_IF_ERROR(copy->Check());
  std::vector<std::string> missing;
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, FactsOf(*copy, artifacts, now, missing));
  if (!missing.empty()) return Damaged("the artifact store", missing);
  LUTHIER_ASSIGN_OR_RETURN(const ArtifactStore::References used, ReferencesOf(*copy));
  if (auto* files = dynamic_cast<FileArtifactStore*>(&artifacts))
    LUTHIER_RETURN_IF_ERROR(CopyFiles(*files, used, facts, folder + kArtifacts, cancelled));
  copy.reset();  // leaves one file, without a log beside it
  std::error_code ignored;
  fs::remove(folder + "/lock", ignored);
  LUTHIER_ASSIGN_OR_RETURN(facts.database_sha256, Sha256OfFile(folder + kDatabase));
  facts.database_bytes = static_cast<int64_t>(fs::file_size(folder + kDatabase));
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(folder + kFacts, ToJson(facts).dump(2) + "\n"));
  return facts;
}

// A folder beside `to` under a name that nobody has, for our user only, as the data folder is. Unless it takes the
// place of `to`, nothing of it stays.
class UnfinishedBackup {
 public:
  static absl::StatusOr<UnfinishedBackup> Create(const std::string& to) {
    std::string path = absl::StrCat(to, kPartial, "XXXXXX");
    if (mkdtemp(path.data()) == nullptr) return FileError(path, "create", errno);
    UnfinishedBackup made(path);
    made.lock_ = Descriptor(open((path + kUnfinished).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!made.lock_.is_open() || flock(made.lock_.get(), LOCK_EX) != 0) return FileError(path, "lock", errno);
    return made;
  }
  UnfinishedBackup(UnfinishedBackup&& other) noexcept
      : path_(std::exchange(other.path_, "")), lock_(std::move(other.lock_)) {}
  ~UnfinishedBackup() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }
  // Durable when it returns.
  absl::Status Become(const std::string& to) {
    std::error_code error;
    fs::rename(path_, to, error);
    if (error) return FileError(to, "rename", error.value());
    path_.clear();
    fs::remove(to + kUnfinished, error);
    LUTHIER_RETURN_IF_ERROR(SyncFolder(to));
    return SyncFolder(fs::path(to).parent_path());
  }

 private:
  explicit UnfinishedBackup(std::string path) : path_(std::move(path)) {}
  std::string path_;  // empty once it is finished
  Descriptor lock_;
};

// What servers that were killed have left of backups to the same place. A folder without the mark is somebody's own.
void RemoveUnfinished(const std::string& to) {
  const std::string prefix = fs::path(to).filename().string() + kPartial;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(to).parent_path(), ignored)) {
    if (!absl::StartsWith(entry.path().filename().string(), prefix)) continue;
    const Descriptor lock(open((entry.path().string() + kUnfinished).c_str(), O_RDWR | O_CLOEXEC));
    if (lock.is_open() && flock(lock.get(), LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry.path(), ignored);
  }
}

// Where the files of a folder are: in it, or in `bucket`, which was given and must be `expected`.
absl::StatusOr<std::shared_ptr<ArtifactStore>> ArtifactsOf(const std::string& folder, const std::string& expected,
                                                           ArtifactStore* bucket) {
  if ((bucket == nullptr ? "" : bucket->Address()) != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("--artifact-store: the files of ", folder, " are in ",
                     expected.empty() ? "the folder itself; leave it out" : absl::StrCat(expected, "; give that")));
  }
  if (bucket != nullptr) return std::shared_ptr<ArtifactStore>(bucket, [](ArtifactStore*) {});
  LUTHIER_ASSIGN_OR_RETURN(std::shared_ptr<ArtifactStore> own, FileArtifactStore::OpenShared(folder + kArtifacts));
  return own;
}

absl::StatusOr<DataFacts> CheckBackup(const std::string& backup, ArtifactStore* bucket) {
  LUTHIER_ASSIGN_OR_RETURN(const DataFacts facts, ReadFacts(backup));
  LUTHIER_ASSIGN_OR_RETURN(const auto artifacts, ArtifactsOf(backup, facts.bucket, bucket));
  LUTHIER_ASSIGN_OR_RETURN(std::vector<std::string> faults, DamagedFiles(*artifacts, facts.files));
  const absl::StatusOr<std::string> database = Sha256OfFile(backup + kDatabase);
  if (!database.ok() || *database != facts.database_sha256) {
    faults.push_back(
        absl::StrCat(backup, kDatabase, database.ok() ? ": its content has another hash" : ": cannot be read"));
  }
  if (!faults.empty()) return Damaged(backup, faults);
  return facts;
}

absl::StatusOr<DataFacts> CheckDataFolder(const std::string& data_dir, ArtifactStore* bucket) {
  if (!fs::exists(data_dir + kDatabase))
    return absl::NotFoundError(absl::StrCat(data_dir, ": holds no server's data; give the --data-dir of a luthierd"));
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(data_dir);
  if (absl::IsDataLoss(store.status())) return Damaged(data_dir, {std::string(store.status().message())});
  LUTHIER_RETURN_IF_ERROR(store.status());
  if (const absl::Status status = (*store)->Check(); !status.ok())
    return Damaged(data_dir, {std::string(status.message())});
  LUTHIER_ASSIGN_OR_RETURN(const auto artifacts,
                           ArtifactsOf(data_dir, bucket == nullptr ? "" : bucket->Address(), bucket));
  std::vector<std::string> faults;
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, FactsOf(**store, *artifacts, absl::Now(), faults));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<std::string> damaged, DamagedFiles(*artifacts, facts.files));
  faults.insert(faults.end(), damaged.begin(), damaged.end());
  if (!faults.empty()) return Damaged(data_dir, faults);
  facts.database_bytes = static_cast<int64_t>(fs::file_size(data_dir + kDatabase));
  return facts;
}

// The next epoch, which no restoration from this backup has begun before. Durable when it returns.
absl::StatusOr<int> TakeEpoch(const std::string& backup, int of_backup) {
  int last = 0;
  const absl::StatusOr<std::string> text = ReadTextFile(backup + kEpochs);
  if (text.ok() && !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &last)) {
    return absl::DataLossError(
        absl::StrCat(backup, kEpochs, ": holds no number; write the number of restorations from this backup into it"));
  }
  const int epoch = std::max(of_backup, last) + 1;
  const absl::Status written = WriteFileDurably(backup + kEpochs, absl::StrCat(epoch, "\n"));
  if (written.ok()) return epoch;
  return absl::FailedPreconditionError(absl::StrCat(written.message(),
                                                    "; a restoration is noted in its backup: copy the backup to a disk "
                                                    "that can be written, and restore from there"));
}

absl::Status CopyDatabase(const std::string& from, const std::string& to, const std::string& sha256) {
  std::error_code error;
  fs::copy_file(from, to, error);
  if (error) return FileError(to, "copy", error.value());
  LUTHIER_ASSIGN_OR_RETURN(const std::string found, Sha256OfFile(to));
  if (found != sha256)
    return absl::DataLossError(absl::StrCat(from, ": is damaged, its content has another hash; try an older backup"));
  return absl::OkStatus();
}

// Opens the copied database, which also brings one of an older version up to date, and begins the epoch in it. Returns
// what it refers to.
absl::StatusOr<ArtifactStore::References> BeginEpochIn(const std::string& folder, int epoch, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(folder));
  LUTHIER_ASSIGN_OR_RETURN(State state, store->LoadState(now));
  const auto begin = [epoch](State& s, absl::Time time) {
    s.BeginEpoch(epoch, time);
    return absl::OkStatus();
  };
  LUTHIER_RETURN_IF_ERROR(
      RunBatch(state, {begin}, now, [&](const Writes& writes) { return store->Commit(writes); }).written);
  return ReferencesOf(*store);
}

// The files of a backup into a store: a link where both are on one disk, else a copy.
absl::Status TakeFiles(FileArtifactStore& from, ArtifactStore& to, const std::vector<ManifestFile>& files) {
  auto* folder = dynamic_cast<FileArtifactStore*>(&to);
  for (const ManifestFile& file : files) {
    LUTHIER_RETURN_IF_ERROR(folder != nullptr ? folder->AddFrom(from, file.sha256) : CopyBlob(from, to, file.sha256));
  }
  return absl::OkStatus();
}

absl::Status AreAllIn(ArtifactStore& bucket, const std::string& backup, const std::vector<ManifestFile>& files) {
  std::vector<std::string> missing;
  for (const ManifestFile& file : files) {
    const absl::StatusOr<int64_t> size = bucket.BlobSize(file.sha256);
    if (absl::IsUnavailable(size.status())) return size.status();
    if (!size.ok()) missing.emplace_back(size.status().message());
  }
  return missing.empty() ? absl::OkStatus() : Damaged(backup, std::move(missing));
}

}  // namespace

int64_t DataFacts::bytes() const {
  int64_t sum = database_bytes;
  if (!bucket.empty()) return sum;
  for (const ManifestFile& file : files) sum += file.bytes;
  return sum;
}

absl::StatusOr<DataFacts> MakeBackup(Store& store, ArtifactStore& artifacts, const std::string& to, absl::Time now,
                                     const std::function<bool()>& cancelled) {
  std::error_code hidden;  // below a folder that may not be read: what makes the folders says why
  if (fs::exists(to, hidden))
    return absl::AlreadyExistsError(absl::StrCat("path: ", to, " exists; give a folder that does not"));
  // NOT_FOUND and PERMISSION_DENIED of this disk would be a name and a role to the caller.
  const auto refused = [](const absl::Status& status) {
    return absl::FailedPreconditionError(absl::StrCat("path: ", status.message(), "; give another folder"));
  };
  if (const absl::Status made = CreateFolders(fs::path(to).parent_path()); !made.ok()) return refused(made);
  RemoveUnfinished(to);
  absl::StatusOr<UnfinishedBackup> backup = UnfinishedBackup::Create(to);
  if (!backup.ok()) return refused(backup.status());
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, FillBackup(store, artifacts, backup->path(), now, cancelled));
  LUTHIER_RETURN_IF_ERROR(backup->Become(to));
  return facts;
}

absl::StatusOr<DataFacts> CheckFolder(const std::string& folder, ArtifactStore* bucket) {
  return fs::exists(folder + kFacts) ? CheckBackup(folder, bucket) : CheckDataFolder(folder, bucket);
}

absl::StatusOr<DataFacts> CheckServing(Store& store, ArtifactStore& artifacts, const std::string& data_dir,
                                       const std::function<bool()>& cancelled) {
  std::vector<std::string> faults;
  if (const absl::Status status = store.Check(); absl::IsDataLoss(status)) {
    faults.emplace_back(status.message());
  } else {
    LUTHIER_RETURN_IF_ERROR(status);
  }
  LUTHIER_ASSIGN_OR_RETURN(const ArtifactStore::References used, ReferencesOf(store));
  DataFacts facts;
  LUTHIER_RETURN_IF_ERROR(FindFiles(artifacts, used, facts, faults));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<std::string> damaged, DamagedFiles(artifacts, facts.files, cancelled));
  faults.insert(faults.end(), damaged.begin(), damaged.end());
  if (!faults.empty()) return Damaged(data_dir, faults);
  facts.database_bytes = static_cast<int64_t>(fs::file_size(data_dir + kDatabase));
  return facts;
}

// The database comes last: until then the folder is no server's, and the restoration can be begun again.
absl::StatusOr<DataFacts> RestoreBackup(const std::string& backup, const std::string& data_dir,
                                        const OpenStore& open_store, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, ReadFacts(backup));
  // SQLite would take the log of another database, left behind alone, for that of the restored one.
  for (const char* suffix : {"", "-wal", "-journal"}) {
    if (!fs::exists(absl::StrCat(data_dir, kDatabase, suffix))) continue;
    return absl::FailedPreconditionError(absl::StrCat("--data-dir: ", data_dir, " holds a database (luthier.db", suffix,
                                                      "); stop its server and move luthier.db and what is beside it "
                                                      "with that name away, or give another folder"));
  }
  const std::string restoring = data_dir + kRestoring;
  std::error_code error;
  fs::remove_all(restoring, error);
  LUTHIER_RETURN_IF_ERROR(CreatePrivateFolder(data_dir));
  LUTHIER_RETURN_IF_ERROR(CreateFolders(restoring));
  LUTHIER_RETURN_IF_ERROR(CopyDatabase(backup + kDatabase, restoring + kDatabase, facts.database_sha256));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactStore> to, open_store(facts.bucket));
  std::unique_ptr<FileArtifactStore> from;
  if (facts.bucket.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(from, FileArtifactStore::OpenShared(backup + kArtifacts));
    LUTHIER_RETURN_IF_ERROR(TakeFiles(*from, *to, facts.files));
  } else {
    LUTHIER_RETURN_IF_ERROR(AreAllIn(*to, backup, facts.files));
  }
  LUTHIER_ASSIGN_OR_RETURN(facts.epoch, TakeEpoch(backup, facts.epoch));
  LUTHIER_ASSIGN_OR_RETURN(const ArtifactStore::References used, BeginEpochIn(restoring, facts.epoch, now));
  if (from != nullptr) LUTHIER_RETURN_IF_ERROR(CopyManifests(*from, *to, used));
  fs::rename(restoring + kDatabase, data_dir + kDatabase, error);
  if (error) return FileError(data_dir + kDatabase, "rename", error.value());
  LUTHIER_RETURN_IF_ERROR(SyncFolder(data_dir));
  fs::remove_all(restoring, error);
  return facts;
}

}  // namespace luthier
