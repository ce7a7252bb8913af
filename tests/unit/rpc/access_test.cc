// Who may call what: every method with every role, and what one tenant sees of another.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "nlohmann/json.hpp"
#include "server/rpc/admin_token.h"
#include "server/rpc/attempt_key.h"
#include "server/rpc/audit_log.h"
#include "tests/support/wait_for.h"
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
    const bool for_viewers = need == Need::kRead || need == Need::kShare;
    EXPECT_EQ(refused(*method, viewer), !for_viewers) << method->name();
    EXPECT_EQ(refused(*method, member), !for_viewers && need != Need::kWrite) << method->name();
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
  const auto exported = [&](const std::string& model) {
    v1::ExportModelVersionRequest request;
    request.set_name(absl::StrCat("models/", model, "/versions/1"));
    request.set_format(v1::ModelExport::MERGED);
    return CallAs(other, *jobs_, &Stub::ExportModelVersion, request, job);
  };
  hidden(exported("j"), exported("zz"));
  const auto urls = [&](const std::string& secret, const std::string& model) {
    v1::SignModelVersionUrlsRequest request;
    request.set_name(absl::StrCat("models/", model, "/versions/1"));
    v1::SignModelVersionUrlsResponse signed_urls;
    return CallAs(secret, *models_, &v1::ModelService::Stub::SignModelVersionUrls, request, signed_urls);
  };
  EXPECT_TRUE(urls(mine, "j").ok()) << "it has no files, so nothing was to be signed";
  hidden(urls(other, "j"), urls(other, "zz"));
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
  hidden(of_sweep(&Sweeps::StartSweep, v1::StartSweepRequest(), "j"),
         of_sweep(&Sweeps::StartSweep, v1::StartSweepRequest(), "zz"));
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

TEST_F(AccessTest, TwoTenantsDoNotPublishUnderOneName) {
  AddInputs();
  RequireTokens();
  const std::string mine = Make("mine", v1::ROLE_MEMBER, "default"), other = Make("other", v1::ROLE_MEMBER, "b");
  std::string rows;
  for (int i = 0; i < 24; ++i) absl::StrAppend(&rows, ChatLine(absl::StrCat("row ", i), i % 2 == 0 ? "even" : "odd"));
  v1::Dataset dataset;
  grpc::ClientContext upload;
  Carry(upload, other);
  ASSERT_TRUE(UploadRows(*datasets_, upload, "theirs", rows, dataset).ok());

  using Jobs = v1::FineTuningService::Stub;
  v1::FineTuningJob job;
  v1::CreateFineTuningJobRequest first = RequestFor("j");
  first.mutable_job()->mutable_spec()->set_output_model("intents");
  ASSERT_TRUE(CallAs(mine, *jobs_, &Jobs::CreateFineTuningJob, first, job).ok());
  const auto refused = [](const grpc::Status& status, const std::string& message) {
    EXPECT_EQ(status.error_code(), StatusCode::ALREADY_EXISTS);
    EXPECT_EQ(status.error_message(), message);
    EXPECT_EQ(ParseErrorDetails(status.error_details()).reason, "MODEL_NAME_TAKEN");
  };
  const std::string taken = "output_model: 'intents' is taken; choose another one";
  v1::CreateFineTuningJobRequest second = RequestFor("k");
  second.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("theirs");
  ASSERT_TRUE(CallAs(other, *jobs_, &Jobs::CreateFineTuningJob, second, job).ok());
  second.set_job_id("l");
  second.mutable_job()->mutable_spec()->set_output_model("intents");
  for (const bool validate_only : {true, false}) {
    second.set_validate_only(validate_only);
    refused(CallAs(other, *jobs_, &Jobs::CreateFineTuningJob, second, job), taken);
  }
  v1::CreateFineTuningJobRequest by_id = second;
  by_id.set_job_id("intents");
  by_id.mutable_job()->mutable_spec()->clear_output_model();
  refused(CallAs(other, *jobs_, &Jobs::CreateFineTuningJob, by_id, job),
          "job_id: 'intents' is taken as the name of a model; choose another one, or give an output_model");
  v1::CreateFineTuningJobRequest for_them = second;
  for_them.mutable_job()->set_tenant("b");
  refused(CallAs(root_, *jobs_, &Jobs::CreateFineTuningJob, for_them, job), taken);
  v1::CloneFineTuningJobRequest clone;
  clone.set_name("jobs/k");
  *clone.mutable_job() = second.job();
  clone.mutable_update_mask()->add_paths("spec.output_model");
  refused(CallAs(other, *jobs_, &Jobs::CloneFineTuningJob, clone, job), taken);
  v1::CreateSweepRequest sweep;
  *sweep.mutable_sweep()->mutable_job() = second.job();
  sweep.mutable_sweep()->add_grid()->set_field("training.seed");
  sweep.mutable_sweep()->mutable_grid(0)->add_values("1");
  v1::Sweep created;
  for (const bool validate_only : {true, false}) {
    sweep.set_validate_only(validate_only);
    refused(CallAs(other, *sweeps_, &v1::SweepService::Stub::CreateSweep, sweep, created), taken);
  }

  // Nobody publishes under it any more: whoever comes first has it.
  v1::CancelFineTuningJobRequest cancel;
  cancel.set_name("jobs/j");
  ASSERT_TRUE(CallAs(mine, *jobs_, &Jobs::CancelFineTuningJob, cancel, job).ok());
  ASSERT_TRUE(CallAs(other, *jobs_, &Jobs::CreateFineTuningJob, second, job).ok());
  v1::RetryFineTuningJobRequest retry;
  retry.set_name("jobs/j");
  const grpc::Status too_late = CallAs(mine, *jobs_, &Jobs::RetryFineTuningJob, retry, job);
  EXPECT_EQ(too_late.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(too_late.error_message(), HasSubstr("output_model: 'intents' is taken by now"));
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
  v1::SignModelVersionUrlsRequest sharing;
  sharing.set_name("models/j/versions/1");
  v1::SignModelVersionUrlsResponse urls;
  CallAs(viewer, *models_, &v1::ModelService::Stub::SignModelVersionUrls, sharing, urls);
  CallAs("guessed-secret", *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, request, job);
  std::vector<std::string> notes;
  for (const nlohmann::json& line : AuditLines()) {
    notes.push_back(absl::StrCat(line["token"].get<std::string>(), " ", line["method"].get<std::string>(), " ",
                                 line["subject"].get<std::string>(), " ", line["code"].get<std::string>()));
    for (const std::string& secret : {root_, viewer, std::string("guessed-secret")})
      EXPECT_THAT(line.dump(), Not(HasSubstr(secret)));
  }
  EXPECT_THAT(notes, ElementsAre(" CreateToken tokens/root OK", "root CreateToken tokens/viewer OK",
                                 "viewer CancelFineTuningJob  PERMISSION_DENIED",
                                 "viewer SignModelVersionUrls models/j/versions/1 NOT_FOUND",
                                 " CancelFineTuningJob  UNAUTHENTICATED"));
  // Nor does the database hold a secret.
  for (const char* name : {"/luthier.db", "/luthier.db-wal"}) {
    std::ifstream file(folder_.path() + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_THAT(bytes, Not(HasSubstr(root_))) << name;
  }
}

// Else a thousand calls would push every other line out of the files that are kept.
TEST_F(AccessTest, ACallerCannotFillTheAuditLogWithALongName) {
  RequireTokens();
  v1::RevokeTokenRequest request;
  request.set_name("tokens/" + std::string(1'000'000, 'a'));
  v1::Token token;
  EXPECT_EQ(CallAs(root_, *admin_, &v1::AdminService::Stub::RevokeToken, request, token).error_code(),
            StatusCode::INVALID_ARGUMENT);
  const nlohmann::json last = AuditLines().back();
  EXPECT_EQ(last["method"], "RevokeToken");
  EXPECT_EQ(last["subject"].get<std::string>().size(), 1024u);
}

TEST_F(AccessTest, AnAgentWithATokenForANodeIsNoOther) {
  RequireTokens();
  v1::CreateTokenRequest request;
  request.set_token_id("gpu-1");
  request.mutable_token()->set_role(v1::ROLE_AGENT);
  request.mutable_token()->set_node("gpu-1");
  v1::CreateTokenResponse made;
  ASSERT_TRUE(CallAs(root_, *admin_, &v1::AdminService::Stub::CreateToken, request, made).ok());
  EXPECT_EQ(made.token().node(), "gpu-1");
  EXPECT_EQ((*store_->Tokens())[0].node, "gpu-1") << "a server that starts knows it, too";

  const auto own = Register(made.secret(), "gpu-1");
  EXPECT_TRUE(own->stream->Read(&own->response));
  const auto other = Register(made.secret(), "gpu-2");
  EXPECT_FALSE(other->stream->Read(&other->response));
  const grpc::Status refused = other->stream->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refused.error_message(), AllOf(HasSubstr("register.node_id: gpu-2"), HasSubstr("--node-id gpu-1")));
  EXPECT_EQ(AuditLines().back()["subject"], "nodes/gpu-2");

  request.set_token_id("nobody");
  request.mutable_token()->set_role(v1::ROLE_ADMIN);
  EXPECT_EQ(CallAs(root_, *admin_, &v1::AdminService::Stub::CreateToken, request, made).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST_F(AccessTest, FilesOfAnAttemptNeedItsCredentialAsLongAsItIsCurrent) {
  AddInputs();
  RequireTokens();
  const std::string agent = Make("agent", v1::ROLE_AGENT);
  v1::CreateTokenRequest of_node;
  of_node.set_token_id("n2");
  of_node.mutable_token()->set_role(v1::ROLE_AGENT);
  of_node.mutable_token()->set_node("n2");
  v1::CreateTokenResponse n2;
  ASSERT_TRUE(CallAs(root_, *admin_, &v1::AdminService::Stub::CreateToken, of_node, n2).ok());
  v1::FineTuningJob job;
  ASSERT_TRUE(CallAs(root_, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job).ok());
  const auto session = Register(agent, "n1");
  do {
    ASSERT_TRUE(session->stream->Read(&session->response));
  } while (!session->response.has_start_attempt());
  const v1::StartAttempt& order = session->response.start_attempt();

  v1::FetchBlobRequest fetch;
  fetch.set_attempt(order.attempt());
  fetch.set_credential(order.credential());
  fetch.set_sha256(order.inputs(1).files(0).sha256());
  std::string bytes;
  EXPECT_TRUE(Fetch(agent, fetch, bytes).ok());
  EXPECT_EQ(Sha256Hex(bytes), fetch.sha256());
  EXPECT_EQ(Fetch("", fetch, bytes).error_code(), StatusCode::UNAUTHENTICATED) << "it stands beside a token";
  EXPECT_EQ(Fetch(n2.secret(), fetch, bytes).error_code(), StatusCode::PERMISSION_DENIED) << "another node's attempt";
  EXPECT_TRUE(UploadFor(agent, order.attempt(), order.credential()).ok());
  EXPECT_EQ(UploadFor(n2.secret(), order.attempt(), order.credential()).error_code(), StatusCode::PERMISSION_DENIED);

  v1::FetchBlobRequest wrong = fetch;
  wrong.set_sha256(Sha256Hex("another job's model"));
  EXPECT_EQ(Fetch(agent, wrong, bytes).error_code(), StatusCode::NOT_FOUND);
  wrong = fetch;
  wrong.set_attempt("jobs/j/attempts/2");
  EXPECT_EQ(Fetch(agent, wrong, bytes).error_code(), StatusCode::PERMISSION_DENIED) << "it is no other attempt's";
  wrong = fetch;
  wrong.clear_credential();
  EXPECT_EQ(Fetch(agent, wrong, bytes).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(UploadFor(agent, order.attempt(), "").error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(UploadFor(root_, order.attempt(), std::string(64, '0')).error_code(), StatusCode::PERMISSION_DENIED);

  Report("j", 1, 1, JobInput::kAttemptFailed);
  EXPECT_EQ(Fetch(agent, fetch, bytes).error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(UploadFor(agent, order.attempt(), order.credential()).error_code(), StatusCode::FAILED_PRECONDITION)
      << "worthless once the attempt is over";
}

TEST_F(AccessTest, AnAgentThatComesBackGetsTheCredentialsOfItsCurrentAttempts) {
  AddInputs();
  v1::FineTuningJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job).ok());
  Connect("n1");
  grpc::ClientContext context;
  const auto again = workers_->Session(&context);
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id("n1");
  request.mutable_register_()->add_attempts("jobs/j/attempts/1");
  request.mutable_register_()->add_attempts("jobs/gone/attempts/1");
  again->Write(request);
  v1::SessionResponse response;
  ASSERT_TRUE(again->Read(&response));
  ASSERT_EQ(response.registered().credentials().size(), 1u);
  EXPECT_EQ(response.registered().credentials().at("jobs/j/attempts/1"), access_.CredentialOf("jobs/j/attempts/1"));
  context.TryCancel();
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

TEST_F(AccessTest, OneTenantCannotTakeAllWatches) {
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "default");
  Submit("j");
  struct Watch {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::WatchFineTuningJobResponse>> reader;
  };
  std::deque<Watch> watches;
  const auto watch = [&](const std::string& secret) {
    Watch& added = watches.emplace_back();
    Carry(added.context, secret);
    added.context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    v1::WatchFineTuningJobRequest request;
    request.set_name("jobs/j");
    added.reader = jobs_->WatchFineTuningJob(&added.context, request);
    v1::WatchFineTuningJobResponse message;
    return added.reader->Read(&message);
  };
  for (size_t i = 0; i < kWatchersOfTenant; ++i) EXPECT_TRUE(watch(viewer)) << i;
  EXPECT_FALSE(watch(viewer));
  const grpc::Status refused = watches.back().reader->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = ParseErrorDetails(refused.error_details());
  EXPECT_EQ(details.reason, "TOO_MANY_WATCHERS");
  EXPECT_EQ(details.quota_subject, "tenants/default");
  EXPECT_TRUE(details.retry_delay.has_value());
  EXPECT_TRUE(watch(root_)) << "the others watch on";
  EXPECT_EQ(watches_.watchers(), kWatchersOfTenant + 1);

  watches.front().context.TryCancel();
  ASSERT_TRUE(WaitFor([&] { return watches_.watchers() == kWatchersOfTenant; }));
  EXPECT_TRUE(watch(viewer)) << "there is room again";
  for (Watch& open : watches) open.context.TryCancel();
}

TEST_F(AccessTest, TheQueueOfATenantIsItsOwn) {
  RequireTokens();
  const std::string a = Make("a", v1::ROLE_MEMBER, "a"), b = Make("b", v1::ROLE_VIEWER, "b"),
                    c = Make("c", v1::ROLE_VIEWER, "c");
  const auto queue_of = [&](const std::string& secret) {
    v1::Queue queue;
    EXPECT_TRUE(CallAs(secret, *queue_, &v1::QueueService::Stub::GetQueue, v1::GetQueueRequest(), queue).ok());
    return queue;
  };
  Do([](State& state, absl::Time now) {
    (void)state.AddResource(ResourceKind::kBaseModel, {.id = "base", .create_time = now});
    int minutes = 0;
    for (const auto& [id, tenant] : {std::pair("a1", "a"), std::pair("b1", "b"), std::pair("b2", "b")}) {
      Job job{.id = id, .base_model = "base"};
      job.tenant = tenant;
      ASSERT_TRUE(state.Create(job, {}, {.own = JoinStoredSpec("", "")}, now + absl::Minutes(minutes++)).ok());
    }
  });
  const v1::Queue all = queue_of(root_), of_a = queue_of(a), of_b = queue_of(b), of_c = queue_of(c);
  EXPECT_EQ(all.depth(), 3);
  EXPECT_EQ(of_a.depth(), 1);
  EXPECT_EQ(of_b.depth(), 2);
  EXPECT_EQ(of_b.entries_size(), 2);
  EXPECT_EQ(of_c.depth(), 0);
  EXPECT_FALSE(of_c.has_oldest_create_time());
  EXPECT_EQ(all.oldest_create_time().seconds(), of_a.oldest_create_time().seconds());
  EXPECT_EQ(of_b.oldest_create_time().seconds(), of_a.oldest_create_time().seconds() + 60);
}

// In one process nothing is sent before it is read.
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

TEST(AttemptKeyTest, IsMadeOnceAndIsForTheServersEyesOnly) {
  const TempFolder folder;
  const absl::StatusOr<std::string> key = AttemptKeyOf(folder.path());
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(*AttemptKeyOf(folder.path()), *key);
  struct stat found = {};
  ASSERT_EQ(stat((folder.path() + "/attempt-key").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  std::ofstream(folder.path() + "/attempt-key") << "short";
  EXPECT_TRUE(absl::IsDataLoss(AttemptKeyOf(folder.path()).status()));
  // RFC 4231, test case 2.
  EXPECT_EQ(AttemptCredential("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(AuditLogTest, KeepsTheNewestLinesInSoManyFilesOfSoManyBytes) {
  const TempFolder folder;
  const AuditLog::Options options{.path = folder.path() + "/audit.log", .max_bytes = 100, .files = 3};
  const auto text_of = [&](const std::string& suffix) {
    std::ifstream file(options.path + suffix);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  };
  for (int line = 0; line < 40; line += 20) {  // and goes on after a restart
    AuditLog log(options);
    for (int i = line; i < line + 20; ++i) log.Append(absl::StrCat("a line with the number ", i));
  }
  std::string expected;
  const std::string kept = text_of(".2") + text_of(".1") + text_of("");
  const auto count = std::count(kept.begin(), kept.end(), '\n');
  EXPECT_GE(count, 7) << "two files are full";
  for (auto i = 40 - count; i < 40; ++i) absl::StrAppend(&expected, "a line with the number ", i, "\n");
  EXPECT_EQ(kept, expected);
  for (const char* suffix : {"", ".1", ".2"}) {
    EXPECT_LE(text_of(suffix).size(), 100u);
    struct stat found = {};
    ASSERT_EQ(stat((options.path + suffix).c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 0777, 0600u);
  }
  EXPECT_FALSE(std::ifstream(options.path + ".3").is_open());
}

TEST(AuditLogTest, GoesOnOnceItCanBeOpened) {
  const TempFolder folder;
  AuditLog log({.path = folder.path() + "/later/audit.log"});
  log.Append("lost");
  std::filesystem::create_directory(folder.path() + "/later");
  log.Append("kept");
  std::ifstream file(folder.path() + "/later/audit.log");
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), "kept\n");
}

// A file that may not grow stands for a disk that is full in the middle of a line.
TEST(AuditLogTest, ALineThatTheDiskTookHalfOfIsNotThere) {
  const TempFolder folder;
  AuditLog log({.path = folder.path() + "/audit.log"});
  log.Append("a whole line");
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = signal(SIGXFSZ, SIG_IGN);
  struct rlimit full = before;
  full.rlim_cur = 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  log.Append("one that the disk has no room for");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, ignored);
  log.Append("another");
  std::ifstream file(folder.path() + "/audit.log");
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), "a whole line\nanother\n");
}

}  // namespace
}  // namespace luthier
