// The first token, and how long tokens and what was opened with them are worth something.
#include <gmock/gmock.h>

#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "server/rpc/admin_token.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/access_fixture.h"

namespace luthier {
namespace {

using grpc::StatusCode;

TEST_F(AccessTest, TheFirstTokenIsAnAdminsAndTheLastAdminStays) {
  std::string secret;
  const grpc::Status first = Create("alice", v1::ROLE_MEMBER, "a", secret);
  EXPECT_EQ(first.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(first), "NO_ADMIN");
  RequireTokens();
  v1::RevokeTokenRequest request;
  request.set_name("tokens/root");
  v1::Token token;
  EXPECT_EQ(CallAs(root_, *admin_, &v1::AdminService::Stub::RevokeToken, request, token).error_code(),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Create("alice", v1::ROLE_MEMBER, "", secret).error_code(), StatusCode::INVALID_ARGUMENT)
      << "a member is of a tenant";
  EXPECT_EQ(Create("boss", v1::ROLE_ADMIN, "a", secret).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Create("root", v1::ROLE_ADMIN, "", secret).error_code(), StatusCode::ALREADY_EXISTS);
}

TEST_F(AccessTest, SaysAllThatIsWrongWithATokenAtOnce) {
  v1::CreateTokenRequest request;
  request.set_token_id("No Id");
  request.mutable_token()->set_tenant("No Tenant");
  request.mutable_token()->set_node("No Node");
  request.mutable_token()->mutable_expire_time()->set_seconds(1);
  v1::CreateTokenResponse response;
  using Stub = v1::AdminService::Stub;
  grpc::Status refused = Call(*admin_, &Stub::CreateToken, request, response);
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("token_id", "token.role", "token.tenant", "token.node",
                                                      "token.expire_time", "token.role"))
      << "the first has to be an admin's";
  RequireTokens();
  request.set_token_id("root");
  refused = CallAs(root_, *admin_, &Stub::CreateToken, request, response);
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused),
              testing::ElementsAre("token.role", "token.tenant", "token.node", "token.expire_time", "token_id"));
}

TEST_F(AccessTest, ARevokedTokenIsWorthlessAtOnceAndAfterARestart) {
  RequireTokens();
  const std::string alice = Make("alice", v1::ROLE_VIEWER, "a");
  v1::ListFineTuningJobsResponse jobs;
  using Stub = v1::FineTuningService::Stub;
  EXPECT_TRUE(CallAs(alice, *jobs_, &Stub::ListFineTuningJobs, v1::ListFineTuningJobsRequest(), jobs).ok());
  v1::RevokeTokenRequest request;
  request.set_name("tokens/alice");
  v1::Token token;
  ASSERT_TRUE(CallAs(root_, *admin_, &v1::AdminService::Stub::RevokeToken, request, token).ok());
  EXPECT_TRUE(token.has_revoke_time());
  EXPECT_EQ(CallAs(alice, *jobs_, &Stub::ListFineTuningJobs, v1::ListFineTuningJobsRequest(), jobs).error_code(),
            StatusCode::UNAUTHENTICATED);
  // What is on record is what a server that starts knows.
  const std::vector<Token> recorded = *store_->Tokens();
  ASSERT_EQ(recorded.size(), 2u);
  EXPECT_EQ(recorded[0].id, "alice");
  EXPECT_FALSE(recorded[0].ValidAt(absl::Now()));
  EXPECT_TRUE(recorded[1].ValidAt(absl::Now()));
}

TEST_F(AccessTest, AnExpiredTokenIsWorthless) {
  Access access(
      {{.id = "old", .sha256 = Sha256Hex("s"), .role = Role::kAdmin, .expire_time = absl::Now() - absl::Seconds(1)}},
      {});
  EXPECT_TRUE(access.required()) << "a server does not open again because its tokens have expired";
  EXPECT_FALSE(access.tokens()[0].ValidAt(absl::Now()));
}

TEST_F(AccessTest, OpenStreamsEndSoonAfterTheirTokenIsRevoked) {
  AddInputs();
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "default"), agent = Make("agent", v1::ROLE_AGENT),
                    member = Make("member", v1::ROLE_MEMBER, "default");
  v1::FineTuningJob job;
  v1::CreateFineTuningJobRequest creation = RequestFor("j");
  creation.set_hold(true);
  ASSERT_TRUE(CallAs(root_, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, creation, job).ok());
  const auto watch_as = [&](const std::string& secret, grpc::ClientContext& context) {
    Carry(context, secret);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::WatchFineTuningJobRequest request;
    request.set_name("jobs/j");
    auto reader = jobs_->WatchFineTuningJob(&context, request);
    v1::WatchFineTuningJobResponse message;
    EXPECT_TRUE(reader->Read(&message));
    return reader;
  };
  grpc::ClientContext watch_context, log_context, admin_context;
  const auto watch = watch_as(viewer, watch_context), admin = watch_as(root_, admin_context);
  Carry(log_context, viewer);
  v1::TailJobLogsRequest tail;
  tail.set_name("jobs/j");
  tail.set_follow(true);
  const auto logs = jobs_->TailJobLogs(&log_context, tail);
  const auto session = Register(agent, "n1");
  ASSERT_TRUE(session->stream->Read(&session->response));

  grpc::ClientContext upload_context;
  Carry(upload_context, member);
  v1::Dataset dataset;
  const auto upload = datasets_->UploadDataset(&upload_context, &dataset);
  upload->Write(UploadOf("more", 0));

  for (const char* id : {"viewer", "member", "agent"}) Revoke(id);
  v1::WatchFineTuningJobResponse message;
  while (watch->Read(&message)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), StatusCode::UNAUTHENTICATED);
  v1::TailJobLogsResponse line;
  EXPECT_FALSE(logs->Read(&line));
  EXPECT_EQ(logs->Finish().error_code(), StatusCode::UNAUTHENTICATED);
  upload->Write(UploadOf("more", 1));
  upload->WritesDone();
  EXPECT_EQ(upload->Finish().error_code(), StatusCode::UNAUTHENTICATED);
  v1::SessionRequest heartbeat;
  heartbeat.mutable_heartbeat();
  session->stream->Write(heartbeat);
  while (session->stream->Read(&session->response)) {
  }
  EXPECT_EQ(session->stream->Finish().error_code(), StatusCode::UNAUTHENTICATED);

  v1::StartFineTuningJobRequest start;
  start.set_name("jobs/j");
  ASSERT_TRUE(CallAs(root_, *jobs_, &v1::FineTuningService::Stub::StartFineTuningJob, start, job).ok());
  EXPECT_TRUE(admin->Read(&message)) << "the others go on";
  admin_context.TryCancel();
}

// In one process nothing is sent before it is read.
TEST_F(AccessTest, AnAgentWhoseTokenWasRevokedReportsNothingMore) {
  RequireTokens();
  const auto session = Register(Make("agent", v1::ROLE_AGENT), "n1");
  ASSERT_TRUE(session->stream->Read(&session->response));
  Revoke("agent");
  v1::SessionRequest report;
  report.mutable_report()->set_attempt("jobs/j/attempts/1");
  report.mutable_report()->set_sequence(1);
  report.mutable_report()->mutable_log_lines()->add_lines("line");
  session->stream->Write(report);
  EXPECT_FALSE(session->stream->Read(&session->response)) << session->response.DebugString();
  EXPECT_EQ(session->stream->Finish().error_code(), StatusCode::UNAUTHENTICATED);
}

TEST_F(AccessTest, ADownloadThatNobodyReadsEndsSoonAfterItsTokenIsRevoked) {
  AddInputs();
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "default");
  const auto begin = [&](const std::string& secret, grpc::ClientContext& context) {
    Carry(context, secret);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    v1::DownloadBaseModelRequest request;
    request.set_name("baseModels/base");
    auto download = models_->DownloadBaseModel(&context, request);
    v1::DownloadBaseModelResponse message;
    EXPECT_TRUE(download->Read(&message));
    return download;
  };
  grpc::ClientContext revoked_context, admin_context;
  const auto revoked = begin(viewer, revoked_context), admin = begin(root_, admin_context);
  EXPECT_EQ(transfers_.open(), 2u);
  Revoke("viewer");
  EXPECT_TRUE(WaitFor([&] { return transfers_.open() == 1; }));
  v1::DownloadBaseModelResponse message;
  while (revoked->Read(&message)) {
  }
  EXPECT_FALSE(revoked->Finish().ok());
  while (admin->Read(&message)) {
  }
  EXPECT_TRUE(admin->Finish().ok()) << "the others go on";
}

TEST_F(AccessTest, AStreamOfBeforeTheFirstTokenEndsOnceOneIsNeeded) {
  Submit("j");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  v1::WatchFineTuningJobRequest request;
  request.set_name("jobs/j");
  const auto watch = jobs_->WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  ASSERT_TRUE(watch->Read(&message));
  RequireTokens();
  while (watch->Read(&message)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), StatusCode::UNAUTHENTICATED);
}

// As `luthierd admin-token` does it.
TEST(AdminTokenTest, ALostSecretIsReplacedWhileNoServerUsesTheFolder) {
  const TempFolder folder;
  const absl::Time now = absl::Now();
  EXPECT_TRUE(absl::IsNotFound(ReplaceAdminToken(folder.path(), "root", now).status()));
  {
    const std::unique_ptr<Store> store = *Store::Open(folder.path());
    Writes writes;
    writes.tokens = {{.id = "root", .sha256 = Sha256Hex("lost"), .role = Role::kAdmin, .revoke_time = now},
                     {.id = "alice", .sha256 = Sha256Hex("a"), .role = Role::kMember, .tenant = "support"}};
    ASSERT_TRUE(store->Commit(writes).ok());
    EXPECT_FALSE(ReplaceAdminToken(folder.path(), "root", now).ok()) << "the folder is in use";
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(ReplaceAdminToken(folder.path(), "alice", now).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ReplaceAdminToken(folder.path(), "Root!", now).status()));
  const absl::StatusOr<std::string> secret = ReplaceAdminToken(folder.path(), "root", now);
  ASSERT_TRUE(secret.ok()) << secret.status();
  const absl::StatusOr<std::string> another = ReplaceAdminToken(folder.path(), "second", now);
  ASSERT_TRUE(another.ok()) << another.status();
  const std::vector<Token> tokens = *(*Store::Open(folder.path()))->Tokens();
  ASSERT_EQ(tokens.size(), 3u);
  EXPECT_EQ(tokens[1].sha256, Sha256Hex(*secret));
  EXPECT_TRUE(tokens[1].ValidAt(now)) << "also if the lost one had been revoked";
  EXPECT_EQ(tokens[1].role, Role::kAdmin);
  EXPECT_EQ(tokens[2].sha256, Sha256Hex(*another));
}

}  // namespace
}  // namespace luthier
