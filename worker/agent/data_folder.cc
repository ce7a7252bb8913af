#include "worker/agent/data_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/private_folder.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxNodeId = 63;

// As the server's rule for ids: a letter first, then letters, digits, '-' and '.'.
bool IsNodeId(const std::string& id) {
  const auto allowed = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '.'; };
  return !id.empty() && id.size() <= kMaxNodeId && absl::ascii_islower(id[0]) &&
         std::all_of(id.begin(), id.end(), allowed);
}

std::string NewNodeId() {
  char hostname[256] = "";
  gethostname(hostname, sizeof hostname - 1);
  std::string id = absl::AsciiStrToLower(hostname);
  id = id.substr(0, id.find('.'));
  for (char& c : id) {
    if (!absl::ascii_isalnum(c)) c = '-';
  }
  if (id.empty() || !absl::ascii_islower(id[0])) id = "node-" + id;
  const std::string suffix = absl::StrFormat("-%04x", std::random_device()() & 0xffff);
  return id.substr(0, kMaxNodeId - suffix.size()) + suffix;
}

std::string NewInstance() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

bool IsInstance(const std::string& text) {
  return text.size() == 32 && std::all_of(text.begin(), text.end(),
                                          [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

}  // namespace

absl::StatusOr<FileLock> FileLock::TryAcquire(const std::string& path) {
  Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.is_open()) return FileError(path, "open", errno);
  if (flock(file.get(), LOCK_EX | LOCK_NB) == 0) return FileLock(std::move(file));
  return absl::UnavailableError(path + " is held by another process");
}

absl::StatusOr<DataFolder> DataFolder::Open(const std::string& root) {
  // What is in there is deleted, so it must be an agent's.
  std::error_code hidden;  // below a folder that may not be read: what makes the folders says why
  if (!fs::exists(root + "/lock", hidden) && fs::exists(root + "/discarded", hidden)) {
    return absl::FailedPreconditionError(absl::StrCat("--data-dir: ", root,
                                                      " holds a folder `discarded` and is no agent's; "
                                                      "give an empty folder, or one that a luthier-worker made"));
  }
  LUTHIER_RETURN_IF_ERROR(CreatePrivateFolder(root));  // rows are in there, of whoever has jobs here
  LUTHIER_RETURN_IF_ERROR(CreateFolders(root + "/jobs"));
  absl::StatusOr<FileLock> lock = FileLock::TryAcquire(root + "/lock");
  if (absl::IsUnavailable(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("--data-dir: another luthier-worker uses ", root, "; stop it, or give this one another folder"));
  }
  if (!lock.ok()) return lock.status();
  std::error_code ignored;
  fs::remove_all(root + "/discarded", ignored);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(root + "/discarded"));
  return DataFolder(root, *std::move(lock));
}

absl::StatusOr<std::string> DataFolder::NodeId(const std::string& wanted) const {
  if (!wanted.empty() && !IsNodeId(wanted)) {
    return absl::InvalidArgumentError(absl::StrCat("--node-id: '", wanted, "' is no id; give 1 to ", kMaxNodeId,
                                                   " characters a-z, 0-9, '-', '.', a letter first"));
  }
  if (!wanted.empty()) return wanted;
  return KeptIn("node_id", IsNodeId, NewNodeId);
}

absl::StatusOr<std::string> DataFolder::Instance() const { return KeptIn("instance", IsInstance, NewInstance); }

absl::StatusOr<std::string> DataFolder::KeptIn(const std::string& file, bool (*is_valid)(const std::string&),
                                               std::string (*make)()) const {
  const std::string path = absl::StrCat(root_, "/", file);
  std::string kept;
  std::getline(std::ifstream(path), kept);
  if (is_valid(kept)) return kept;
  const std::string made = make();
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(path, made + "\n"));
  return made;
}

std::string DataFolder::AttemptFolder(const AttemptPath& name) const {
  return absl::StrCat(JobFolder(name.job), "/attempt-", name.number);
}

std::vector<AttemptPath> DataFolder::Attempts() const {
  std::vector<AttemptPath> names;
  std::error_code ignored;
  for (const fs::directory_entry& job : fs::directory_iterator(root_ + "/jobs", ignored)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(job.path(), ignored)) {
      const std::string folder = entry.path().filename();
      absl::string_view number = folder;
      AttemptPath name{job.path().filename(), 0};
      if (absl::ConsumePrefix(&number, "attempt-") && absl::SimpleAtoi(number, &name.number)) names.push_back(name);
    }
  }
  return names;
}

std::vector<std::string> DataFolder::JobsWithRunFolder() const {
  std::vector<std::pair<fs::file_time_type, std::string>> found;
  std::error_code error;
  for (const fs::directory_entry& job : fs::directory_iterator(root_ + "/jobs", error)) {
    const fs::path checkpoints = job.path() / "run" / kCheckpointsFolder;
    fs::file_time_type used = fs::last_write_time(checkpoints, error);
    if (error) used = fs::last_write_time(job.path() / "run", error);
    if (!error) found.emplace_back(used, job.path().filename());
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> jobs;
  for (auto& [used, job] : found) jobs.push_back(std::move(job));
  return jobs;
}

}  // namespace luthier
