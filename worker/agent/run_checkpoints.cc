#include "worker/agent/run_checkpoints.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <span>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/artifact/artifact_store.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

absl::Status LinkFolder(const fs::path& from, const fs::path& to) {
  LUTHIER_RETURN_IF_ERROR(CreateFolders(to));
  std::error_code error;
  fs::directory_iterator entry(from, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    fs::create_hard_link(entry->path(), to / entry->path().filename(), error);
    if (error) break;
  }
  return error ? FileError(from, "link", error.value()) : absl::OkStatus();
}

absl::Status CopyDurably(const std::string& from, const std::string& to) {
  LUTHIER_RETURN_IF_ERROR(CreateFolders(fs::path(to).parent_path()));
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(to));
  std::ifstream stream(from, std::ios::binary);
  if (!stream) return absl::DataLossError(absl::StrCat(from, ": cannot be opened"));
  std::vector<char> buffer(1 << 20);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), stream.gcount() > 0) {
    const std::span<const char> piece(buffer.data(), static_cast<size_t>(stream.gcount()));
    LUTHIER_RETURN_IF_ERROR(file.Append(std::as_bytes(piece)));
  }
  if (stream.bad()) return absl::DataLossError(absl::StrCat(from, ": cannot be read"));
  return file.Commit();
}

}  // namespace

RunCheckpoint CheckpointOf(const nlohmann::json& event) {
  const auto number = [&](const char* field) -> int64_t {
    const auto found = event.find(field);
    return found != event.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
  };
  return {number("step"), number("best_step")};
}

int64_t NewestStep(const std::string& checkpoints) {
  int64_t newest = 0;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(checkpoints, none)) {
    const std::string name = entry.path().filename();
    absl::string_view number = name;
    int64_t step;
    if (absl::ConsumePrefix(&number, kStepFolder) && absl::SimpleAtoi(number, &step)) newest = std::max(newest, step);
  }
  return newest;
}

absl::Status LinkCheckpoint(const std::string& checkpoints, const RunCheckpoint& checkpoint, const std::string& links) {
  std::error_code ignored;
  fs::remove_all(links, ignored);
  std::vector<std::string> folders = {absl::StrCat(kStepFolder, checkpoint.step)};
  if (checkpoint.best_step > 0) folders.push_back(absl::StrCat(kBestFolder, checkpoint.best_step));
  absl::Status status;
  for (const std::string& folder : folders) status.Update(LinkFolder(checkpoints + "/" + folder, links + "/" + folder));
  if (!status.ok()) fs::remove_all(links, ignored);
  return status;
}

absl::Status InstallCheckpoint(const std::map<std::string, std::string>& files, const std::string& checkpoints) {
  const std::string incoming = checkpoints + ".incoming";
  std::error_code error;
  fs::remove_all(incoming, error);
  for (const auto& [path, from] : files) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(path));
    LUTHIER_RETURN_IF_ERROR(CopyDurably(from, incoming + "/" + path));
  }
  const std::string run = fs::path(checkpoints).parent_path();
  // A trainer takes no folder with checkpoints for a run's that has no such file.
  const std::string mark = run + "/" + kMetricsFile;
  if (!fs::exists(mark)) LUTHIER_RETURN_IF_ERROR(WriteFileDurably(mark, ""));
  fs::remove_all(checkpoints, error);
  fs::rename(incoming, checkpoints, error);
  if (error) return FileError(incoming, "rename", error.value());
  return SyncFolder(run);
}

}  // namespace luthier
