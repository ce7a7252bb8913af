#include "server/rpc/backup.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
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
// Where a restoration works, in the data folder, until everything but the database is in its place.
constexpr char kRestoring[] = "/restoring";
constexpr size_t kMaxFaults = 20;

json ToJson(const DataFacts& facts) {
  return {{"version", 1},
          {"create_time", absl::FormatTime(absl::RFC3339_full, facts.create_time, absl::UTCTimeZone())},
          {"epoch", facts.epoch},
          {"jobs", facts.jobs},
          {"database", {{"sha256", facts.database_sha256}, {"bytes", facts.database_bytes}}},
          {"stored", luthier::ToJson(Manifest{facts.files})}};
}

absl::StatusOr<DataFacts> ReadFacts(const std::string& backup) {
  const absl::StatusOr<std::string> text = ReadTextFile(backup + kFacts);
  if (!text.ok()) {
    return absl::NotFoundError(
        absl::StrCat(backup, ": is no backup, or one that was not finished: it has no backup.json"));
  }
  DataFacts facts;
  try {
    const json parsed = json::parse(*text);
    if (parsed.at("version") != 1)
      return absl::InvalidArgumentError(absl::StrCat(backup, ": was made by a newer luthierd; use that one"));
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, parsed.at("create_time").get<std::string>(), &facts.create_time, &error)) {
      return absl::DataLossError(absl::StrCat(backup, kFacts, ": is damaged: ", error));
    }
    facts.epoch = parsed.at("epoch");
    facts.jobs = parsed.at("jobs");
    facts.database_sha256 = parsed.at("database").at("sha256");
    facts.database_bytes = parsed.at("database").at("bytes");
    LUTHIER_ASSIGN_OR_RETURN(Manifest stored, ParseManifest(parsed.at("stored")));
    facts.files = std::move(stored.files);
  } catch (const json::exception& error) {
    return absl::DataLossError(absl::StrCat(backup, kFacts, ": is damaged: ", error.what()));
  }
  return facts;
}

// What the database of an open store holds, and the files that it refers to, found in `artifacts`.
absl::StatusOr<DataFacts> FactsOf(Store& store, FileArtifactStore& artifacts, absl::Time now,
                                  std::vector<std::string>& missing) {
  DataFacts facts{.create_time = now};
  LUTHIER_ASSIGN_OR_RETURN(const State state, store.LoadState(now));
  facts.epoch = state.epoch();
  for (const JobState each : kAllStates) facts.jobs += state.jobs().count(each);
  LUTHIER_ASSIGN_OR_RETURN(const FileArtifactStore::References used, ReferencesOf(store));
  for (const std::string& sha256 : used.blobs) {
    const absl::StatusOr<int64_t> size = artifacts.BlobSize(sha256);
    if (size.ok()) {
      facts.files.push_back({sha256, sha256, *size});
    } else {
      missing.emplace_back(size.status().message());
    }
  }
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

// Every stored file that is not there or has another content.
std::vector<std::string> DamagedFiles(const std::string& root, const std::vector<ManifestFile>& files) {
  std::vector<std::string> faults;
  for (const ManifestFile& file : files) {
    const std::string path = FileArtifactStore::BlobPathIn(root, file.sha256);
    const absl::StatusOr<std::string> found = Sha256OfFile(path);
    if (!found.ok()) {
      faults.emplace_back(found.status().message());
    } else if (*found != file.sha256) {
      faults.push_back(absl::StrCat(path, ": its content has another hash"));
    }
  }
  return faults;
}

// Manifests of published attempts: small, and what a collection of unused files goes by.
absl::Status CopyManifests(FileArtifactStore& from, FileArtifactStore& to, const FileArtifactStore::References& used) {
  for (const auto& [job, attempt] : used.attempts) {
    const ArtifactKey key{job, attempt, "artifact"};
    const absl::StatusOr<Manifest> manifest = from.GetManifest(key);
    if (absl::IsNotFound(manifest.status())) continue;
    LUTHIER_RETURN_IF_ERROR(manifest.status());
    LUTHIER_RETURN_IF_ERROR(to.PutManifest(key, *manifest));
  }
  return absl::OkStatus();
}

// 1. The database, of one moment.  2. Is it sound?  3. What it refers to.
absl::StatusOr<DataFacts> FillBackup(Store& store, FileArtifactStore& artifacts, const std::string& folder,
                                     absl::Time now, const std::function<bool()>& cancelled) {
  LUTHIER_RETURN_IF_ERROR(store.CopyTo(folder + kDatabase));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> files,
                           FileArtifactStore::Open(folder + kArtifacts));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Store> copy, Store::Open(folder));
  LUTHIER_RETURN_IF_ERROR(copy->Check());
  std::vector<std::string> missing;
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, FactsOf(*copy, artifacts, now, missing));
  if (!missing.empty()) return Damaged("the artifact store", missing);
  LUTHIER_ASSIGN_OR_RETURN(const FileArtifactStore::References used, ReferencesOf(*copy));
  for (const ManifestFile& file : facts.files) {
    if (cancelled()) return absl::CancelledError("the backup was given up");
    LUTHIER_RETURN_IF_ERROR(files->AddFrom(artifacts, file.sha256));
  }
  LUTHIER_RETURN_IF_ERROR(CopyManifests(artifacts, *files, used));
  copy.reset();  // leaves one file, without a log beside it
  std::error_code ignored;
  fs::remove(folder + "/lock", ignored);
  LUTHIER_ASSIGN_OR_RETURN(facts.database_sha256, Sha256OfFile(folder + kDatabase));
  facts.database_bytes = static_cast<int64_t>(fs::file_size(folder + kDatabase));
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(folder + kFacts, ToJson(facts).dump(2) + "\n"));
  return facts;
}

absl::StatusOr<DataFacts> CheckBackup(const std::string& backup) {
  LUTHIER_ASSIGN_OR_RETURN(const DataFacts facts, ReadFacts(backup));
  std::vector<std::string> faults = DamagedFiles(backup + kArtifacts, facts.files);
  const absl::StatusOr<std::string> database = Sha256OfFile(backup + kDatabase);
  if (!database.ok() || *database != facts.database_sha256) {
    faults.push_back(
        absl::StrCat(backup, kDatabase, database.ok() ? ": its content has another hash" : ": cannot be read"));
  }
  if (!faults.empty()) return Damaged(backup, faults);
  return facts;
}

absl::StatusOr<DataFacts> CheckDataFolder(const std::string& data_dir) {
  if (!fs::exists(data_dir + kDatabase)) return absl::NotFoundError(absl::StrCat(data_dir, ": holds no server's data"));
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(data_dir);
  if (absl::IsDataLoss(store.status())) return Damaged(data_dir, {std::string(store.status().message())});
  LUTHIER_RETURN_IF_ERROR(store.status());
  if (const absl::Status status = (*store)->Check(); !status.ok())
    return Damaged(data_dir, {std::string(status.message())});
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> artifacts,
                           FileArtifactStore::OpenShared(data_dir + kArtifacts));
  std::vector<std::string> faults;
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, FactsOf(**store, *artifacts, absl::Now(), faults));
  for (std::string& fault : DamagedFiles(data_dir + kArtifacts, facts.files)) faults.push_back(std::move(fault));
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

// Opens the copied database, which also brings one of an older version up to date, and begins the epoch in it.
absl::Status BeginEpochIn(const std::string& folder, FileArtifactStore& from, FileArtifactStore& to,
                          const std::string& data_dir, int epoch, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(folder));
  LUTHIER_ASSIGN_OR_RETURN(State state, store->LoadState(now));
  const auto begin = [epoch](State& s, absl::Time time) {
    s.BeginEpoch(epoch, time);
    return absl::OkStatus();
  };
  LUTHIER_RETURN_IF_ERROR(
      RunBatch(state, {begin}, now, [&](const Writes& writes) { return store->Commit(writes); }).written);
  LUTHIER_ASSIGN_OR_RETURN(const FileArtifactStore::References used, ReferencesOf(*store));
  LUTHIER_RETURN_IF_ERROR(CopyManifests(from, to, used));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> models, store->ListResources(ResourceKind::kBaseModel));
  for (const Resource& resource : models) {
    v1::BaseModel model;
    model.ParseFromString(resource.payload);
    LUTHIER_RETURN_IF_ERROR(LinkBaseModel(to, data_dir, resource.id, model));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t DataFacts::bytes() const {
  int64_t sum = database_bytes;
  for (const ManifestFile& file : files) sum += file.bytes;
  return sum;
}

absl::StatusOr<DataFacts> MakeBackup(Store& store, FileArtifactStore& artifacts, const std::string& to, absl::Time now,
                                     const std::function<bool()>& cancelled) {
  if (fs::exists(to))
    return absl::AlreadyExistsError(absl::StrCat("path: ", to, " exists; give a folder that does not"));
  const std::string partial = to + ".partial";
  std::error_code error;
  fs::remove_all(partial, error);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(partial));
  absl::StatusOr<DataFacts> facts = FillBackup(store, artifacts, partial, now, cancelled);
  if (!facts.ok()) {
    fs::remove_all(partial, error);
    return facts;
  }
  fs::rename(partial, to, error);
  if (error) return FileError(to, "rename", error.value());
  LUTHIER_RETURN_IF_ERROR(SyncFolder(fs::path(to).parent_path().string()));
  return facts;
}

absl::StatusOr<DataFacts> CheckFolder(const std::string& folder) {
  return fs::exists(folder + kFacts) ? CheckBackup(folder) : CheckDataFolder(folder);
}

// The database comes last: until then the folder is no server's, and the restoration can be begun again.
absl::StatusOr<DataFacts> RestoreBackup(const std::string& backup, const std::string& data_dir, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(DataFacts facts, ReadFacts(backup));
  if (fs::exists(data_dir + kDatabase)) {
    return absl::FailedPreconditionError(
        absl::StrCat("--data-dir: ", data_dir,
                     " holds a database; stop its server and move luthier.db "
                     "and what is beside it with that name away, or give another folder"));
  }
  const std::string restoring = data_dir + kRestoring;
  std::error_code error;
  fs::remove_all(restoring, error);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(restoring));
  LUTHIER_RETURN_IF_ERROR(CopyDatabase(backup + kDatabase, restoring + kDatabase, facts.database_sha256));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> from,
                           FileArtifactStore::OpenShared(backup + kArtifacts));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> to, FileArtifactStore::Open(data_dir + kArtifacts));
  for (const ManifestFile& file : facts.files) LUTHIER_RETURN_IF_ERROR(to->AddFrom(*from, file.sha256));
  LUTHIER_ASSIGN_OR_RETURN(facts.epoch, TakeEpoch(backup, facts.epoch));
  LUTHIER_RETURN_IF_ERROR(BeginEpochIn(restoring, *from, *to, data_dir, facts.epoch, now));
  fs::rename(restoring + kDatabase, data_dir + kDatabase, error);
  if (error) return FileError(data_dir + kDatabase, "rename", error.value());
  LUTHIER_RETURN_IF_ERROR(SyncFolder(data_dir));
  fs::remove_all(restoring, error);
  return facts;
}

}  // namespace luthier
