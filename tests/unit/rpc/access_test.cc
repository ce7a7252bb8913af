// Who may call what: every method with every role, and what one tenant sees of another.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using grpc::StatusCode;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::vector<const google::protobuf::MethodDescriptor*> EveryMethod() {
  std::vector<const google::protobuf::MethodDescriptor*> methods;
  for (const google::protobuf::FileDescriptor* file :
       {v1::Backup::descriptor()->file(), v1::FineTuningJob::descriptor()->file(), v1::Dataset::descriptor()->file(),
        v1::ModelVersion::descriptor()->file(), v1::Node::descriptor()->file(), v1::Queue::descriptor()->file(),
        v1::Sweep::descriptor()->file(), v1::SessionRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) methods.push_back(file->service(s)->method(m));
    }
  }
  return methods;
}

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
  std::vector<nlohmann::json> AuditLines() {
    std::ifstream file(folder_.path() + "/audit.log");
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    std::vector<nlohmann::json> lines;
    for (const auto& line : absl::StrSplit(text, '\n', absl::SkipEmpty())) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  std::string root_;  // secret of an admin, once there is one
};

TEST_F(AccessTest, KnowsWhatEveryMethodNeeds) {
  std::set<std::string> in_table, in_protos;
  for (const MethodNeed& need : kMethodNeeds)
    EXPECT_TRUE(in_table.insert(std::string(need.method)).second) << need.method;
  for (const auto* method : EveryMethod()) in_protos.insert(method->name());
  EXPECT_EQ(in_table, in_protos);
}

TEST_F(AccessTest, EveryMethodTakesTheRolesThatItsNeedAllowsAndNoOthers) {
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "a"), member = Make("member", v1::ROLE_MEMBER, "a"),
                    agent = Make("agent", v1::ROLE_AGENT), admin = Make("another", v1::ROLE_ADMIN);
  const auto refused = [&](const google::protobuf::MethodDescriptor& method, const std::string& secret) {
    const grpc::Status status = CallEmpty(method, secret);
    EXPECT_NE(status.error_code(), StatusCode::UNAUTHENTICATED) << method.name();
    EXPECT_NE(status.error_code(), StatusCode::DEADLINE_EXCEEDED) << method.name();
    return status.error_code() == StatusCode::PERMISSION_DENIED;
  };
  for (const auto* method : EveryMethod()) {
    const Need need = std::find_if(kMethodNeeds.begin(), kMethodNeeds.end(), [&](const MethodNeed& n) {
                        return n.method == method->name();
                      })->need;
    EXPECT_EQ(refused(*method, viewer), need != Need::kRead) << method->name();
    EXPECT_EQ(refused(*method, member), need != Need::kRead && need != Need::kWrite) << method->name();
    EXPECT_EQ(refused(*method, agent), need != Need::kAgent) << method->name();
    EXPECT_FALSE(refused(*method, admin)) << method->name();
    EXPECT_EQ(CallEmpty(*method, "").error_code(), StatusCode::UNAUTHENTICATED) << method->name();
    EXPECT_EQ(CallEmpty(*method, "guessed").error_code(), StatusCode::UNAUTHENTICATED) << method->name();
  }
}

TEST_F(AccessTest, AnotherTenantsResourcesLookAsIfTheyDidNotExist) {
  AddInputs();  // of tenant `default`, as nobody needed a token
  RequireTokens();
  const std::string mine = Make("mine", v1::ROLE_MEMBER, "default"), other = Make("other", v1::ROLE_MEMBER, "b");
  v1::FineTuningJob job;
  ASSERT_TRUE(CallAs(mine, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job).ok());
  EXPECT_EQ(job.tenant(), "default");
  Connect("n1");
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);

  const auto hidden = [](const grpc::Status& there, const grpc::Status& nowhere) {
    EXPECT_EQ(there.error_code(), StatusCode::NOT_FOUND) << there.error_message();
    EXPECT_EQ(there.error_message(), absl::StrReplaceAll(nowhere.error_message(), {{"zz", "j"}}))
        << "the words give it away";
  };
  EXPECT_TRUE(GetJob(mine, "j", job).ok());
  hidden(GetJob(other, "j", job), GetJob(other, "zz", job));
  const auto step = [&](auto method, auto request, const std::string& id) {
    request.set_name(absl::StrCat("jobs/", id));
    return CallAs(other, *jobs_, method, request, job);
  };
  using Stub = v1::FineTuningService::Stub;
  hidden(step(&Stub::CancelFineTuningJob, v1::CancelFineTuningJobRequest(), "j"),
         step(&Stub::CancelFineTuningJob, v1::CancelFineTuningJobRequest(), "zz"));
  hidden(step(&Stub::RetryFineTuningJob, v1::RetryFineTuningJobRequest(), "j"),
         step(&Stub::RetryFineTuningJob, v1::RetryFineTuningJobRequest(), "zz"));
  hidden(step(&Stub::CloneFineTuningJob, v1::CloneFineTuningJobRequest(), "j"),
         step(&Stub::CloneFineTuningJob, v1::CloneFineTuningJobRequest(), "zz"));
  const auto watch = [&](const std::string& id) {
    grpc::ClientContext context;
    Carry(context, other);
    v1::WatchFineTuningJobRequest request;
    request.set_name(absl::StrCat("jobs/", id));
    v1::WatchFineTuningJobResponse message;
    const auto reader = jobs_->WatchFineTuningJob(&context, request);
    EXPECT_FALSE(reader->Read(&message)) << message.ShortDebugString();
    return reader->Finish();
  };
  hidden(watch("j"), watch("zz"));
  const auto version = [&](const std::string& model) {
    v1::GetModelVersionRequest request;
    request.set_name(absl::StrCat("models/", model, "/versions/1"));
    v1::ModelVersion found;
    return CallAs(other, *models_, &v1::ModelService::Stub::GetModelVersion, request, found);
  };
  hidden(version("j"), version("zz"));
  const auto dataset = [&](const std::string& secret, const std::string& id) {
    v1::GetDatasetRequest request;
    request.set_name(absl::StrCat("datasets/", id));
    v1::Dataset found;
    return CallAs(secret, *datasets_, &v1::DatasetService::Stub::GetDataset, request, found);
  };
  EXPECT_TRUE(dataset(mine, "rows").ok());
  EXPECT_EQ(dataset(other, "rows").error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(CallAs(other, *jobs_, &Stub::CreateFineTuningJob, RequestFor("k"), job).error_code(), StatusCode::NOT_FOUND)
      << "their rows cannot be trained on";
  v1::CreateFineTuningJobRequest mixture = RequestFor("k");
  mixture.mutable_job()->mutable_spec()->mutable_dataset()->clear_dataset();
  mixture.mutable_job()->mutable_spec()->mutable_dataset()->add_mixture()->set_dataset("rows");
  EXPECT_EQ(CallAs(other, *jobs_, &Stub::CreateFineTuningJob, mixture, job).error_code(), StatusCode::NOT_FOUND)
      << "nor as a part of a mixture";

  v1::CreateSweepRequest creation;
  creation.set_sweep_id("j");
  *creation.mutable_sweep()->mutable_job() = RequestFor("").job();
  creation.mutable_sweep()->add_grid()->set_field("training.seed");
  creation.mutable_sweep()->mutable_grid(0)->add_values("1");
  v1::Sweep sweep;
  using Sweeps = v1::SweepService::Stub;
  ASSERT_TRUE(CallAs(mine, *sweeps_, &Sweeps::CreateSweep, creation, sweep).ok());
  const auto of_sweep = [&](auto method, auto request, const std::string& id) {
    request.set_name(absl::StrCat("sweeps/", id));
    return CallAs(other, *sweeps_, method, request, sweep);
  };
  hidden(of_sweep(&Sweeps::GetSweep, v1::GetSweepRequest(), "j"),
         of_sweep(&Sweeps::GetSweep, v1::GetSweepRequest(), "zz"));
  hidden(of_sweep(&Sweeps::CancelSweep, v1::CancelSweepRequest(), "j"),
         of_sweep(&Sweeps::CancelSweep, v1::CancelSweepRequest(), "zz"));
  v1::ListSweepsResponse sweeps;
  ASSERT_TRUE(CallAs(other, *sweeps_, &Sweeps::ListSweeps, v1::ListSweepsRequest(), sweeps).ok());
  EXPECT_EQ(sweeps.sweeps_size(), 0);

  v1::ListFineTuningJobsResponse jobs;
  ASSERT_TRUE(CallAs(other, *jobs_, &Stub::ListFineTuningJobs, v1::ListFineTuningJobsRequest(), jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 0);
  v1::ListDatasetsResponse datasets;
  ASSERT_TRUE(
      CallAs(other, *datasets_, &v1::DatasetService::Stub::ListDatasets, v1::ListDatasetsRequest(), datasets).ok());
  EXPECT_EQ(datasets.datasets_size(), 0);
  v1::ListModelsResponse models;
  ASSERT_TRUE(CallAs(other, *models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), models).ok());
  EXPECT_EQ(models.models_size(), 0);
  // An admin sees all of it.
  ASSERT_TRUE(CallAs(root_, *jobs_, &Stub::ListFineTuningJobs, v1::ListFineTuningJobsRequest(), jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 2);
}

TEST_F(AccessTest, AMemberSubmitsForItsOwnTenantOnly) {
  AddInputs();
  RequireTokens();
  const std::string mine = Make("mine", v1::ROLE_MEMBER, "default");
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->set_tenant("b");
  v1::FineTuningJob job;
  EXPECT_EQ(CallAs(mine, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job).error_code(),
            StatusCode::PERMISSION_DENIED);
}

TEST_F(AccessTest, TheFirstTokenIsAnAdminsAndTheLastAdminStays) {
  std::string secret;
  const grpc::Status first = Create("alice", v1::ROLE_MEMBER, "a", secret);
  EXPECT_EQ(first.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ParseErrorDetails(first.error_details()).reason, "NO_ADMIN");
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

TEST_F(AccessTest, NotesWhatChangesAndWhatIsRefusedWithoutAnySecret) {
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "a");
  v1::FineTuningJob job;
  v1::CancelFineTuningJobRequest request;
  request.set_name("jobs/j");
  CallAs(viewer, *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, request, job);
  GetJob(viewer, "j", job);
  CallAs("guessed-secret", *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, request, job);
  std::vector<std::string> notes;
  for (const nlohmann::json& line : AuditLines()) {
    notes.push_back(absl::StrCat(line["token"].get<std::string>(), " ", line["method"].get<std::string>(), " ",
                                 line["subject"].get<std::string>(), " ", line["code"].get<std::string>()));
    for (const std::string& secret : {root_, viewer, std::string("guessed-secret")})
      EXPECT_THAT(line.dump(), Not(HasSubstr(secret)));
  }
  EXPECT_THAT(notes,
              ElementsAre(" CreateToken tokens/root OK", "root CreateToken tokens/viewer OK",
                          "viewer CancelFineTuningJob  PERMISSION_DENIED", " CancelFineTuningJob  UNAUTHENTICATED"));
  // Nor does the database hold a secret.
  for (const char* name : {"/luthier.db", "/luthier.db-wal"}) {
    std::ifstream file(folder_.path() + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_THAT(bytes, Not(HasSubstr(root_))) << name;
  }
}

}  // namespace
}  // namespace luthier
