// The agent's folder on disk, and the names in it:
//   lock                   held by the one agent that uses the folder
//   node_id                what this machine is called by the server
//   instance               what tells its agent from another one of that name
//   cache/                 inputs (input_cache.h)
//   discarded/             folders that are being deleted
//   jobs/J/run/            the trainer's --out, where a later attempt of the job finds the checkpoints
//   jobs/J/run.lock        held by the attempt that works in `run`
//   jobs/J/attempt-N/      journal, spec and log of one attempt, links to its inputs and to the checkpoint that it
//                          stores on the server
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/descriptor.h"
#include "worker/agent/core/attempt_path.h"

namespace luthier {

// An exclusive lock on a file, held until the owner is destroyed or dies.
class FileLock {
 public:
  // Errors: UNAVAILABLE if somebody else holds it.
  static absl::StatusOr<FileLock> TryAcquire(const std::string& path);

 private:
  explicit FileLock(Descriptor file) : file_(std::move(file)) {}
  Descriptor file_;
};

class DataFolder {
 public:
  // Creates what is missing, locks the folder and deletes what an earlier agent had discarded. Errors:
  // FAILED_PRECONDITION if another agent uses it.
  static absl::StatusOr<DataFolder> Open(const std::string& root);

  // `wanted`, or the id kept in the folder, or a new one made of the host name and four random digits (two agents of
  // one host must not take each other's sessions), which is then kept.
  absl::StatusOr<std::string> NodeId(const std::string& wanted) const;
  // Random, made once for the folder.
  absl::StatusOr<std::string> Instance() const;

  const std::string& root() const { return root_; }
  std::string CacheFolder() const { return root_ + "/cache"; }
  std::string DiscardedFolder() const { return root_ + "/discarded"; }
  std::string JobFolder(const std::string& job) const { return root_ + "/jobs/" + job; }
  std::string RunFolder(const std::string& job) const { return JobFolder(job) + "/run"; }
  std::string AttemptFolder(const AttemptPath& name) const;

  // Attempts that left a folder.
  std::vector<AttemptPath> Attempts() const;
  // Ids of jobs with a run folder, the one longest unused first.
  std::vector<std::string> JobsWithRunFolder() const;

 private:
  // The first line of a file if it is valid; else one that is made, and kept there.
  absl::StatusOr<std::string> KeptIn(const std::string& file, bool (*is_valid)(const std::string&),
                                     std::string (*make)()) const;

  DataFolder(std::string root, FileLock lock) : root_(std::move(root)), lock_(std::move(lock)) {}
  std::string root_;
  FileLock lock_;
};

}  // namespace luthier
