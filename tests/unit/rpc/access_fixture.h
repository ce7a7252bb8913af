// Services behind tokens: calls as their bearers.
#pragma once

#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "nlohmann/json.hpp"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {

class AccessTest : public ServicesTest {
 protected:
  // An empty message to a method, whatever kind of method it is.
  grpc::Status CallEmpty(const google::protobuf::MethodDescriptor& method, const std::string& secret) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    Carry(context, secret);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    grpc::CompletionQueue queue;
    const auto next = [&] {
      void* tag;
      bool ok = false;
      queue.Next(&tag, &ok);
      return ok;
    };
    const auto call =
        stub.PrepareCall(&context, absl::StrCat("/", method.service()->full_name(), "/", method.name()), &queue);
    call->StartCall(nullptr);
    next();
    const grpc::Slice empty;
    call->WriteLast(grpc::ByteBuffer(&empty, 1), grpc::WriteOptions(), nullptr);
    next();
    grpc::ByteBuffer answer;
    do {
      call->Read(&answer, nullptr);
    } while (next());
    grpc::Status status;
    call->Finish(&status, nullptr);
    next();
    return status;
  }
  static void Carry(grpc::ClientContext& context, const std::string& secret) {
    if (!secret.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", secret));
  }
  // A call as the bearer of a token.
  template <typename Stub, typename Request, typename Response>
  static grpc::Status CallAs(const std::string& secret, Stub& stub,
                             grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                             const Request& request, Response& response) {
    grpc::ClientContext context;
    Carry(context, secret);
    return (stub.*method)(&context, request, &response);
  }
  grpc::Status Create(const std::string& id, v1::Role role, const std::string& tenant, std::string& secret) {
    v1::CreateTokenRequest request;
    request.set_token_id(id);
    request.mutable_token()->set_role(role);
    request.mutable_token()->set_tenant(tenant);
    v1::CreateTokenResponse response;
    const grpc::Status status = CallAs(root_, *admin_, &v1::AdminService::Stub::CreateToken, request, response);
    secret = response.secret();
    return status;
  }
  // For the agent of a node; `id` is its name.
  std::string MakeForNode(const std::string& id) {
    v1::CreateTokenRequest request;
    request.set_token_id(id);
    request.mutable_token()->set_role(v1::ROLE_AGENT);
    request.mutable_token()->set_node(id);
    v1::CreateTokenResponse response;
    const grpc::Status status = CallAs(root_, *admin_, &v1::AdminService::Stub::CreateToken, request, response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.secret();
  }
  std::string Make(const std::string& id, v1::Role role, const std::string& tenant = "") {
    std::string secret;
    const grpc::Status status = Create(id, role, tenant, secret);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return secret;
  }
  void RequireTokens() { root_ = Make("root", v1::ROLE_ADMIN); }
  grpc::Status GetJob(const std::string& secret, const std::string& id, v1::FineTuningJob& job) {
    v1::GetFineTuningJobRequest request;
    request.set_name(absl::StrCat("jobs/", id));
    return CallAs(secret, *jobs_, &v1::FineTuningService::Stub::GetFineTuningJob, request, job);
  }
  void Revoke(const std::string& id) {
    v1::RevokeTokenRequest request;
    request.set_name("tokens/" + id);
    v1::Token token;
    const grpc::Status status = CallAs(root_, *admin_, &v1::AdminService::Stub::RevokeToken, request, token);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  // A session that registers as `node`, or how it ended at once.
  struct OpenSession {
    ~OpenSession() { context.TryCancel(); }
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream;
    v1::SessionResponse response;  // newest
  };
  std::unique_ptr<OpenSession> Register(const std::string& secret, const std::string& node) {
    auto session = std::make_unique<OpenSession>();
    Carry(session->context, secret);
    session->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    session->stream = workers_->Session(&session->context);
    v1::SessionRequest request;
    request.mutable_register_()->set_node_id(node);
    request.mutable_register_()->mutable_inventory()->set_cpus(1);
    session->stream->Write(request);
    return session;
  }
  // The messages of an upload of one row.
  static v1::UploadDatasetRequest UploadOf(const std::string& id, int message) {
    const std::string row = ChatLine("a", "b");
    v1::UploadDatasetRequest request;
    if (message == 0) {
      request.mutable_header()->set_dataset_id(id);
      v1::DatasetPart& part = *request.mutable_header()->add_parts();
      part.set_part("train");
      part.set_size_bytes(static_cast<int64_t>(row.size()));
      part.set_sha256(Sha256Hex(row));
    } else {
      request.mutable_chunk()->set_part("train");
      request.mutable_chunk()->set_data(row);
      request.mutable_chunk()->set_crc32c(Crc32c(row));
    }
    return request;
  }
  grpc::Status Fetch(const std::string& secret, const v1::FetchBlobRequest& request, std::string& bytes) {
    grpc::ClientContext context;
    Carry(context, secret);
    const auto reader = workers_->FetchBlob(&context, request);
    v1::FetchBlobResponse piece;
    for (bytes.clear(); reader->Read(&piece);) bytes += piece.chunk().data();
    return reader->Finish();
  }
  grpc::Status UploadFor(const std::string& secret, const std::string& attempt, const std::string& credential) {
    grpc::ClientContext context;
    Carry(context, secret);
    v1::UploadArtifactResponse response;
    const auto writer = workers_->UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt);
    request.mutable_header()->set_credential(credential);
    v1::ModelFile& file = *request.mutable_header()->add_files();
    file.set_path("weights");
    file.set_sha256(Sha256Hex("weights"));
    file.set_size_bytes(7);
    writer->Write(request);
    request.mutable_chunk()->mutable_chunk()->set_data("weights");
    request.mutable_chunk()->mutable_chunk()->set_crc32c(Crc32c("weights"));
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }
  std::vector<nlohmann::json> AuditLines() {
    std::ifstream file(folder_.path() + "/audit.log");
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    std::vector<nlohmann::json> lines;
    for (const auto& line : absl::StrSplit(text, '\n', absl::SkipEmpty())) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  std::string root_;  // secret of an admin, once there is one
};

}  // namespace luthier
