#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr size_t kChunkBytes = 1 << 20;
using SessionStream = grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>;

Node NodeOf(const v1::Register& request) {
  Node node;
  node.id = request.node_id();
  node.gpus = request.inventory().gpus_size() > 0;
  node.devices = std::max(1, request.inventory().gpus_size());
  node.agent_version = request.agent_version();
  node.inventory = request.inventory().SerializeAsString();
  return node;
}

class WorkerService final : public v1::WorkerService::Service {
 public:
  WorkerService(Backend& backend, Sessions& sessions) : backend_(backend), sessions_(sessions) {}

  grpc::Status Session(grpc::ServerContext* context, SessionStream* stream) override {
    return Handle(backend_, "Session", [&] { return RunSession(*context, *stream); });
  }
  grpc::Status FetchBlob(grpc::ServerContext*, const v1::FetchBlobRequest* request,
                         grpc::ServerWriter<v1::FetchBlobResponse>* writer) override {
    return Handle(backend_, "FetchBlob", [&] { return SendBlob(*request, *writer); });
  }
  grpc::Status UploadArtifact(grpc::ServerContext*, grpc::ServerReader<v1::UploadArtifactRequest>* reader,
                              v1::UploadArtifactResponse*) override {
    return Handle(backend_, "UploadArtifact", [&] { return Receive(*reader); });
  }

 private:
  absl::Status RunSession(grpc::ServerContext& context, SessionStream& stream) {
    v1::SessionRequest request;
    if (!stream.Read(&request) || !request.has_register_()) {
      return absl::InvalidArgumentError("register: the first message of a session must carry it");
    }
    const std::string node = request.register_().node_id();
    LUTHIER_RETURN_IF_ERROR(CheckId("register.node_id", node, /*dots=*/true));
    const std::shared_ptr<Outbox> outbox = sessions_.Add(node);
    // The writer ends when the outbox is closed: here, by a newer session of the node, or by a server that stops.
    std::thread writer([&] {
      while (std::optional<v1::SessionResponse> message = outbox->Take()) stream.Write(*message);
      context.TryCancel();
    });
    absl::Status opened = Open(request.register_(), *outbox);
    while (opened.ok() && stream.Read(&request)) {
      if (request.has_heartbeat()) {
        opened = TakeHeartbeat(node, request.heartbeat());
      } else if (request.has_report()) {
        // A report that could not be recorded ends the session: a later one would leave a gap. The agent dials again and
        // sends both.
        opened = Record(request.report(), *outbox);
      }
    }
    outbox->Close();
    writer.join();
    if (sessions_.Remove(node, outbox)) {
      (void)backend_.loop.Run([&](State& state, absl::Time now) {
        state.Disconnect(node, now);
        return absl::OkStatus();
      });
    }
    return opened;
  }

  // A busy loop is no reason to end a session; a lease that ran out is: the agent learns what it has lost when it registers.
  absl::Status TakeHeartbeat(const std::string& node, const v1::Heartbeat& heartbeat) {
    bool lapsed = false;
    (void)backend_.loop.Run([&](State& state, absl::Time now) {
      if (heartbeat.leaving()) {
        state.Disconnect(node, now);
      } else {
        lapsed = !state.Heartbeat(node, heartbeat.inventory().SerializeAsString(), now);
      }
      return absl::OkStatus();
    });
    return lapsed ? absl::UnavailableError("the lease of this node ran out; register again") : absl::OkStatus();
  }

  absl::Status Open(const v1::Register& request, Outbox& outbox) {
    v1::SessionResponse response;
    v1::Registered& registered = *response.mutable_registered();
    registered.mutable_heartbeat_interval()->set_seconds(absl::ToInt64Seconds(kHeartbeatInterval));
    registered.mutable_lease()->set_seconds(absl::ToInt64Seconds(kLease));
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) {
      const std::vector<std::string> attempts(request.attempts().begin(), request.attempts().end());
      for (const std::string& stale : state.Register(NodeOf(request), attempts, now)) registered.add_stale_attempts(stale);
      for (const std::string& name : attempts) {
        const std::optional<AttemptId> attempt = ParseAttemptName(name);
        if (!attempt || !state.IsCurrent(*attempt)) continue;
        v1::ReportAck& ack = *registered.add_acks();
        ack.set_attempt(name);
        ack.set_sequence(state.Find(attempt->job)->last_report);
      }
      for (const std::string& name : request.kept_jobs()) {
        const Job* job = state.Find(std::string(absl::StripPrefix(name, "jobs/")));
        if (job != nullptr && IsTerminal(job->state)) registered.add_jobs_over(name);
      }
      return absl::OkStatus();
    }));
    outbox.Open(std::move(response));
    return absl::OkStatus();
  }

  bool AllStored(const v1::ArtifactStored& stored) {
    for (const v1::ModelFile& file : stored.files()) {
      const absl::StatusOr<int64_t> size = backend_.artifacts.BlobSize(file.sha256());
      if (!size.ok() || *size != file.size_bytes()) return false;
    }
    return stored.files_size() > 0;
  }

  absl::Status Record(const v1::AttemptReport& message, Outbox& outbox) {
    const bool publishable = !message.has_artifact_stored() || AllStored(message.artifact_stored());
    bool current = false, over = false;
    const absl::Status recorded = backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      const std::optional<AttemptId> attempt = ParseAttemptName(message.attempt());
      const Job* job = attempt ? state.Find(attempt->job) : nullptr;
      LUTHIER_ASSIGN_OR_RETURN(Report report, FromProto(message, job == nullptr ? "" : job->report));
      if (!publishable) {
        report.input = JobInput::kAttemptLost;
        report.message = "files of its artifact are not in the store";
      }
      current = state.Record(std::move(report), now);
      over = job != nullptr && IsTerminal(job->state);
      return absl::OkStatus();
    });
    if (!recorded.ok() && !absl::IsInvalidArgument(recorded)) return recorded;
    v1::SessionResponse ack;
    ack.mutable_report_ack()->set_attempt(message.attempt());
    ack.mutable_report_ack()->set_sequence(message.sequence());
    ack.mutable_report_ack()->set_job_over(over);
    outbox.Put(std::move(ack));
    if (current || message.has_ended()) return absl::OkStatus();
    v1::SessionResponse stop;
    stop.mutable_stop_attempt()->set_attempt(message.attempt());
    outbox.Put(std::move(stop));
    return absl::OkStatus();
  }

  absl::Status SendBlob(const v1::FetchBlobRequest& request, grpc::ServerWriter<v1::FetchBlobResponse>& writer) {
    LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<BlobReader> blob,
                             backend_.artifacts.OpenBlob(request.sha256(), request.offset()));
    std::vector<char> buffer(kChunkBytes);
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
      return absl::FailedPreconditionError(absl::StrCat("attempt: ", name, " is not current any more"));
    });
  }

  absl::Status Receive(grpc::ServerReader<v1::UploadArtifactRequest>& reader) {
    v1::UploadArtifactRequest message;
    if (!reader.Read(&message) || !message.has_header()) {
      return absl::InvalidArgumentError("header: the first message of an upload must carry it");
    }
    const v1::UploadArtifactHeader header = message.header();
    LUTHIER_RETURN_IF_ERROR(CheckCurrent(header.attempt()));
    int open = -1;
    std::unique_ptr<BlobWriter> blob;
    while (reader.Read(&message)) {
      const v1::ArtifactChunk& chunk = message.chunk();
      if (chunk.file_index() < 0 || chunk.file_index() >= header.files_size()) {
        return absl::InvalidArgumentError(absl::StrCat("chunk.file_index: ", chunk.file_index(), " is not in the header"));
      }
      if (chunk.file_index() != open) {
        if (blob != nullptr) LUTHIER_RETURN_IF_ERROR(Finish(*blob, header.files(open)));
        open = chunk.file_index();
        LUTHIER_ASSIGN_OR_RETURN(blob, backend_.artifacts.PutBlob(header.files(open).size_bytes()));
      }
      if (chunk.chunk().offset() != blob->bytes() || Crc32c(chunk.chunk().data()) != chunk.chunk().crc32c()) {
        return absl::InvalidArgumentError(absl::StrCat("chunk: ", header.files(open).path(), " was damaged on the way"));
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
