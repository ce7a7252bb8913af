#include "client/lib/model_download.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/lib/download_folder.h"
#include "client/lib/grpc_status.h"
#include "client/lib/local_disk.h"
#include "client/lib/resumable_file.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/artifact/manifest.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// Whether `folder` holds exactly these files.
bool Holds(const std::string& folder, const std::vector<v1::ModelFile>& files) {
  const absl::StatusOr<Manifest> found = ManifestOfFolder(folder);
  if (!found.ok() || found->files.size() != files.size()) return false;
  std::set<std::pair<std::string, std::string>> wanted, there;
  for (const v1::ModelFile& file : files) wanted.emplace(file.path(), file.sha256());
  for (const ManifestFile& file : found->files) there.emplace(file.path, file.sha256);
  return wanted == there;
}

absl::Status CheckChunk(const v1::FileChunk& chunk, const std::string& path, int64_t offset) {
  if (chunk.offset() != offset || Crc32c(chunk.data()) != chunk.crc32c()) {
    return absl::DataLossError(absl::StrCat(path, ": damaged on the way at byte ", offset));
  }
  return absl::OkStatus();
}

// Reads one stream into `file`. OK also if the stream broke: `status` says how it ended.
template <typename Reader, typename Message>
absl::Status ReadInto(Reader& reader, Message message, const std::string& path, ResumableFile& file,
                      const std::function<void(int64_t)>& on_received) {
  while (reader.Read(&message)) {
    if (!message.has_chunk()) continue;
    LUTHIER_RETURN_IF_ERROR(CheckChunk(message.chunk(), path, file.size()));
    LUTHIER_RETURN_IF_ERROR(OnOurDisk(file.Append(message.chunk().data())));
    on_received(static_cast<int64_t>(message.chunk().data().size()));
  }
  return absl::OkStatus();
}

// One call of the right method, from where `file` ends.
absl::Status FetchOnce(Client& client, const std::string& name, const std::string& path, ResumableFile& file,
                       const std::function<void(int64_t)>& on_received, grpc::Status& status) {
  grpc::ClientContext context;
  const auto fetch = [&](auto request, auto message, auto open) {
    request.set_name(name);
    request.set_path(path);
    request.set_offset(file.size());
    const auto reader = open(request);
    const absl::Status written = ReadInto(*reader, message, path, file, on_received);
    if (!written.ok()) context.TryCancel();
    status = reader->Finish();
    return written;
  };
  if (absl::StartsWith(name, "baseModels/")) {
    return fetch(v1::DownloadBaseModelRequest(), v1::DownloadBaseModelResponse(),
                 [&](const auto& request) { return client.models().DownloadBaseModel(&context, request); });
  }
  return fetch(v1::DownloadModelVersionRequest(), v1::DownloadModelVersionResponse(),
               [&](const auto& request) { return client.models().DownloadModelVersion(&context, request); });
}

// Until the file is complete and its hash is right; a stream that breaks is taken up again at the byte where it broke.
absl::Status FetchFile(Client& client, const std::string& name, const v1::ModelFile& wanted, const std::string& local,
                       const std::function<void(int64_t)>& on_received) {
  const RetryPolicy& retry = client.options().retry;
  bool damaged_once = false;
  absl::StatusOr<ResumableFile> opened = ResumableFile::Open(local, wanted.size_bytes());
  if (!opened.ok()) return OnOurDisk(opened.status());
  ResumableFile& file = *opened;
  on_received(file.size());
  for (int failures = 1;; ++failures) {
    const int64_t before = file.size();
    grpc::Status status;
    absl::Status error;
    if (file.size() < wanted.size_bytes()) {
      error = FetchOnce(client, name, wanted.path(), file, on_received, status);
    }
    if (error.ok() && status.ok()) {
      const int64_t received = file.size();
      error = OnOurDisk(file.Verify(wanted.sha256()));
      if (error.ok()) return error;
      // Bytes of an earlier try may have been of another file, or damaged on our disk: once more from the start.
      on_received(-received);
      if (std::exchange(damaged_once, true)) return error;
      continue;
    }
    if (!error.ok() && !absl::IsDataLoss(error)) return error;  // our own disk
    if (file.size() > before) failures = 1;
    if (failures >= retry.attempts || (error.ok() && !IsBrokenStream(status))) {
      return error.ok() ? FromGrpc(status, client.options().server) : error;
    }
    client.PauseWhileDialling(RetryPause(retry, failures, RandomFraction()));
  }
}

}  // namespace

RemoteFolder ToRemoteFolder(const v1::ModelVersion& version) {
  return {version.name(), {version.files().begin(), version.files().end()}};
}

RemoteFolder ToRemoteFolder(const v1::BaseModel& model) {
  return {model.name(), {model.files().begin(), model.files().end()}};
}

absl::Status DownloadFolder(Client& client, const RemoteFolder& remote, const std::string& folder,
                            const TransferProgress& progress) {
  std::string target = fs::absolute(folder).lexically_normal().string();
  if (absl::EndsWith(target, "/")) target.pop_back();
  std::error_code hidden;  // below a folder that may not be read: what makes the folder says why
  if (fs::exists(target, hidden)) {
    if (Holds(target, remote.files)) return absl::OkStatus();
    return absl::AlreadyExistsError(
        absl::StrCat(folder, " exists and is not ", remote.name, "; give another folder, or remove it"));
  }
  const std::string partial = target + ".partial";
  if (const absl::Status made = CreateFolders(partial); !made.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the folder of the download cannot be made: ", made.message(), "; give another one"));
  }
  const absl::StatusOr<FolderLock> lock = LockForDownload(partial);
  if (!lock.ok()) return OnOurDisk(lock.status());
  std::set<std::string> wanted;
  int64_t done = 0, total = 0;
  for (const v1::ModelFile& file : remote.files) {
    wanted.insert(file.path());
    total += file.size_bytes();
  }
  RemoveOthers(partial, wanted);  // of an earlier download of something else
  for (const v1::ModelFile& file : remote.files) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path()));
    const fs::path local = fs::path(partial) / file.path();
    LUTHIER_RETURN_IF_ERROR(OnOurDisk(CreateFolders(local.parent_path())));
    LUTHIER_RETURN_IF_ERROR(FetchFile(client, remote.name, file, local, [&](int64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    }));
    LUTHIER_RETURN_IF_ERROR(OnOurDisk(SyncFolder(local.parent_path())));
  }
  if (rename(partial.c_str(), target.c_str()) != 0) return OnOurDisk(FileError(target, "rename", errno));
  return OnOurDisk(SyncFolder(fs::path(target).parent_path()));
}

}  // namespace luthier
