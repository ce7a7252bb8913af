#include "client/hub/download.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/hub/listing.h"
#include "client/lib/download_folder.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/bytes_text.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/checkpoint/safetensors.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// Of a file that is not whole. It belongs to no model, so an import passes over it.
constexpr char kPart[] = ".part";
// Of a file that holds no weights: all of it is read into memory, here and wherever the model is used. The largest
// tokenizers have some tens of megabytes.
constexpr int64_t kMostDescribing = int64_t{256} << 20;
// Bytes between two drawings of a progress: connections bring some ten thousand at a time.
constexpr int64_t kRedraw = int64_t{1} << 20;

// One commit's folder and where it comes from.
struct Source {
  const Hub& hub;
  const HubAddress& address;
  std::string commit;
  std::string folder;

  std::string PathOf(const HubFile& file) const { return absl::StrCat(folder, "/", file.path); }
};

int64_t BytesOf(const std::vector<HubFile>& files) {
  int64_t bytes = 0;
  for (const HubFile& file : files) bytes += file.bytes;
  return bytes;
}

// 0 if it is not there.
int64_t SizeOf(const std::string& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

absl::Status CheckSizes(const HubAddress& address, const std::vector<HubFile>& describing) {
  for (const HubFile& file : describing) {
    if (file.bytes <= kMostDescribing) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        address.Text(), ": ", file.path, " is listed with ", FormatBytes(file.bytes),
        ", and a file that holds no weights may have ", kMostDescribing >> 20,
        " MiB; ask its owner what it is, or download the repository by hand and import the folder without that file"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpace(const Source& source, const std::vector<HubFile>& files) {
  int64_t missing = 0;
  for (const HubFile& file : files) {
    const std::string path = source.PathOf(file);
    const int64_t there = SizeOf(path) == file.bytes ? file.bytes : SizeOf(absl::StrCat(path, kPart));
    missing += std::max(file.bytes - there, int64_t{0});
  }
  std::error_code error;
  const fs::space_info space = fs::space(source.folder, error);
  if (error || space.available >= static_cast<uintmax_t>(missing)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(source.address.Text(), ": ", FormatBytes(missing), " are still to come, and the disk of ",
                   source.folder, " has ", FormatBytes(static_cast<int64_t>(space.available)),
                   " left; free some, or set LUTHIER_CACHE_DIR to a folder of another disk that the server can read"));
}

absl::Status FetchFile(const Source& source, const HubFile& file, const std::function<void(int64_t)>& on_received) {
  const std::string path = source.PathOf(file), part = absl::StrCat(path, kPart);
  if (CheckContent(path, file).ok()) {
    on_received(file.bytes);
    return absl::OkStatus();
  }
  const std::string folder = fs::path(path).parent_path();
  LUTHIER_RETURN_IF_ERROR(InCache(CreateFolders(folder)));
  LUTHIER_RETURN_IF_ERROR(source.hub.Fetch(source.address, source.commit, file, part, on_received));
  if (rename(part.c_str(), path.c_str()) != 0) return InCache(FileError(path, "rename", errno));
  return InCache(SyncFolder(folder));
}

absl::Status FetchAll(const Source& source, const std::vector<HubFile>& files, const TransferProgress& progress) {
  LUTHIER_RETURN_IF_ERROR(CheckSpace(source, files));
  const int64_t total = BytesOf(files);
  int64_t done = 0, drawn = -kRedraw;
  const auto on_received = [&](int64_t bytes) {
    done += bytes;
    if (!progress || bytes == 0 || (done < total && done >= drawn && done - drawn < kRedraw)) return;
    drawn = done;
    progress(done, total);
  };
  for (const HubFile& file : files) LUTHIER_RETURN_IF_ERROR(FetchFile(source, file, on_received));
  return absl::OkStatus();
}

// Refused now rather than by the server once everything has come.
absl::Status CheckDescription(const Source& source) {
  const absl::StatusOr<ModelFacts> facts = ReadModelFactsWithoutWeights(source.folder);
  if (!facts.ok())
    return absl::InvalidArgumentError(absl::StrCat(source.address.Text(), ": ", facts.status().message()));
  if (facts->has_tokenizer) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(source.address.Text(),
                   " has no tokenizer.json; download it by hand, add one (transformers: "
                   "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)), and import the folder"));
}

// As in transformers, a whole file is taken and not the shards beside it. What the folder has of an earlier download
// tells nothing.
absl::StatusOr<std::set<std::string>> WeightsIn(const HubListing& listing, const std::string& folder) {
  const bool whole = std::any_of(listing.files.begin(), listing.files.end(),
                                 [](const HubFile& file) { return file.path == kWeightsFile; });
  if (whole) return std::set<std::string>{kWeightsFile};
  return ShardFiles(folder);
}

}  // namespace

absl::StatusOr<HubFolder> DownloadFromHub(const Hub& hub, const HubAddress& address, const std::string& cache,
                                          const ShowTransfer& show) {
  LUTHIER_ASSIGN_OR_RETURN(const HubListing listing, hub.List(address));
  LUTHIER_RETURN_IF_ERROR(CheckHasWeights(listing, address));
  std::vector<HubFile> files = DescribingFiles(listing);
  LUTHIER_RETURN_IF_ERROR(CheckSizes(address, files));
  const std::string repository = absl::StrReplaceAll(address.repository, {{"/", "--"}});
  const Source source = {hub, address, listing.commit, absl::StrCat(cache, "/", repository, "/", listing.commit)};
  LUTHIER_RETURN_IF_ERROR(InCache(CreateFolders(source.folder)));
  const absl::StatusOr<FolderLock> lock = LockForDownload(source.folder);
  if (!lock.ok()) return absl::IsFailedPrecondition(lock.status()) ? lock.status() : InCache(lock.status());

  LUTHIER_RETURN_IF_ERROR(FetchAll(source, files, show("downloading configuration and tokenizer")));
  LUTHIER_RETURN_IF_ERROR(CheckDescription(source));

  absl::StatusOr<std::set<std::string>> names = WeightsIn(listing, source.folder);
  if (!names.ok()) return absl::InvalidArgumentError(absl::StrCat(address.Text(), ": ", names.status().message()));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<HubFile> weights, FilesNamed(listing, *names));
  LUTHIER_RETURN_IF_ERROR(FetchAll(source, weights, show("downloading weights")));

  files.insert(files.end(), weights.begin(), weights.end());
  // What else is there would be imported too: what an earlier version fetched, or another endpoint listed.
  std::set<std::string> wanted;
  for (const HubFile& file : files) wanted.insert(file.path);
  RemoveOthers(source.folder, wanted);
  return HubFolder{source.folder, source.commit, BytesOf(files)};
}

}  // namespace luthier
