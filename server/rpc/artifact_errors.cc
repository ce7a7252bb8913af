#include "server/rpc/artifact_errors.h"

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {

absl::Status ArtifactErrors::Answer(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists: return status;
    default: break;
  }
  if (IsNew(status.code()))
    std::fprintf(stderr, "luthierd: uploads cannot be stored: %s\n", std::string(status.message()).c_str());
  if (absl::IsUnavailable(status)) return status;  // a bucket's says itself where it is
  if (absl::IsResourceExhausted(status))
    return absl::ResourceExhaustedError(absl::StrCat("the server's artifact store is full: ", status.message()));
  return absl::UnavailableError(
      "the server's artifact store cannot be written, as its log says; try again once its operator has mended that");
}

absl::Status ArtifactErrors::Commit(BlobWriter& blob) {
  const absl::Status stored = blob.Commit();
  if (stored.ok() && IsNew(stored.code())) std::fprintf(stderr, "luthierd: uploads are stored again\n");
  return Answer(stored);
}

bool ArtifactErrors::IsNew(absl::StatusCode code) {
  const std::lock_guard lock(mutex_);
  return std::exchange(last_, code) != code;
}

}  // namespace luthier
