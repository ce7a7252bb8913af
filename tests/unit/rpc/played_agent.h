// A node whose agent the test plays, over the real WorkerService.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "lib/artifact/hash.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "nlohmann/json.hpp"

namespace luthier {

class PlayedAgent {
 public:
  using Files = std::map<std::string, std::string>;  // content by path

  PlayedAgent(v1::WorkerService::Stub& stub, const std::string& node) : PlayedAgent(stub, Registration(node)) {}
  PlayedAgent(v1::WorkerService::Stub& stub, const v1::Register& registration, const std::string& token = "")
      : stub_(stub), token_(token) {
    Carry(context_);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    session_ = stub.Session(&context_);
    v1::SessionRequest request;
    *request.mutable_register_() = registration;
    session_->Write(request);
    registered_ = Await([](const v1::SessionResponse& response) { return response.has_registered(); }).registered();
  }
  ~PlayedAgent() {
    if (session_ == nullptr) return;
    context_.TryCancel();
    session_->Finish();
  }

  static v1::Register Registration(const std::string& node) {
    v1::Register registration;
    registration.set_node_id(node);
    return registration;
  }

  // How the server refuses an agent that registers so.
  static grpc::Status RefusalOf(v1::WorkerService::Stub& stub, const v1::Register& registration) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    const auto session = stub.Session(&context);
    v1::SessionRequest request;
    *request.mutable_register_() = registration;
    session->Write(request);
    v1::SessionResponse response;
    if (session->Read(&response)) {
      ADD_FAILURE() << "it was taken: " << response.DebugString();
      context.TryCancel();
    }
    return session->Finish();
  }

  const v1::Registered& registered() const { return registered_; }
  // It holds an attempt of before, of which so many reports are acknowledged.
  void GoOnWith(const std::string& attempt, int64_t sequence) {
    attempt_ = attempt;
    sequence_ = sequence;
  }
  // Whether it was told to end an attempt before what was read last.
  bool told_to_stop() const { return told_to_stop_; }
  v1::StartAttempt TakeStart() {
    v1::StartAttempt start =
        Await([](const v1::SessionResponse& response) { return response.has_start_attempt(); }).start_attempt();
    attempt_ = start.attempt();
    credential_ = start.credential();
    sequence_ = 0;
    return start;
  }
  v1::StopAttempt TakeStop() {
    return Await([](const v1::SessionResponse& response) { return response.has_stop_attempt(); }).stop_attempt();
  }
  v1::CheckpointAttempt TakeCheckpoint() {
    return Await([](const v1::SessionResponse& response) { return response.has_checkpoint_attempt(); })
        .checkpoint_attempt();
  }
  void Leave() {
    v1::SessionRequest request;
    request.mutable_heartbeat()->set_leaving(true);
    session_->Write(request);
  }
  grpc::Status Fetch(const std::string& sha256) {
    grpc::ClientContext context;
    Carry(context);
    v1::FetchBlobRequest request;
    request.set_attempt(attempt_);
    request.set_credential(credential_);
    request.set_sha256(sha256);
    const auto reader = stub_.FetchBlob(&context, request);
    v1::FetchBlobResponse piece;
    while (reader->Read(&piece)) {
    }
    return reader->Finish();
  }
  // Of a checkpoint. Files in `left_out` are named and not sent.
  grpc::Status Upload(const Files& files, const std::set<std::string>& left_out = {}) {
    return Upload(files, left_out, /*checkpoint=*/true);
  }
  // The same of what the attempt publishes.
  grpc::Status UploadResult(const Files& files, const std::set<std::string>& left_out = {}) {
    return Upload(files, left_out, /*checkpoint=*/false);
  }
  // Sends no content.
  grpc::Status Announce(v1::UploadArtifactHeader header) {
    grpc::ClientContext context;
    Carry(context);
    v1::UploadArtifactResponse response;
    const auto writer = stub_.UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    header.set_attempt(attempt_);
    header.set_credential(credential_);
    *request.mutable_header() = std::move(header);
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }
  void ReportStored(int64_t step, const Files& files) {
    v1::CheckpointStored stored;
    stored.set_step(step);
    Fill(files, stored);
    ReportStored(std::move(stored));
  }
  void ReportStored(v1::CheckpointStored stored) {
    v1::AttemptReport report;
    *report.mutable_checkpoint_stored() = std::move(stored);
    Report(std::move(report));
  }
  void ReportEvent(const nlohmann::json& event) {
    v1::AttemptReport report;
    *report.mutable_trainer_event() = *JsonToStruct(event);
    Report(std::move(report));
  }
  // As an agent of a version that has reports of further kinds.
  void ReportOfNewKind() { Report(v1::AttemptReport()); }
  // Sends reports one behind the other, and says how the server ends the session, which acknowledges none.
  grpc::Status EndAfterReports(int64_t reports) {
    v1::SessionRequest request;
    v1::AttemptReport& report = *request.mutable_report();
    report.set_attempt(attempt_);
    report.mutable_log_lines()->add_lines("a line");
    for (int64_t i = 1; i <= reports; ++i) {
      report.set_sequence(sequence_ + i);
      session_->Write(request);
    }
    v1::SessionResponse response;
    while (session_->Read(&response)) EXPECT_FALSE(response.has_report_ack()) << response.DebugString();
    return std::exchange(session_, nullptr)->Finish();
  }
  void ReportStopped() { ReportEnd(v1::AttemptEnded::STOPPED); }
  void ReportEnd(v1::AttemptEnded::Outcome outcome, const std::string& cause = "", const std::string& message = "") {
    v1::AttemptReport report;
    report.mutable_ended()->set_outcome(outcome);
    report.mutable_ended()->set_cause(cause);
    report.mutable_ended()->set_message(message);
    Report(std::move(report));
  }

 private:
  grpc::Status Upload(const Files& files, const std::set<std::string>& left_out, bool checkpoint) {
    grpc::ClientContext context;
    Carry(context);
    v1::UploadArtifactResponse response;
    const auto writer = stub_.UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt_);
    request.mutable_header()->set_credential(credential_);
    request.mutable_header()->set_checkpoint(checkpoint);
    Fill(files, *request.mutable_header());
    writer->Write(request);
    int index = -1;
    for (const auto& [path, content] : files) {
      request.mutable_chunk()->set_file_index(++index);
      if (left_out.count(path) > 0) continue;
      request.mutable_chunk()->mutable_chunk()->set_data(content);
      request.mutable_chunk()->mutable_chunk()->set_crc32c(Crc32c(content));
      writer->Write(request);
    }
    writer->WritesDone();
    return writer->Finish();
  }
  template <typename Message>
  static void Fill(const Files& files, Message& message) {
    for (const auto& [path, content] : files) {
      v1::ModelFile& file = *message.add_files();
      file.set_path(path);
      file.set_size_bytes(static_cast<int64_t>(content.size()));
      file.set_sha256(Sha256Hex(content));
    }
  }
  void Report(v1::AttemptReport report) {
    report.set_attempt(attempt_);
    report.set_sequence(++sequence_);
    v1::SessionRequest request;
    *request.mutable_report() = std::move(report);
    session_->Write(request);
    Await([](const v1::SessionResponse& response) { return response.has_report_ack(); });
  }
  template <typename Wanted>
  v1::SessionResponse Await(const Wanted& wanted) {
    v1::SessionResponse response;
    while (session_->Read(&response)) {
      told_to_stop_ |= response.has_stop_attempt();
      if (wanted(response)) return response;
    }
    ADD_FAILURE() << "the session is over";
    return {};
  }

  void Carry(grpc::ClientContext& context) const {
    if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
  }

  v1::WorkerService::Stub& stub_;
  const std::string token_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> session_;
  v1::Registered registered_;
  std::string attempt_, credential_;
  int64_t sequence_ = 0;
  bool told_to_stop_ = false;
};

}  // namespace luthier
