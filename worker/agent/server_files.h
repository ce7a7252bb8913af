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
#include "lib/artifact/manifest.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "worker/agent/cancellation.h"

namespace luthier {

// What an attempt shows the server for its files.
struct AttemptPass {
  std::string attempt;     // `jobs/{job}/attempts/{attempt}`
  std::string credential;  // that came with its order
};

// Where inputs come from.
class BlobSource {
 public:
  virtual ~BlobSource() = default;
  // Gives the bytes of an attempt's input from `offset` on to `sink` in order. Errors: PERMISSION_DENIED;
  // FAILED_PRECONDITION if the attempt is not current any more; NOT_FOUND; DATA_LOSS if the server's copy is damaged;
  // CANCELLED; UNAVAILABLE (try again from where it stopped); that of `sink`.
  virtual absl::Status Fetch(const AttemptPass& pass, const std::string& sha256, int64_t offset,
                             const std::function<absl::Status(absl::string_view)>& sink,
                             Cancellation& cancellation) = 0;
};

// As reports and uploads name it.
v1::ModelFile ToProto(const ManifestFile& file);

// What an attempt sends: the files of `manifest` beneath `folder`, without those whose hash is in `stored`.
struct ArtifactUpload {
  AttemptPass pass;
  std::string folder;
  Manifest manifest;
  std::set<std::string> stored;
  bool checkpoint = false;  // and not its result
  // Called with the bytes of each piece once it is sent; the next one follows when it returns.
  std::function<void(int64_t)> on_sent = [](int64_t) {};
};

// Where artifacts go.
class ArtifactSink {
 public:
  virtual ~ArtifactSink() = default;
  // Errors: PERMISSION_DENIED; FAILED_PRECONDITION if the attempt is not current any more, or a file in `stored` is
  // not; INVALID_ARGUMENT if a file changed; RESOURCE_EXHAUSTED; CANCELLED; UNAVAILABLE.
  virtual absl::Status Upload(const ArtifactUpload& upload, Cancellation& cancellation) = 0;
};

// Thread-safe.
class ServerFiles final : public BlobSource, public ArtifactSink {
 public:
  explicit ServerFiles(const std::shared_ptr<grpc::Channel>& channel);
  absl::Status Fetch(const AttemptPass& pass, const std::string& sha256, int64_t offset,
                     const std::function<absl::Status(absl::string_view)>& sink, Cancellation& cancellation) override;
  absl::Status Upload(const ArtifactUpload& upload, Cancellation& cancellation) override;

 private:
  std::unique_ptr<v1::WorkerService::Stub> stub_;
};

}  // namespace luthier
