// An agent that a test plays: it takes attempts and reports what the test says, over the real WorkerService.
#pragma once

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/artifact/hash.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "nlohmann/json.hpp"

namespace luthier {

// What an agent knows of an attempt beyond the session in which it took it.
struct HeldAttempt {
  std::string name, credential;
};

class ScriptedAgent {
 public:
  explicit ScriptedAgent(const std::string& server, const std::string& node = "n1")
      : ScriptedAgent(grpc::CreateChannel(server, grpc::InsecureChannelCredentials()), {}, /*waits=*/true, node) {}
  // `held`: from an earlier session; without a name: none. `waits`: for a server that is still to come.
  ScriptedAgent(const std::shared_ptr<grpc::Channel>& channel, const HeldAttempt& held, bool waits = false,
                const std::string& node = "n1")
      : stub_(v1::WorkerService::NewStub(channel)), attempt_(held.name), credential_(held.credential) {
    context_.set_wait_for_ready(waits);
    session_ = stub_->Session(&context_);
    v1::SessionRequest request;
    request.mutable_register_()->set_node_id(node);
    if (!held.name.empty()) request.mutable_register_()->add_attempts(held.name);
    request.mutable_register_()->mutable_inventory()->set_cpus(2);
    request.mutable_register_()->mutable_inventory()->set_memory_bytes(8'000'000'000);
    session_->Write(request);
  }
  ~ScriptedAgent() {
    context_.TryCancel();
    session_->Finish();
  }

  // Waits for an attempt to start; returns its name, or nothing if the server goes away.
  std::string TakeAttempt() {
    v1::SessionResponse response;
    while (session_->Read(&response)) {
      if (!response.has_start_attempt()) continue;
      credential_ = response.start_attempt().credential();
      sequence_ = 0;
      return attempt_ = response.start_attempt().attempt();
    }
    return "";
  }
  // Of the attempt that was taken last.
  const std::string& credential() const { return credential_; }
  // Waits for the order to stop it.
  bool TakeStop() {
    v1::SessionResponse response;
    while (session_->Read(&response)) {
      if (response.has_stop_attempt()) return true;
    }
    return false;
  }

  // One event of the trainer, durable when this returns true; false: the server went away.
  bool Report(const nlohmann::json& event) {
    v1::AttemptReport report;
    *report.mutable_trainer_event() = *JsonToStruct(event);
    return Send(report);
  }
  bool Log(const std::string& line) { return Log(std::vector<std::string>{line}); }
  bool Log(const std::vector<std::string>& lines) {
    v1::AttemptReport report;
    report.mutable_log_lines()->mutable_lines()->Add(lines.begin(), lines.end());
    return Send(report);
  }
  // Uploads the files and reports them as the job's adapter.
  bool Publish(const std::map<std::string, std::string>& files) {
    v1::AttemptReport report;
    report.mutable_artifact_stored()->set_kind(v1::ModelVersion::ADAPTER);
    return Upload(files, /*checkpoint=*/false, *report.mutable_artifact_stored()->mutable_files()) && Send(report);
  }
  // Uploads the files and reports them as the job's checkpoint.
  bool StoreCheckpoint(int64_t step, const std::map<std::string, std::string>& files) {
    v1::AttemptReport report;
    report.mutable_checkpoint_stored()->set_step(step);
    return Upload(files, /*checkpoint=*/true, *report.mutable_checkpoint_stored()->mutable_files()) && Send(report);
  }
  bool End(v1::AttemptEnded::Outcome outcome, const std::string& cause = "", const std::string& message = "") {
    v1::AttemptReport report;
    report.mutable_ended()->set_outcome(outcome);
    report.mutable_ended()->set_cause(cause);
    report.mutable_ended()->set_message(message);
    return Send(report);
  }

 private:
  static constexpr size_t kChunkBytes = size_t{1} << 20;

  // `described` becomes what the upload says of its files.
  bool Upload(const std::map<std::string, std::string>& files, bool checkpoint,
              google::protobuf::RepeatedPtrField<v1::ModelFile>& described) {
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt_);
    request.mutable_header()->set_credential(credential_);
    request.mutable_header()->set_checkpoint(checkpoint);
    for (const auto& [path, content] : files) {
      v1::ModelFile& file = *request.mutable_header()->add_files();
      file.set_path(path);
      file.set_size_bytes(static_cast<int64_t>(content.size()));
      file.set_sha256(Sha256Hex(content));
    }
    described = request.header().files();
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    const auto writer = stub_->UploadArtifact(&context, &response);
    writer->Write(request);
    int index = 0;
    for (const auto& [path, content] : files) {
      request.mutable_chunk()->set_file_index(index++);
      for (size_t at = 0; at == 0 || at < content.size(); at += kChunkBytes) {
        v1::FileChunk& chunk = *request.mutable_chunk()->mutable_chunk();
        chunk.set_offset(static_cast<int64_t>(at));
        chunk.set_data(content.substr(at, kChunkBytes));
        chunk.set_crc32c(Crc32c(chunk.data()));
        writer->Write(request);
      }
    }
    writer->WritesDone();
    return writer->Finish().ok();
  }

  bool Send(v1::AttemptReport report) {
    report.set_attempt(attempt_);
    report.set_sequence(++sequence_);
    v1::SessionRequest request;
    *request.mutable_report() = report;
    session_->Write(request);
    v1::SessionResponse response;
    while (session_->Read(&response)) {
      if (response.has_report_ack() && response.report_ack().sequence() >= sequence_) return true;
    }
    return false;
  }

  std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> session_;
  std::string attempt_, credential_;
  int64_t sequence_ = 0;  // of the attempt's newest report
};

}  // namespace luthier
