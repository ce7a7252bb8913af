// Files between this node and the server. Interfaces for what needs them, and the one implementation over gRPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/channel.h"
#include "lib/artifact/artifact_store.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "worker/agent/cancellation.h"

namespace luthier {

// Where inputs come from.
class BlobSource {
 public:
  virtual ~BlobSource() = default;
  // Gives the bytes from `offset` on to `sink` in order. Errors: NOT_FOUND; DATA_LOSS if the server's copy is damaged;
  // CANCELLED; UNAVAILABLE (try again from where it stopped); that of `sink`.
  virtual absl::Status Fetch(const std::string& sha256, int64_t offset,
                             const std::function<absl::Status(absl::string_view)>& sink,
                             Cancellation& cancellation) = 0;
};

// Where artifacts go.
class ArtifactSink {
 public:
  virtual ~ArtifactSink() = default;
  // Uploads the files of `manifest` beneath `folder`, without those whose hash is in `stored`. Errors:
  // FAILED_PRECONDITION if `attempt` is not current any more; INVALID_ARGUMENT if a file changed; RESOURCE_EXHAUSTED;
  // CANCELLED; UNAVAILABLE.
  virtual absl::Status Upload(const std::string& attempt, const std::string& folder, const Manifest& manifest,
                              const std::set<std::string>& stored, Cancellation& cancellation) = 0;
};

// Thread-safe.
class ServerFiles final : public BlobSource, public ArtifactSink {
 public:
  explicit ServerFiles(const std::shared_ptr<grpc::Channel>& channel);
  absl::Status Fetch(const std::string& sha256, int64_t offset,
                     const std::function<absl::Status(absl::string_view)>& sink, Cancellation& cancellation) override;
  absl::Status Upload(const std::string& attempt, const std::string& folder, const Manifest& manifest,
                      const std::set<std::string>& stored, Cancellation& cancellation) override;

 private:
  std::unique_ptr<v1::WorkerService::Stub> stub_;
};

}  // namespace luthier
