// What users do with jobs, nodes, tenants and versions through the API.
#include <gmock/gmock.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <thread>

#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Jobs = v1::FineTuningService::Stub;

class JobStepsTest : public ServicesTest {
 protected:
  void SetUp() override { AddInputs(); }

  v1::FineTuningJob Create(const v1::CreateFineTuningJobRequest& request) {
    v1::FineTuningJob job;
    const grpc::Status status = Call(*jobs_, &Jobs::CreateFineTuningJob, request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  template <typename Request>
  grpc::Status Step(grpc::Status (Jobs::*method)(grpc::ClientContext*, const Request&, v1::FineTuningJob*),
                    const std::string& id) {
    Request request;
    request.set_name("jobs/" + id);
    return Call(*jobs_, method, request, job_);
  }
  static std::string ReasonOf(const grpc::Status& status) { return ParseErrorDetails(status.error_details()).reason; }

  v1::FineTuningJob job_;  // the last answer of a step
};

TEST_F(JobStepsTest, PausesResumesAndCancels) {
  Create(RequestFor("j"));
  EXPECT_TRUE(Step(&Jobs::PauseFineTuningJob, "j").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::PAUSED);
  EXPECT_EQ(job_.pending_code(), v1::PENDING_REASON_PAUSED);
  EXPECT_TRUE(Step(&Jobs::ResumeFineTuningJob, "j").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::QUEUED);
  EXPECT_EQ(job_.pending_code(), v1::PENDING_REASON_NO_NODE);
  EXPECT_TRUE(Step(&Jobs::CancelFineTuningJob, "j").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::CANCELLED);
  const grpc::Status over = Step(&Jobs::PauseFineTuningJob, "j");
  EXPECT_EQ(over.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(over), "JOB_IS_OVER");
  EXPECT_THAT(over.error_message(), HasSubstr("jobs/j is CANCELLED"));
  EXPECT_EQ(Step(&Jobs::ResumeFineTuningJob, "nobody").error_code(), grpc::StatusCode::NOT_FOUND);
}

// The record is read beside the loop, which alone knows reasons: the job may have moved on between the two.
TEST_F(JobStepsTest, AJobThatChangesWhileItIsReadIsNeverShownWaitingWithoutAReason) {
  Create(RequestFor("j"));
  std::atomic<bool> over = false;
  std::thread changes([&] {
    while (!over) {
      Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Pause("j", now).ok()); });
      Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Resume("j", now).ok()); });
    }
  });
  v1::ListFineTuningJobsRequest waiting;
  waiting.add_states(v1::FineTuningJob::QUEUED);
  for (int i = 0; i < 300; ++i) {
    v1::GetFineTuningJobRequest get;
    get.set_name("jobs/j");
    ASSERT_TRUE(Call(*jobs_, &Jobs::GetFineTuningJob, get, job_).ok());
    EXPECT_NE(job_.pending_reason(), "") << v1::FineTuningJob::State_Name(job_.state());
    v1::ListFineTuningJobsResponse list;
    ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, waiting, list).ok());
    for (const v1::FineTuningJob& job : list.jobs()) {
      EXPECT_EQ(job.state(), v1::FineTuningJob::QUEUED);
      EXPECT_NE(job.pending_reason(), "");
    }
  }
  over = true;
  changes.join();
}

TEST_F(JobStepsTest, HoldsAJobUntilItIsStarted) {
  Connect("n1");
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.set_hold(true);
  EXPECT_EQ(Create(request).state(), v1::FineTuningJob::HELD);
  EXPECT_EQ(Step(&Jobs::ResumeFineTuningJob, "j").error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Step(&Jobs::StartFineTuningJob, "j").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::STARTING);
  EXPECT_EQ(job_.node(), "nodes/n1");
}

TEST_F(JobStepsTest, RetriesAJobThatFailedAndNotOneThatSucceeded) {
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kAttemptFailed);
  EXPECT_TRUE(Step(&Jobs::RetryFineTuningJob, "j").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::STARTING);
  EXPECT_EQ(job_.attempt(), 2);
  EXPECT_FALSE(job_.has_failure());
  EXPECT_FALSE(job_.has_end_time());
  Report("j", 2, 1, JobInput::kTrainerStarted);
  Report("j", 2, 2, JobInput::kTrainerFinished);
  Report("j", 2, 3, JobInput::kArtifactStored);
  EXPECT_EQ(Step(&Jobs::RetryFineTuningJob, "j").error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(JobStepsTest, UpdatesPriorityAndLabelsUnlessSomebodyElseDid) {
  const v1::FineTuningJob created = Create(RequestFor("j"));
  v1::UpdateFineTuningJobRequest request;
  request.mutable_job()->set_name("jobs/j");
  request.mutable_job()->set_etag(created.etag());
  request.mutable_job()->set_priority(7);
  (*request.mutable_job()->mutable_labels())["team"] = "search";
  request.mutable_update_mask()->add_paths("priority");
  request.mutable_update_mask()->add_paths("labels");
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_).ok());
  EXPECT_EQ(job_.priority(), 7);
  EXPECT_EQ(job_.labels().at("team"), "search");
  EXPECT_NE(job_.etag(), created.etag());
  v1::ListJobEventsRequest history;
  history.set_parent("jobs/j");
  history.add_types("updated");
  v1::ListJobEventsResponse events;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobEvents, history, events).ok());
  ASSERT_EQ(events.events_size(), 1);
  EXPECT_EQ(events.events(0).message(), "priority 7, labels");
  const grpc::Status late = Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_);
  EXPECT_EQ(late.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(ReasonOf(late), "CHANGED_MEANWHILE");
  request.mutable_job()->set_etag("from elsewhere");
  request.mutable_job()->set_priority(1000);
  request.mutable_update_mask()->add_paths("spec");
  const grpc::Status wrong = Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_);
  EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ParseErrorDetails(wrong.error_details()).violations.size(), 3u);
}

TEST_F(JobStepsTest, AClonesRequestThatIsRepeatedIsTheSameThoughTheOtherJobWasChangedSince) {
  Create(RequestFor("j"));
  v1::CloneFineTuningJobRequest request;
  request.set_name("jobs/j");
  request.set_request_id("0195f1a2-0000-7000-8000-000000000001");
  ASSERT_TRUE(Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_).ok());
  const std::string first = job_.name();
  v1::UpdateFineTuningJobRequest update;
  update.mutable_job()->set_name("jobs/j");
  update.mutable_job()->set_priority(7);
  update.mutable_update_mask()->add_paths("priority");
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, update, job_).ok());
  const grpc::Status repeated = Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_);
  EXPECT_TRUE(repeated.ok()) << repeated.error_message();
  EXPECT_EQ(job_.name(), first);
  request.set_hold(true);
  EXPECT_EQ(ReasonOf(Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_)), "REQUEST_ID_REUSED");
}

TEST_F(JobStepsTest, LogsOfAJobGoWhenItHasBeenOverForItsRetentionAndItsHistoryStays) {
  Connect("n1", 3);
  v1::CreateFineTuningJobRequest request = RequestFor("short");
  request.mutable_job()->mutable_retention()->set_seconds(3600);
  EXPECT_EQ(Create(request).retention().seconds(), 3600);
  Create(RequestFor("servers"));
  Create(request = RequestFor("changed"));
  v1::UpdateFineTuningJobRequest update;
  update.mutable_job()->set_name("jobs/changed");
  update.mutable_job()->mutable_retention()->set_seconds(3 * 3600);
  update.mutable_update_mask()->add_paths("retention");
  for (const char* id : {"short", "servers", "changed"}) {
    Do([&](State& state, absl::Time now) {
      luthier::Report report{.attempt = {id, 1}, .sequence = 1};
      for (int i = 0; i < 2500; ++i) report.events.push_back({.type = "log", .message = "line"});
      report.events.push_back({.type = "evaluation"});
      report.input = JobInput::kAttemptFailed;
      EXPECT_TRUE(state.Record(report, now));
    });
  }
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, update, job_).ok()) << "also of a job that is over";
  const auto types = [&](const std::string& id) {
    std::map<std::string, int> counts;
    const absl::StatusOr<std::vector<Event>> events = store_->Events(store_->GetJob(id)->job.number, 0, 10000);
    for (const Event& event : *events) ++counts[event.type];
    return counts;
  };
  ASSERT_EQ(types("short")["log"], 2500);
  ASSERT_TRUE(housekeeping_.ExpireEvents(absl::Now() + absl::Minutes(59)).ok());
  EXPECT_EQ(types("short")["log"], 2500);
  ASSERT_TRUE(housekeeping_.ExpireEvents(absl::Now() + absl::Minutes(61)).ok());
  EXPECT_EQ(types("short"), (std::map<std::string, int>{{"state", 3}, {"evaluation", 1}}));
  EXPECT_EQ(types("changed")["log"], 2500);
  ASSERT_TRUE(housekeeping_.ExpireEvents(absl::Now() + absl::Hours(1000)).ok());
  EXPECT_EQ(types("changed")["log"], 0);
  EXPECT_EQ(types("servers")["log"], 2500) << "this server keeps them for ever";
  // A job that is tried again has a history again.
  ASSERT_TRUE(Step(&Jobs::RetryFineTuningJob, "short").ok());
  EXPECT_EQ(job_.state(), v1::FineTuningJob::STARTING);
  Do([&](State& state, absl::Time now) {
    luthier::Report report{.attempt = {"short", 2}, .sequence = 1};
    report.events.push_back({.type = "log", .message = "line"});
    EXPECT_TRUE(state.Record(report, now));
  });
  ASSERT_TRUE(housekeeping_.ExpireEvents(absl::Now() + absl::Hours(1000)).ok());
  EXPECT_EQ(types("short")["log"], 1) << "it is not over";
  Report("short", 2, 2, JobInput::kAttemptFailed);
  ASSERT_TRUE(housekeeping_.ExpireEvents(absl::Now() + absl::Hours(1000)).ok());
  EXPECT_EQ(types("short")["log"], 0);
  update.mutable_job()->mutable_retention()->set_seconds(-1);
  EXPECT_EQ(Call(*jobs_, &Jobs::UpdateFineTuningJob, update, job_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobStepsTest, ClonesAJobWithChanges) {
  v1::CreateFineTuningJobRequest original = RequestFor("j");
  original.mutable_job()->mutable_spec()->mutable_lora()->set_rank(4);
  original.mutable_job()->mutable_spec()->mutable_training()->set_seed(1);
  (*original.mutable_job()->mutable_labels())["team"] = "search";
  Create(original);
  v1::CloneFineTuningJobRequest request;
  request.set_name("jobs/j");
  request.set_job_id("k");
  request.mutable_job()->mutable_spec()->mutable_training()->set_seed(2);
  request.mutable_job()->mutable_spec()->mutable_training()->set_epochs(9);  // not in the mask
  request.mutable_update_mask()->add_paths("spec.training.seed");
  ASSERT_TRUE(Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_).ok());
  EXPECT_EQ(job_.name(), "jobs/k");
  EXPECT_EQ(job_.spec().lora().rank(), 4);
  EXPECT_EQ(job_.spec().training().seed(), 2);
  EXPECT_FALSE(job_.spec().training().has_epochs());
  EXPECT_EQ(job_.labels().at("team"), "search");
  request.set_job_id("m");
  request.mutable_update_mask()->add_paths("state");
  EXPECT_EQ(Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobStepsTest, EstimatesWithoutCreatingAndLearnsTheSpeedOfOthers) {
  v1::EstimateFineTuningJobRequest request;
  *request.mutable_spec() = RequestFor("").job().spec();
  v1::EstimateFineTuningJobResponse estimate;
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
  EXPECT_EQ(estimate.train_rows(), 24);
  EXPECT_GT(estimate.train_tokens(), 24);
  EXPECT_GT(estimate.total_steps(), 0);
  EXPECT_GT(estimate.memory().total_bytes(), estimate.memory().weights_bytes());
  EXPECT_FALSE(estimate.has_duration());
  EXPECT_THAT(estimate.duration_reason(), HasSubstr("no base lora job"));
  planner_.ObserveSpeed("base lora", 1000);
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
  EXPECT_GT(estimate.duration().seconds() + estimate.duration().nanos(), 0);
  EXPECT_EQ(store_->ListJobs({})->jobs.size(), 0u);
}

TEST_F(JobStepsTest, SeveralNodesAreExpectedToBeAsFastAsTheyWereOrElseAsTheirDevicesAlone) {
  v1::EstimateFineTuningJobRequest request;
  v1::EstimateFineTuningJobResponse estimate;
  *request.mutable_spec() = RequestFor("").job().spec();
  const auto seconds = [&] {
    EXPECT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
    return static_cast<double>(estimate.duration().seconds()) + 1e-9 * estimate.duration().nanos();
  };
  planner_.ObserveSpeed("base lora", 1);
  const double alone = seconds();
  const v1::MemoryEstimate memory = estimate.memory();
  ASSERT_GT(alone, 0);
  request.mutable_spec()->mutable_resources()->set_nodes(2);
  request.mutable_spec()->mutable_resources()->set_devices(4);
  EXPECT_NEAR(seconds(), alone / 8, 1e-6);
  EXPECT_EQ(estimate.memory().total_bytes(), memory.total_bytes()) << "that of one device";
  EXPECT_THAT(estimate.duration_reason(), HasSubstr("from the speed of base lora jobs on one device, times 8"));
  EXPECT_THAT(estimate.duration_reason(), HasSubstr("add up their gradients over the network is not in it"));
  planner_.ObserveSpeed(KindOf(request.spec()), 2);
  EXPECT_NEAR(seconds(), alone / 2, 1e-6);
  EXPECT_EQ(estimate.duration_reason(), "from the speed of other 2-node 4-device base lora jobs");
}

TEST_F(JobStepsTest, AJobOnSeveralNodesFitsWhereEnoughOfOneKindReachEachOther) {
  const auto connect = [&](const std::string& id, bool gpus, const std::string& gang_address) {
    Node node;
    node.id = id;
    node.gpus = gpus;
    node.gang_address = gang_address;
    Do([&](State& state, absl::Time now) { state.Register(node, {}, now); });
  };
  v1::EstimateFineTuningJobRequest request;
  *request.mutable_spec() = RequestFor("").job().spec();
  request.mutable_spec()->mutable_resources()->set_nodes(2);
  const auto fitting = [&] {
    v1::EstimateFineTuningJobResponse estimate;
    EXPECT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
    return std::vector<std::string>(estimate.fitting_nodes().begin(), estimate.fitting_nodes().end());
  };
  connect("cpu-1", /*gpus=*/false, "10.0.0.1");
  connect("cpu-2", /*gpus=*/false, "");
  connect("gpu-1", /*gpus=*/true, "10.0.0.3");
  EXPECT_THAT(fitting(), ElementsAre()) << "one is reached by nobody, and CPUs and GPUs do not train together";
  connect("cpu-3", /*gpus=*/false, "10.0.0.4");
  EXPECT_THAT(fitting(), ElementsAre("nodes/cpu-1", "nodes/cpu-3"));
  request.mutable_spec()->mutable_resources()->clear_nodes();
  EXPECT_THAT(fitting(), ElementsAre("nodes/cpu-1", "nodes/cpu-2", "nodes/cpu-3", "nodes/gpu-1"));
}

TEST_F(JobStepsTest, TheQueueShowsHowManyNodesAndDevicesAJobNeeds) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->mutable_spec()->mutable_resources()->set_nodes(2);
  request.mutable_job()->mutable_spec()->mutable_resources()->set_devices(3);
  Create(request);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::GetQueue, v1::GetQueueRequest(), queue).ok());
  ASSERT_EQ(queue.entries_size(), 1);
  EXPECT_EQ(queue.entries(0).nodes(), 2);
  EXPECT_EQ(queue.entries(0).devices(), 6);
}

TEST_F(JobStepsTest, ExplainsWhyAJobWaitsAndForHowLong) {
  Connect("n1");
  Create(RequestFor("first"));
  Create(RequestFor("second"));
  Create(RequestFor("third"));
  v1::ExplainFineTuningJobRequest request;
  request.set_name("jobs/third");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_EQ(explained.pending_code(), v1::PENDING_REASON_BUSY);
  EXPECT_EQ(explained.jobs_ahead(), 1);
  EXPECT_GT(explained.late_start_time().seconds(), explained.expected_start_time().seconds());
  EXPECT_THAT(explained.tenant_summary(),
              HasSubstr("tenant default: devices in use 1, jobs waiting 2, device-hours used lately 1.0, weight 1"));
  request.set_name("jobs/first");
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_EQ(explained.state(), v1::FineTuningJob::STARTING);
  EXPECT_EQ(explained.pending_code(), v1::PENDING_REASON_UNSPECIFIED);
}

TEST_F(JobStepsTest, ShowsWhyANodeIsQuarantinedAndReleasesIt) {
  Connect("n1", 3);
  for (const char* id : {"a", "b", "c"}) Create(RequestFor(id));
  absl::Duration later;
  for (const char* id : {"a", "b", "c"}) {
    Do([&](State& state, absl::Time now) {
      EXPECT_TRUE(state.Record({.attempt = {id, 1}, .sequence = 1, .input = JobInput::kAttemptLost}, now + later));
      EXPECT_TRUE(state.Cancel(id, now).ok());
    });
    later += kIncident;
  }
  v1::ListNodesResponse nodes;
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::ListNodes, v1::ListNodesRequest(), nodes).ok());
  EXPECT_EQ(nodes.nodes(0).state(), v1::Node::QUARANTINED);
  EXPECT_THAT(nodes.nodes(0).state_reason(), HasSubstr("attempts of 3 jobs died here"));
  EXPECT_TRUE(nodes.nodes(0).has_quarantine_end_time());
  Create(RequestFor("d"));
  v1::ExplainFineTuningJobRequest request;
  request.set_name("jobs/d");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_EQ(explained.pending_code(), v1::PENDING_REASON_QUARANTINED);
  EXPECT_THAT(explained.pending_reason(), HasSubstr("luthier node undrain n1"));
  v1::UndrainNodeRequest undrain;
  undrain.set_name("nodes/n1");
  v1::Node node;
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::UndrainNode, undrain, node).ok());
  EXPECT_EQ(node.state(), v1::Node::READY);
  EXPECT_EQ(node.state_reason(), "");
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_EQ(explained.state(), v1::FineTuningJob::STARTING);
}

TEST_F(JobStepsTest, OrdersACheckpointOfARunningJob) {
  v1::SessionRequest message;
  message.mutable_register_()->set_node_id("n1");
  grpc::ClientContext context;
  const auto session = workers_->Session(&context);
  session->Write(message);
  v1::SessionResponse answer;
  ASSERT_TRUE(session->Read(&answer));
  Create(RequestFor("j"));
  ASSERT_TRUE(session->Read(&answer));
  ASSERT_TRUE(answer.has_start_attempt());
  v1::CreateJobCheckpointRequest request;
  request.set_parent("jobs/j");
  v1::CreateJobCheckpointResponse response;
  EXPECT_EQ(Call(*jobs_, &Jobs::CreateJobCheckpoint, request, response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  Report("j", 1, 1, JobInput::kTrainerStarted);
  EXPECT_TRUE(Call(*jobs_, &Jobs::CreateJobCheckpoint, request, response).ok());
  ASSERT_TRUE(session->Read(&answer));
  EXPECT_EQ(answer.checkpoint_attempt().attempt(), "jobs/j/attempts/1");
  session->WritesDone();
}

TEST_F(JobStepsTest, StreamsMetricsAndLogsFromACursor) {
  Connect("n1");
  Create(RequestFor("j"));
  for (int i = 1; i <= 200; ++i) {
    Do([&](State& state, absl::Time now) {
      v1::JobEvent progress;
      progress.mutable_progress()->set_step(i);
      luthier::Report report;
      report.attempt = {"j", 1};
      report.sequence = i;
      report.events = {{.type = "log", .message = "line " + std::to_string(i)},
                       {.type = "progress", .payload = progress.SerializeAsString()}};
      state.Record(std::move(report), now);
    });
  }
  grpc::ClientContext tail_context;
  v1::TailJobLogsRequest tail;
  tail.set_name("jobs/j");
  tail.set_lines(3);
  const auto lines = jobs_->TailJobLogs(&tail_context, tail);
  v1::TailJobLogsResponse line;
  std::vector<std::string> read;
  while (lines->Read(&line)) read.push_back(line.line());
  EXPECT_TRUE(lines->Finish().ok());
  EXPECT_THAT(read, ElementsAre("line 198", "line 199", "line 200"));

  grpc::ClientContext metrics_context;
  v1::StreamJobMetricsRequest metrics;
  metrics.set_name("jobs/j");
  const auto stream = jobs_->StreamJobMetrics(&metrics_context, metrics);
  v1::StreamJobMetricsResponse point;
  for (int step = 1; step <= 200; ++step) {
    ASSERT_TRUE(stream->Read(&point));
    EXPECT_EQ(point.progress().step(), step);
  }
  Report("j", 1, 201, JobInput::kAttemptFailed);
  EXPECT_FALSE(stream->Read(&point)) << "the job is over";
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(JobStepsTest, ListsCheckpointsInPages) {
  Connect("n1");
  Create(RequestFor("j"));
  for (int i = 1; i <= 5; ++i) {
    Do([&](State& state, absl::Time now) {
      v1::JobEvent checkpoint;
      (*checkpoint.mutable_data()->mutable_fields())["step"].set_number_value(i);
      luthier::Report report;
      report.attempt = {"j", 1};
      report.sequence = i;
      report.events = {{.type = "log", .message = "between"},
                       {.type = "checkpoint", .payload = checkpoint.SerializeAsString()}};
      state.Record(std::move(report), now);
    });
  }
  v1::ListJobCheckpointsRequest request;
  request.set_parent("jobs/j");
  request.set_page_size(2);
  std::vector<int64_t> steps;
  int pages = 0;
  do {
    v1::ListJobCheckpointsResponse page;
    ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobCheckpoints, request, page).ok());
    EXPECT_LE(page.checkpoints_size(), 2);
    for (const v1::Checkpoint& checkpoint : page.checkpoints()) steps.push_back(checkpoint.step());
    request.set_page_token(page.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_THAT(steps, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_EQ(pages, 3);
  request.set_page_size(-1);
  v1::ListJobCheckpointsResponse page;
  EXPECT_EQ(Call(*jobs_, &Jobs::ListJobCheckpoints, request, page).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobStepsTest, DrainsANode) {
  Connect("n1");
  v1::DrainNodeRequest request;
  request.set_name("nodes/n1");
  v1::Node node;
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::DrainNode, request, node).ok());
  EXPECT_EQ(node.state(), v1::Node::DRAINED);
  Create(RequestFor("j"));
  v1::UndrainNodeRequest again;
  again.set_name("nodes/n1");
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::UndrainNode, again, node).ok());
  EXPECT_EQ(node.state(), v1::Node::READY);
  request.set_name("nodes/nobody");
  EXPECT_EQ(Call(*nodes_, &v1::NodeService::Stub::DrainNode, request, node).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(JobStepsTest, ATokenThatNoListGaveIsRefused) {
  for (const char* token : {"-1", "later", "9223372036854775807"}) {
    v1::ListNodesRequest request;
    request.set_page_token(token);
    v1::ListNodesResponse page;
    const grpc::Status status = Call(*nodes_, &v1::NodeService::Stub::ListNodes, request, page);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << token;
    EXPECT_THAT(status.error_message(), testing::HasSubstr("page_token")) << token;
  }
}

TEST_F(JobStepsTest, ATokenOfAnotherListIsRefused) {
  for (const char* node : {"n1", "n2"}) Connect(node);
  Create(RequestFor("j"));
  v1::ListNodesRequest nodes;
  nodes.set_page_size(1);
  v1::ListNodesResponse first;
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::ListNodes, nodes, first).ok());
  ASSERT_NE(first.next_page_token(), "");
  const auto expect_refusal = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), testing::HasSubstr("page_token: belongs to another list"));
  };
  v1::ListTenantsRequest tenants;
  tenants.set_page_token(first.next_page_token());
  v1::ListTenantsResponse some;
  expect_refusal(Call(*queue_, &v1::QueueService::Stub::ListTenants, tenants, some));
  v1::ListJobEventsRequest events;
  events.set_parent("jobs/j");
  events.set_page_size(1);
  v1::ListJobEventsResponse page;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobEvents, events, page).ok());
  events.set_page_token(page.next_page_token());
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobEvents, events, page).ok());
  events.add_types("log");
  expect_refusal(Call(*jobs_, &Jobs::ListJobEvents, events, page));
}

TEST_F(JobStepsTest, TheQueueHasWhatWaitsAfterALossToo) {
  Connect("n1");
  Create(RequestFor("j"));
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Drain("n1", /*requeue=*/false, now).ok()); });
  Report("j", 1, 1, JobInput::kAttemptLost);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::GetQueue, v1::GetQueueRequest(), queue).ok());
  EXPECT_EQ(queue.depth(), 1);
  ASSERT_EQ(queue.entries_size(), 1);
  EXPECT_EQ(queue.entries(0).job(), "jobs/j");
  EXPECT_NE(queue.entries(0).pending_reason(), "");
}

TEST_F(JobStepsTest, SharesTheQueueAmongTenants) {
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_weight(2);
  update.mutable_tenant()->set_max_queued_jobs(1);
  v1::Tenant tenant;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).ok());
  v1::CreateFineTuningJobRequest request = RequestFor("a");
  request.mutable_job()->set_tenant("research");
  Create(request);
  request.set_job_id("b");
  const grpc::Status full = Call(*jobs_, &Jobs::CreateFineTuningJob, request, job_);
  EXPECT_EQ(full.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(full), "TENANT_QUEUE_FULL");
  EXPECT_EQ(ParseErrorDetails(full.error_details()).quota_subject, "tenants/research");
  request = RequestFor("urgent");
  request.mutable_job()->set_service_class(v1::SERVICE_CLASS_INTERACTIVE);
  Create(request);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::GetQueue, v1::GetQueueRequest(), queue).ok());
  EXPECT_EQ(queue.depth(), 2);
  ASSERT_EQ(queue.entries_size(), 2);
  EXPECT_EQ(queue.entries(0).job(), "jobs/urgent");
  EXPECT_EQ(queue.entries(1).tenant(), "research");
  EXPECT_EQ(queue.entries(1).pending_code(), v1::PENDING_REASON_NO_NODE);
  v1::ListTenantsResponse tenants;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::ListTenants, v1::ListTenantsRequest(), tenants).ok());
  ASSERT_EQ(tenants.tenants_size(), 2);
  EXPECT_EQ(tenants.tenants(0).name(), "tenants/default");
  EXPECT_GT(tenants.tenants(0).storage_bytes(), 0) << "the rows that its jobs learn from";
  EXPECT_EQ(tenants.tenants(1).queued_jobs(), 1);
  update.mutable_tenant()->set_name("tenants/re.search");
  EXPECT_THAT(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).error_message(),
              HasSubstr("tenant.name: 're.search' is no id"))
      << "no job could be of it";
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_weight(-1);
  EXPECT_EQ(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobStepsTest, MoreMayBeGuaranteedThanIsThereAndTheOperatorIsTold) {
  Connect("n1", 4);
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_guaranteed_devices(4);
  update.mutable_update_mask()->add_paths("guaranteed_devices");
  v1::Tenant tenant;
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).ok());
  EXPECT_EQ(tenant.guaranteed_devices(), 4);
  EXPECT_EQ(tenant.weight(), 1) << "what the mask does not name stays";
  EXPECT_EQ(tenant.warnings_size(), 0);
  update.mutable_tenant()->set_name("tenants/support");
  update.mutable_tenant()->set_guaranteed_devices(2);
  ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).ok());
  ASSERT_EQ(tenant.warnings_size(), 1);
  EXPECT_THAT(tenant.warnings(0),
              HasSubstr("6 devices are guaranteed to tenants in all, and the connected nodes have 4"));

  update.mutable_tenant()->set_max_devices(1);
  update.mutable_update_mask()->add_paths("max_devices");
  const grpc::Status refused = Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("tenant.guaranteed_devices: 2 are more than tenant.max_devices"));
  v1::ExplainFineTuningJobRequest request;
  v1::CreateFineTuningJobRequest wide = RequestFor("wide");
  wide.mutable_job()->set_tenant("support");
  Create(wide);
  request.set_name("jobs/wide");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_THAT(explained.tenant_summary(), HasSubstr("devices guaranteed 2"));
}

// What its jobs have published and stored counts, and is never refused; what users add is.
TEST_F(JobStepsTest, ATenantThatStoresAsMuchAsItMayAddsNothingMoreAndLosesNothing) {
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/default");
  update.mutable_update_mask()->add_paths("max_storage_bytes");
  v1::Tenant tenant;
  const auto limit = [&](int64_t bytes) {
    update.mutable_tenant()->set_max_storage_bytes(bytes);
    ASSERT_TRUE(Call(*queue_, &v1::QueueService::Stub::UpdateTenant, update, tenant).ok());
  };
  limit(0);
  const int64_t rows = tenant.storage_bytes();
  ASSERT_GT(rows, 0);
  limit(rows + 1000);
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Do([](State& state, absl::Time now) {
    luthier::Report stored{.attempt = {"j", 1}, .sequence = 3, .input = JobInput::kArtifactStored};
    stored.version_bytes = 5000;
    EXPECT_TRUE(state.Record(std::move(stored), now));
  });
  limit(rows + 1000);
  EXPECT_EQ(tenant.storage_bytes(), rows + 5000) << "beyond its limit, and published";

  const grpc::Status job = Call(*jobs_, &Jobs::CreateFineTuningJob, RequestFor("k"), job_);
  EXPECT_EQ(job.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(job), "TENANT_STORAGE_FULL");
  EXPECT_EQ(ParseErrorDetails(job.error_details()).quota_subject, "tenants/default");
  v1::Dataset dataset;
  const grpc::Status upload = Upload("more", ChatLine("a", "b"), dataset);
  EXPECT_EQ(upload.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(upload.error_message(), HasSubstr("more do not fit"));

  v1::DeleteModelVersionRequest old;
  old.set_name("models/j/versions/1");
  google::protobuf::Empty nothing;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::DeleteModelVersion, old, nothing).ok());
  limit(rows + 1000);
  EXPECT_EQ(tenant.storage_bytes(), rows);
  Create(RequestFor("k"));
  ASSERT_TRUE(Upload("more", ChatLine("a", "b"), dataset).ok());
  v1::DeleteDatasetRequest unused;
  unused.set_name("datasets/more");
  ASSERT_TRUE(Call(*datasets_, &v1::DatasetService::Stub::DeleteDataset, unused, nothing).ok());
  limit(0);
  EXPECT_EQ(tenant.storage_bytes(), rows);
}

TEST_F(JobStepsTest, PromotesAVersionIfItIsGoodEnough) {
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Do([](State& state, absl::Time now) {
    v1::FineTuningJob report;
    v1::Evaluation& evaluation = *report.add_evaluations();
    evaluation.set_split("test");
    evaluation.set_model("tuned");
    evaluation.set_exact_match(0.9);
    luthier::Report finished;
    finished.attempt = {"j", 1};
    finished.sequence = 2;
    finished.job_report = report.SerializeAsString();
    finished.input = JobInput::kTrainerFinished;
    state.Record(std::move(finished), now);
  });
  Report("j", 1, 3, JobInput::kArtifactStored);
  v1::PromoteModelVersionRequest request;
  request.set_name("models/j/versions/latest");
  request.set_alias("production");
  request.mutable_minimum()->set_metric("exact_match");
  request.mutable_minimum()->set_value(0.95);
  v1::ModelVersion version;
  const grpc::Status below = Call(*models_, &v1::ModelService::Stub::PromoteModelVersion, request, version);
  EXPECT_EQ(below.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(below), "BELOW_MINIMUM");
  for (const double value : {-0.1, 90.0, std::nan("")}) {
    request.mutable_minimum()->set_value(value);
    const grpc::Status wrong = Call(*models_, &v1::ModelService::Stub::PromoteModelVersion, request, version);
    EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << value;
    EXPECT_THAT(wrong.error_message(), HasSubstr("minimum.value: ")) << value;
  }
  request.mutable_minimum()->set_value(0.85);
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::PromoteModelVersion, request, version).ok());
  EXPECT_THAT(version.aliases(), ElementsAre("production"));
  v1::GetModelVersionRequest get;
  get.set_name("models/j/versions/production");
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/j/versions/1");
  v1::DeleteModelAliasRequest remove;
  remove.set_name("models/j/versions/production");
  google::protobuf::Empty nothing;
  EXPECT_TRUE(Call(*models_, &v1::ModelService::Stub::DeleteModelAlias, remove, nothing).ok());
  EXPECT_EQ(Call(*models_, &v1::ModelService::Stub::GetModelVersion, get, version).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(JobStepsTest, VersionsBeyondThoseThatAreKeptGoUnlessAnAliasPointsToThem) {
  Connect("n1");
  for (const char* id : {"a", "b", "c", "d"}) {
    v1::CreateFineTuningJobRequest request = RequestFor(id);
    request.mutable_job()->mutable_spec()->set_output_model("intents");
    Create(request);
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Report(id, 1, 3, JobInput::kArtifactStored);
  }
  v1::PromoteModelVersionRequest promotion;
  promotion.set_name("models/intents/versions/1");
  promotion.set_alias("production");
  v1::ModelVersion version;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::PromoteModelVersion, promotion, version).ok());
  const auto left = [&] {
    v1::ListModelVersionsRequest request;
    request.set_parent("models/intents");
    v1::ListModelVersionsResponse response;
    EXPECT_TRUE(Call(*models_, &v1::ModelService::Stub::ListModelVersions, request, response).ok());
    std::vector<std::string> names;
    for (const v1::ModelVersion& one : response.model_versions()) names.push_back(one.name());
    return names;
  };
  ASSERT_TRUE(housekeeping_.ExpireVersions(0).ok());
  EXPECT_EQ(left().size(), 4u);
  ASSERT_TRUE(housekeeping_.ExpireVersions(1).ok());
  EXPECT_THAT(left(), ElementsAre("models/intents/versions/4", "models/intents/versions/1"));

  v1::DeleteModelVersionRequest request;
  google::protobuf::Empty nothing;
  const auto remove = [&](const std::string& name) {
    request.set_name(name);
    return Call(*models_, &v1::ModelService::Stub::DeleteModelVersion, request, nothing);
  };
  EXPECT_EQ(ReasonOf(remove("models/intents/versions/1")), "IN_USE");
  EXPECT_EQ(remove("models/intents/versions/latest").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(remove("models/intents/versions/2").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(remove("models/intents/versions/4").ok());
  EXPECT_THAT(left(), ElementsAre("models/intents/versions/1"));
}

// Somebody set the clock back between the two.
TEST_F(JobStepsTest, TheNewestVersionIsThatWithTheHighestNumberWhateverTheClockSaid) {
  Connect("n1");
  absl::Duration back;
  for (const char* id : {"a", "b"}) {
    v1::CreateFineTuningJobRequest request = RequestFor(id);
    request.mutable_job()->mutable_spec()->set_output_model("intents");
    Create(request);
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Do([&](State& state, absl::Time now) {
      luthier::Report report{.attempt = {id, 1}, .sequence = 3};
      report.input = JobInput::kArtifactStored;
      EXPECT_TRUE(state.Record(std::move(report), now - back));
    });
    back = absl::Hours(48);
  }
  v1::GetModelVersionRequest get;
  get.set_name("models/intents/versions/latest");
  v1::ModelVersion version;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/intents/versions/2");
  v1::ListModelsResponse models;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).latest_version(), 2);
  ASSERT_TRUE(housekeeping_.ExpireVersions(1).ok());
  EXPECT_TRUE(Call(*models_, &v1::ModelService::Stub::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/intents/versions/2") << "the newest is what is kept";
}

TEST_F(JobStepsTest, ABaseModelGoesWhenNoJobUsesItAndItsNameIsFreeAgain) {
  Create(RequestFor("j"));
  v1::DeleteBaseModelRequest request;
  request.set_name("baseModels/base");
  google::protobuf::Empty nothing;
  const auto remove = [&] { return Call(*models_, &v1::ModelService::Stub::DeleteBaseModel, request, nothing); };
  EXPECT_EQ(ReasonOf(remove()), "IN_USE");
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Cancel("j", now).ok()); });
  EXPECT_TRUE(remove().ok());
  EXPECT_EQ(remove().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(RegisterBase("base").ok());
  Create(RequestFor("again"));
}

TEST_F(JobStepsTest, NoOtherModelGetsTheNameOfABaseThatHasAdapters) {
  Create(RequestFor("j"));
  v1::ArtifactStored adapter;
  adapter.set_kind(v1::ModelVersion::ADAPTER);
  Publish("j", adapter.SerializeAsString());
  google::protobuf::Empty nothing;
  v1::DeleteBaseModelRequest remove_base;
  remove_base.set_name("baseModels/base");
  const auto remove = [&] { return Call(*models_, &v1::ModelService::Stub::DeleteBaseModel, remove_base, nothing); };
  ASSERT_TRUE(remove().ok());
  EXPECT_TRUE(RegisterBase("base").ok()) << "the same content may come back";
  ASSERT_TRUE(remove().ok());

  std::ofstream(folder_.path() + "/model/generation_config.json") << R"({"do_sample": false})";
  const grpc::Status refused = RegisterBase("base");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(refused), "HAS_ADAPTERS");
  EXPECT_THAT(refused.error_message(), HasSubstr("models/j/versions/1 is an adapter of other content"));
  EXPECT_TRUE(RegisterBase("another").ok());

  v1::DeleteModelVersionRequest remove_version;
  remove_version.set_name("models/j/versions/1");
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::DeleteModelVersion, remove_version, nothing).ok());
  EXPECT_TRUE(RegisterBase("base").ok()) << "nothing was tuned from the other one any more";
}

TEST_F(JobStepsTest, AJobIsNotTriedAgainWithOtherRowsOfTheSameName) {
  Create(RequestFor("j"));
  EXPECT_TRUE(Step(&Jobs::CancelFineTuningJob, "j").ok());
  v1::DeleteDatasetRequest remove;
  remove.set_name("datasets/rows");
  google::protobuf::Empty nothing;
  ASSERT_TRUE(Call(*datasets_, &v1::DatasetService::Stub::DeleteDataset, remove, nothing).ok());
  v1::Dataset dataset;
  ASSERT_TRUE(Upload("rows", ChatLine("another row", "odd"), dataset).ok());
  const grpc::Status refused = Step(&Jobs::RetryFineTuningJob, "j");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(refused), "INPUT_DELETED");
  EXPECT_THAT(refused.error_message(), HasSubstr("clone the job"));
}

TEST_F(JobStepsTest, ADeadlineIsATimeToComeAndCanBeMoved) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->mutable_deadline()->set_seconds(1);
  v1::FineTuningJob job;
  EXPECT_THAT(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job).error_message(),
              testing::ContainsRegex("deadline: [0-9T:+-]+ is over; give a time to come"));
  const int64_t later = absl::ToUnixSeconds(absl::Now() + absl::Hours(1));
  request.mutable_job()->mutable_deadline()->set_seconds(later);
  Create(request);
  v1::UpdateFineTuningJobRequest update;
  update.mutable_job()->set_name("jobs/j");
  update.mutable_update_mask()->add_paths("deadline");
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::UpdateFineTuningJob, update, job).ok());
  EXPECT_FALSE(job.has_deadline()) << "none was given";
  update.mutable_job()->mutable_deadline()->set_seconds(later + 5);
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::UpdateFineTuningJob, update, job).ok());
  EXPECT_EQ(job.deadline().seconds(), later + 5);
  Do([&](State& state, absl::Time) { state.Tick(absl::FromUnixSeconds(later + 5)); });
  v1::GetFineTuningJobRequest get;
  get.set_name("jobs/j");
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::GetFineTuningJob, get, job).ok());
  EXPECT_EQ(job.state(), v1::FineTuningJob::CANCELLED);
  EXPECT_EQ(job.stop_reason(), "DEADLINE");
}

}  // namespace
}  // namespace luthier
