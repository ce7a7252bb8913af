#include <functional>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/services.h"
#include "server/rpc/sessions.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

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
    return Handle(backend_, *context, "FetchBlob", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const auto transfer, backend_.transfers.Begin(*context, call));
      return SendBlob(call, *transfer, *request, *writer);
    });
  }
  grpc::Status UploadArtifact(grpc::ServerContext* context, grpc::ServerReader<v1::UploadArtifactRequest>* reader,
                              v1::UploadArtifactResponse*) override {
    return Handle(backend_, *context, "UploadArtifact", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const auto transfer, backend_.transfers.Begin(*context, call));
      return Receive(call, *transfer, *reader);
    });
  }

 private:
  absl::Status SendBlob(Call& call, Transfers::Transfer& transfer, const v1::FetchBlobRequest& request,
                        grpc::ServerWriter<v1::FetchBlobResponse>& writer) {
    LUTHIER_RETURN_IF_ERROR(CheckReader(call, request));
    LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> blob,
                             backend_.artifacts.OpenBlob(request.sha256(), request.offset()));
    v1::FetchBlobResponse message;
    return transfer.WriteBlob(*blob, request.offset(), writer, message);
  }

  // An agent on any node of the attempt may read its inputs.
  absl::Status CheckReader(Call& call, const v1::FetchBlobRequest& request) {
    return CheckAttempt(call, request.attempt(), request.credential(), [&](const Job& job) {
      if (HeldOn(job, call.node) == nullptr) LUTHIER_RETURN_IF_ERROR(CheckLeads(call, job));
      return CheckInput(job, request.sha256());
    });
  }

  // What it made comes from the leading node.
  absl::Status CheckWriter(Call& call, const v1::UploadArtifactHeader& header) {
    return CheckAttempt(call, header.attempt(), header.credential(),
                        [&](const Job& job) { return CheckLeads(call, job); });
  }

  static absl::Status CheckLeads(const Call& call, const Job& job) {
    if (call.node.empty() || call.node == job.node) return absl::OkStatus();
    return WithReason(absl::PermissionDeniedError(absl::StrCat("attempt: ", AttemptName(job), " is of node ", job.node,
                                                               ", and this token is for ", call.node)),
                      "PERMISSION_DENIED");
  }

  // An artifact of nothing would stand where the attempt's own has to be published.
  static absl::Status CheckFiles(const v1::UploadArtifactHeader& header) {
    if (header.files().empty()) return absl::InvalidArgumentError("header.files: is empty; name every file");
    for (const v1::ModelFile& file : header.files()) {
      if (IsSha256Hex(file.sha256())) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("header.files.sha256: ", Shown(file.sha256()), " of ", Shown(file.path()),
                       " is no SHA-256; give that of the content, 64 lower-case hexadecimal digits"));
    }
    return absl::OkStatus();
  }

  // Whether the caller is an agent of the attempt, which is current; `check` looks at its job, in the loop.
  absl::Status CheckAttempt(Call& call, const std::string& name, const std::string& credential,
                            const std::function<absl::Status(const Job&)>& check) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const AttemptId attempt, ParseAttempt(name));
    if (!backend_.access.IsCredentialOf(name, credential)) {
      return WithReason(absl::PermissionDeniedError(absl::StrCat("credential: is not that of ", name,
                                                                 "; it comes with the order to start the attempt")),
                        "PERMISSION_DENIED");
    }
    return backend_.loop.Run([&](State& state, absl::Time) -> absl::Status {
      if (!state.IsCurrent(attempt)) {
        return WithReason(
            absl::FailedPreconditionError(absl::StrCat("attempt: ", name, " is not current any more; end it")),
            "STALE_ATTEMPT");
      }
      return check(*state.Find(attempt.job));
    });
  }

  // Loop thread.
  absl::Status CheckInput(const Job& job, const std::string& sha256) {
    LUTHIER_ASSIGN_OR_RETURN(const SpecBytes spec, backend_.store.Spec(job.number));
    const StoredSpec stored = ParseStoredSpec(spec);
    for (const v1::AttemptInput& input : stored.start.inputs()) {
      for (const v1::ModelFile& file : input.files()) {
        if (file.sha256() == sha256) return absl::OkStatus();
      }
    }
    v1::CheckpointStored checkpoint;  // of another node, to go on from
    if (const auto payload = backend_.store.Checkpoint(job.number); payload.ok()) checkpoint.ParseFromString(*payload);
    for (const v1::ModelFile& file : checkpoint.files()) {
      if (file.sha256() == sha256) return absl::OkStatus();
    }
    return absl::NotFoundError(
        absl::StrCat("sha256: ", Shown(sha256), " is no input of jobs/", job.id, "; ask for those of the order"));
  }

  absl::Status Receive(Call& call, Transfers::Transfer& transfer,
                       grpc::ServerReader<v1::UploadArtifactRequest>& reader) {
    v1::UploadArtifactRequest message;
    if (!transfer.Read(reader, message) || !message.has_header()) {
      return absl::InvalidArgumentError("header: the first message of an upload must carry it");
    }
    const v1::UploadArtifactHeader header = message.header();
    LUTHIER_RETURN_IF_ERROR(CheckWriter(call, header));
    LUTHIER_RETURN_IF_ERROR(CheckFiles(header));
    // Files that the store holds already are not sent, and nothing may refer to them before the manifest does.
    BlobPins pins(backend_.artifacts);
    for (const v1::ModelFile& file : header.files()) pins.Add(file.sha256());
    ArtifactErrors& errors = backend_.artifact_errors;
    int open = -1;
    std::unique_ptr<BlobWriter> blob;
    while (transfer.Read(reader, message)) {
      LUTHIER_RETURN_IF_ERROR(backend_.access.StillAdmits(call));
      const v1::ArtifactChunk& chunk = message.chunk();
      if (chunk.file_index() < 0 || chunk.file_index() >= header.files_size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("chunk.file_index: ", chunk.file_index(), " is not in the header; name every file there"));
      }
      if (chunk.file_index() != open) {
        if (blob != nullptr) LUTHIER_RETURN_IF_ERROR(Finish(*blob, header.files(open)));
        open = chunk.file_index();
        const v1::ModelFile& file = header.files(open);
        LUTHIER_ASSIGN_OR_RETURN(blob,
                                 errors.Answer(backend_.artifacts.PutBlob(file.sha256(), file.size_bytes(), &pins)));
      }
      if (chunk.chunk().offset() != blob->bytes() || Crc32c(chunk.chunk().data()) != chunk.chunk().crc32c()) {
        return absl::InvalidArgumentError(
            absl::StrCat("chunk: ", header.files(open).path(), " was damaged on the way; upload again"));
      }
      LUTHIER_RETURN_IF_ERROR(errors.Answer(blob->Append(chunk.chunk().data())));
    }
    if (blob != nullptr) LUTHIER_RETURN_IF_ERROR(Finish(*blob, header.files(open)));
    return header.checkpoint() ? CheckStored(call, header) : PutManifest(call, header);
  }

  absl::Status Finish(BlobWriter& blob, const v1::ModelFile& file) {
    const absl::Status status = backend_.artifact_errors.Commit(blob);
    if (!absl::IsInvalidArgument(status)) return status;
    return absl::InvalidArgumentError(
        absl::StrCat("files.sha256: the content of ", file.path(), " is another; upload again"));
  }

  // What was left out may have been removed since.
  absl::Status CheckStored(Call& call, const v1::UploadArtifactHeader& header) {
    for (const v1::ModelFile& file : header.files()) {
      const absl::StatusOr<int64_t> size = backend_.artifacts.BlobSize(file.sha256());
      if (size.ok() && *size == file.size_bytes()) continue;
      if (!size.ok() && !absl::IsNotFound(size.status())) return backend_.artifact_errors.Answer(size.status());
      return absl::FailedPreconditionError(absl::StrCat("files: ", file.path(), " is not stored; send it"));
    }
    return CheckWriter(call, header);
  }

  absl::Status PutManifest(Call& call, const v1::UploadArtifactHeader& header) {
    Manifest manifest;
    for (const v1::ModelFile& file : header.files()) {
      LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path()));
      manifest.files.push_back({file.path(), file.sha256(), file.size_bytes()});
    }
    const std::optional<AttemptId> attempt = ParseAttemptName(header.attempt());
    LUTHIER_RETURN_IF_ERROR(CheckWriter(call, header));
    return backend_.artifact_errors.Answer(
        backend_.artifacts.PutManifest({attempt->job, attempt->attempt, "artifact"}, manifest));
  }

  Backend& backend_;
  Sessions& sessions_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(Backend& backend, Sessions& sessions) {
  return std::make_unique<WorkerService>(backend, sessions);
}

}  // namespace luthier
