#include <memory>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "server/core/reason.h"
#include "server/rpc/handle.h"
#include "server/rpc/services.h"
#include "server/rpc/sessions.h"

namespace luthier {
namespace {

constexpr size_t kBlobChunkBytes = 1 << 20;

// Sessions are callback streams, since there are as many as agents; files are streamed by threads, since disks block.
class WorkerService final : public v1::WorkerService::WithCallbackMethod_Session<v1::WorkerService::Service> {
 public:
  WorkerService(Backend& backend, Sessions& sessions) : backend_(backend), sessions_(sessions) {}

  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* context) override {
    return StartSession(backend_, sessions_, *context);
  }
  grpc::Status FetchBlob(grpc::ServerContext* context, const v1::FetchBlobRequest* request,
                         grpc::ServerWriter<v1::FetchBlobResponse>* writer) override {
    return Handle(backend_, *context, "FetchBlob", [&](Call&) { return SendBlob(*request, *writer); });
  }
  grpc::Status UploadArtifact(grpc::ServerContext* context, grpc::ServerReader<v1::UploadArtifactRequest>* reader,
                              v1::UploadArtifactResponse*) override {
    return Handle(backend_, *context, "UploadArtifact", [&](Call&) { return Receive(*reader); });
  }

 private:
  absl::Status SendBlob(const v1::FetchBlobRequest& request, grpc::ServerWriter<v1::FetchBlobResponse>& writer) {
    LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<BlobReader> blob,
                             backend_.artifacts.OpenBlob(request.sha256(), request.offset()));
    std::vector<char> buffer(kBlobChunkBytes);
    v1::FetchBlobResponse message;
    for (int64_t offset = request.offset();;) {
      LUTHIER_ASSIGN_OR_RETURN(const size_t size, blob->Read(std::span<char>(buffer)));
      if (size == 0) return absl::OkStatus();
      message.mutable_chunk()->set_offset(offset);
      message.mutable_chunk()->set_data(buffer.data(), size);
      message.mutable_chunk()->set_crc32c(Crc32c(message.chunk().data()));
      if (!writer.Write(message)) return absl::CancelledError("the agent went away");
      offset += static_cast<int64_t>(size);
    }
  }

  absl::Status CheckCurrent(const std::string& name) {
    return backend_.loop.Run([&](State& state, absl::Time) {
      const std::optional<AttemptId> attempt = ParseAttemptName(name);
      if (attempt && state.IsCurrent(*attempt)) return absl::OkStatus();
      return WithReason(absl::FailedPreconditionError(absl::StrCat("attempt: ", name, " is not current any more")),
                        "STALE_ATTEMPT");
    });
  }

  absl::Status Receive(grpc::ServerReader<v1::UploadArtifactRequest>& reader) {
    v1::UploadArtifactRequest message;
    if (!reader.Read(&message) || !message.has_header()) {
      return absl::InvalidArgumentError("header: the first message of an upload must carry it");
    }
    const v1::UploadArtifactHeader header = message.header();
    LUTHIER_RETURN_IF_ERROR(CheckCurrent(header.attempt()));
    // Files that the store holds already are not sent, and nothing may refer to them before the manifest does.
    BlobPins pins(backend_.artifacts);
    for (const v1::ModelFile& file : header.files()) pins.Add(file.sha256());
    int open = -1;
    std::unique_ptr<BlobWriter> blob;
    while (reader.Read(&message)) {
      const v1::ArtifactChunk& chunk = message.chunk();
      if (chunk.file_index() < 0 || chunk.file_index() >= header.files_size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("chunk.file_index: ", chunk.file_index(), " is not in the header"));
      }
      if (chunk.file_index() != open) {
        if (blob != nullptr) LUTHIER_RETURN_IF_ERROR(Finish(*blob, header.files(open)));
        open = chunk.file_index();
        LUTHIER_ASSIGN_OR_RETURN(blob, backend_.artifacts.PutBlob(header.files(open).size_bytes(), &pins));
      }
      if (chunk.chunk().offset() != blob->bytes() || Crc32c(chunk.chunk().data()) != chunk.chunk().crc32c()) {
        return absl::InvalidArgumentError(
            absl::StrCat("chunk: ", header.files(open).path(), " was damaged on the way"));
      }
      LUTHIER_RETURN_IF_ERROR(blob->Append(chunk.chunk().data()));
    }
    if (blob != nullptr) LUTHIER_RETURN_IF_ERROR(Finish(*blob, header.files(open)));
    return PutManifest(header);
  }

  absl::Status Finish(BlobWriter& blob, const v1::ModelFile& file) {
    const absl::Status status = blob.Commit(file.sha256()).status();
    if (!absl::IsDataLoss(status)) return status;
    return absl::InvalidArgumentError(absl::StrCat("files.sha256: the content of ", file.path(), " is another"));
  }

  absl::Status PutManifest(const v1::UploadArtifactHeader& header) {
    Manifest manifest;
    for (const v1::ModelFile& file : header.files()) {
      LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path()));
      manifest.files.push_back({file.path(), file.sha256(), file.size_bytes()});
    }
    const std::optional<AttemptId> attempt = ParseAttemptName(header.attempt());
    LUTHIER_RETURN_IF_ERROR(CheckCurrent(header.attempt()));
    return backend_.artifacts.PutManifest({attempt->job, attempt->attempt, "artifact"}, manifest);
  }

  Backend& backend_;
  Sessions& sessions_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(Backend& backend, Sessions& sessions) {
  return std::make_unique<WorkerService>(backend, sessions);
}

}  // namespace luthier
