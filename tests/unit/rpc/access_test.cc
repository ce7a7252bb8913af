// Who may call what: every method with every role, what one tenant sees of another, and what agents may.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "lib/artifact/hash.h"
#include "server/rpc/attempt_key.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/access_fixture.h"
#include "tests/unit/rpc/played_agent.h"

namespace luthier {
namespace {

using grpc::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;

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

// What else is wrong with a request is said with what it names: also then nobody learns what there is.
TEST_F(AccessTest, AnotherTenantsResourcesLookTheSameBesideOtherFaults) {
  AddInputs();  // datasets/rows of tenant `default`
  RequireTokens();
  const std::string mine = Make("mine", v1::ROLE_MEMBER, "default"), other = Make("other", v1::ROLE_MEMBER, "b");
  v1::FineTuningJob job;
  using Jobs = v1::FineTuningService::Stub;
  ASSERT_TRUE(CallAs(mine, *jobs_, &Jobs::CreateFineTuningJob, RequestFor("j"), job).ok());
  Connect("n1");
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);  // models/j/versions/1

  const auto naming = [](const std::string& dataset, const std::string& model) {
    v1::FineTuningJob asked = RequestFor("").job();
    asked.mutable_spec()->mutable_dataset()->set_dataset(dataset);
    if (!model.empty())
      asked.mutable_spec()->mutable_lora()->set_start_from(absl::StrCat("models/", model, "/versions/1"));
    asked.mutable_spec()->mutable_lora()->set_rank(999);
    return asked;
  };
  const auto submit = [&](const std::string& dataset, const std::string& model) {
    v1::CreateFineTuningJobRequest request;
    request.set_job_id("k");
    *request.mutable_job() = naming(dataset, model);
    return CallAs(other, *jobs_, &Jobs::CreateFineTuningJob, request, job);
  };
  const auto sweep = [&](const std::string& dataset, const std::string& model) {
    v1::CreateSweepRequest request;
    request.set_sweep_id("s");
    *request.mutable_sweep()->mutable_job() = naming(dataset, model);
    request.mutable_sweep()->add_grid()->set_field("training.seed");
    request.mutable_sweep()->mutable_grid(0)->add_values("1");
    v1::Sweep created;
    return CallAs(other, *sweeps_, &v1::SweepService::Stub::CreateSweep, request, created);
  };
  const auto hidden = [](const grpc::Status& theirs, const grpc::Status& nobodys, const std::string& name) {
    EXPECT_THAT(theirs.error_message(), AllOf(HasSubstr("lora.rank: "), HasSubstr(name + " does not exist")));
    EXPECT_EQ(theirs.error_code(), nobodys.error_code());
    EXPECT_EQ(theirs.error_message(),
              absl::StrReplaceAll(nobodys.error_message(), {{"/nobodys", "/rows"}, {"/no-one", "/j"}}))
        << "the words give it away";
  };
  hidden(submit("rows", ""), submit("nobodys", ""), "datasets/rows");
  hidden(submit("rows", "j"), submit("nobodys", "no-one"), "models/j/versions/1");
  hidden(sweep("rows", ""), sweep("nobodys", ""), "datasets/rows");
  hidden(sweep("rows", "j"), sweep("nobodys", "no-one"), "models/j/versions/1");
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

TEST_F(AccessTest, AMemberSeesAsMuchOfItsOwnQueueAsItAsksForThoughOthersWaitToo) {
  AddInputs();
  RequireTokens();
  const std::string mine = Make("mine", v1::ROLE_MEMBER, "b");
  Do([](State& state, absl::Time now) {
    for (const char* tenant : {"a", "b", "c"}) {
      for (int i = 0; i < 3; ++i) {
        Job job{.id = absl::StrCat(tenant, i), .base_model = "base", .tenant = tenant};
        EXPECT_TRUE(state.Create(job, {}, {.own = JoinStoredSpec("", "")}, now).ok());
      }
    }
  });
  v1::GetQueueRequest request;
  request.set_limit(3);
  v1::Queue queue;
  ASSERT_TRUE(CallAs(mine, *queue_, &v1::QueueService::Stub::GetQueue, request, queue).ok());
  EXPECT_EQ(queue.depth(), 3);
  EXPECT_EQ(queue.entries_size(), 3);
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
    EXPECT_EQ(ReasonOf(status), "MODEL_NAME_TAKEN");
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
  const std::string agent = Make("agent", v1::ROLE_AGENT), n2 = MakeForNode("n2");
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
  EXPECT_EQ(Fetch(n2, fetch, bytes).error_code(), StatusCode::PERMISSION_DENIED) << "another node's attempt";
  EXPECT_TRUE(UploadFor(agent, order.attempt(), order.credential()).ok());
  EXPECT_EQ(UploadFor(n2, order.attempt(), order.credential()).error_code(), StatusCode::PERMISSION_DENIED);

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

TEST_F(AccessTest, EveryNodeOfAnAttemptReadsItsInputsAndOnlyTheLeadingOneUploads) {
  AddInputs();
  RequireTokens();
  v1::CreateFineTuningJobRequest create = RequestFor("j");
  create.mutable_job()->mutable_spec()->mutable_resources()->set_nodes(2);
  v1::FineTuningJob job;
  ASSERT_TRUE(CallAs(root_, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, create, job).ok());
  const std::string stranger = MakeForNode("n3");
  const auto play = [&](const std::string& node) {
    v1::Register registration = PlayedAgent::Registration(node);
    registration.set_gang_address(node);
    registration.set_gang_port(29400);
    return std::make_unique<PlayedAgent>(*workers_, registration, MakeForNode(node));
  };
  const auto n1 = play("n1"), n2 = play("n2");
  const v1::StartAttempt order = n1->TakeStart();
  n2->TakeStart();
  PlayedAgent& leading = order.gang().node_rank() == 0 ? *n1 : *n2;
  PlayedAgent& other = order.gang().node_rank() == 0 ? *n2 : *n1;

  v1::FetchBlobRequest fetch;
  fetch.set_attempt(order.attempt());
  fetch.set_credential(order.credential());
  fetch.set_sha256(order.inputs(1).files(0).sha256());
  EXPECT_TRUE(leading.Fetch(fetch.sha256()).ok());
  EXPECT_TRUE(other.Fetch(fetch.sha256()).ok());
  std::string bytes;
  EXPECT_EQ(Fetch(stranger, fetch, bytes).error_code(), StatusCode::PERMISSION_DENIED);

  const PlayedAgent::Files files = {{"step-1/state.json", "state"}};
  EXPECT_EQ(other.Upload(files).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(leading.Upload(files).ok());
}

TEST_F(AccessTest, AnAgentThatComesBackGetsTheCredentialsOfItsCurrentAttempts) {
  AddInputs();
  v1::FineTuningJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job).ok());
  Connect("n1");
  v1::Register registration = PlayedAgent::Registration("n1");
  registration.add_attempts("jobs/j/attempts/1");
  registration.add_attempts("jobs/gone/attempts/1");
  const PlayedAgent again(*workers_, registration);
  ASSERT_EQ(again.registered().credentials().size(), 1u);
  EXPECT_EQ(again.registered().credentials().at("jobs/j/attempts/1"), access_.CredentialOf("jobs/j/attempts/1"));
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

}  // namespace
}  // namespace luthier
