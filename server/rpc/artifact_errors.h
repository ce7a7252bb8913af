// Uploads that the artifact store cannot take, through no fault of who sends them.
#pragma once

#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"

namespace luthier {

// Thread-safe.
class ArtifactErrors {
 public:
  // What the sender of an upload hears of what the artifact store said of it. What is wrong with the upload itself
  // stays as it is. Everything else is the server's and passes: RESOURCE_EXHAUSTED if there is no room, else
  // UNAVAILABLE. The log says it, too, once for as long as it lasts.
  absl::Status Answer(const absl::Status& status);
  template <typename T>
  absl::StatusOr<T> Answer(absl::StatusOr<T> result) {
    if (!result.ok()) return Answer(result.status());
    return result;
  }
  // Commits what was uploaded. Errors: INVALID_ARGUMENT if its content is another than was announced; as Answer().
  absl::Status Commit(BlobWriter& blob);

 private:
  // Whether it is another one than the last. OK: something was stored.
  bool IsNew(absl::StatusCode code);

  std::mutex mutex_;
  absl::StatusCode last_ = absl::StatusCode::kOk;
};

}  // namespace luthier
