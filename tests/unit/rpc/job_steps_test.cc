// What users do with jobs and nodes through the API.
#include <gmock/gmock.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/convert.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Jobs = v1::FineTuningService::Stub;

class JobStepsTest : public ServicesTest {
 protected:
  void SetUp() override { AddInputs(); }

  template <typename Request>
  grpc::Status Step(grpc::Status (Jobs::*method)(grpc::ClientContext*, const Request&, v1::FineTuningJob*),
                    const std::string& id) {
    Request request;
    request.set_name("jobs/" + id);
    return Call(*jobs_, method, request, job_);
  }

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
    job_ = GetJob("j");
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

// Its answer was lost, the job has failed again since, and only then the request comes once more.
TEST_F(JobStepsTest, ARetryThatIsRequestedAgainUnderItsIdIsNoSecondOne) {
  Connect("n1", 2);
  Create(RequestFor("j"));
  Create(RequestFor("k"));
  Report("j", 1, 1, JobInput::kAttemptFailed);
  v1::RetryFineTuningJobRequest request;
  request.set_name("jobs/j");
  request.set_request_id("0195f1a2-0000-7000-8000-000000000002");
  for (int again = 0; again < 2; ++again) {
    const grpc::Status status = Call(*jobs_, &Jobs::RetryFineTuningJob, request, job_);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(job_.state(), v1::FineTuningJob::STARTING);
  }
  Report("j", 2, 1, JobInput::kAttemptFailed);
  ASSERT_TRUE(Call(*jobs_, &Jobs::RetryFineTuningJob, request, job_).ok()) << "it is in the record only";
  EXPECT_EQ(job_.state(), v1::FineTuningJob::FAILED);
  EXPECT_EQ(job_.attempt(), 2);
  request.set_name("jobs/k");
  EXPECT_EQ(ReasonOf(Call(*jobs_, &Jobs::RetryFineTuningJob, request, job_)), "REQUEST_ID_REUSED");
  request.set_name("jobs/j");
  request.set_request_id("0195f1a2-0000-7000-8000-000000000003");
  ASSERT_TRUE(Call(*jobs_, &Jobs::RetryFineTuningJob, request, job_).ok());
  EXPECT_EQ(job_.attempt(), 3);
  v1::CreateFineTuningJobRequest creation = RequestFor("l");
  creation.set_request_id(request.request_id());
  EXPECT_EQ(ReasonOf(Call(*jobs_, &Jobs::CreateFineTuningJob, creation, job_)), "REQUEST_ID_REUSED");
  request.set_request_id(std::string(65, 'a'));
  EXPECT_EQ(Call(*jobs_, &Jobs::RetryFineTuningJob, request, job_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobStepsTest, AnUpdateThatIsRequestedAgainUnderItsIdFindsItsOwnEtagAndChangesNothingMore) {
  const v1::FineTuningJob created = Create(RequestFor("j"));
  v1::UpdateFineTuningJobRequest request;
  request.set_request_id("0195f1a2-0000-7000-8000-000000000004");
  request.mutable_job()->set_name("jobs/j");
  request.mutable_job()->set_etag(created.etag());
  request.mutable_job()->set_priority(7);
  request.mutable_update_mask()->add_paths("priority");
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_).ok());
  const std::string etag = job_.etag();
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_).ok());
  EXPECT_EQ(job_.etag(), etag);
  EXPECT_EQ(job_.priority(), 7);
  request.mutable_job()->set_priority(8);
  EXPECT_EQ(ReasonOf(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_)), "REQUEST_ID_REUSED");
}

TEST_F(JobStepsTest, AnUpdateThatIsRequestedAgainIsNoErrorThoughItsDeadlineIsOverByThen) {
  Create(RequestFor("j"));
  const absl::Time deadline = absl::Now() + absl::Milliseconds(500);
  v1::UpdateFineTuningJobRequest request;
  request.set_request_id("0195f1a2-0000-7000-8000-000000000005");
  request.mutable_job()->set_name("jobs/j");
  *request.mutable_job()->mutable_deadline() = ToProto(deadline);
  request.mutable_update_mask()->add_paths("deadline");
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_).ok());
  ASSERT_TRUE(WaitFor([&] { return absl::Now() > deadline; }));
  const grpc::Status repeated = Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_);
  EXPECT_TRUE(repeated.ok()) << repeated.error_message();
  request.clear_request_id();
  EXPECT_THAT(Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_).error_message(), HasSubstr("deadline"));
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
  EXPECT_EQ(FieldsOf(wrong).size(), 3u);
}

TEST_F(JobStepsTest, ABadNameHidesNothingElseThatIsWrongWithAnUpdate) {
  v1::UpdateFineTuningJobRequest request;
  request.mutable_job()->set_name("j");
  request.mutable_job()->set_priority(1'000'000);
  request.mutable_update_mask()->add_paths("priority");
  const grpc::Status refused = Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("job.name", "priority"));
}

TEST_F(JobStepsTest, AListOfEventsHearsOfEverythingThatIsWrongWithIt) {
  v1::ListJobEventsRequest request;
  request.set_parent("j");
  request.set_page_size(-1);
  for (int i = 0; i < 17; ++i) request.add_types("log");
  v1::ListJobEventsResponse page;
  EXPECT_THAT(FieldsOf(Call(*jobs_, &Jobs::ListJobEvents, request, page)),
              testing::ElementsAre("parent", "page_size", "types"));
}

// A message has room for a hundred thousand paths, and for as many labels that each of them would have checked.
TEST_F(JobStepsTest, WhatAMaskNamesAgainAndAgainIsCheckedOnce) {
  v1::UpdateFineTuningJobRequest request;
  request.mutable_job()->set_name("jobs/j");
  (*request.mutable_job()->mutable_labels())[""] = "no key";
  for (int i = 0; i < 100; ++i) {
    request.mutable_update_mask()->add_paths("labels");
    request.mutable_update_mask()->add_paths(absl::StrCat("field", i));
  }
  const grpc::Status refused = Call(*jobs_, &Jobs::UpdateFineTuningJob, request, job_);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), testing::StartsWith("labels: a key of 0 bytes"));
  EXPECT_THAT(refused.error_message(), testing::EndsWith("\n… and 81 more"));
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
  request.mutable_job()->set_priority(1000);
  request.mutable_job()->mutable_spec()->mutable_lora()->set_rank(0);
  request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("gone");
  for (const char* path : {"state", "priority", "spec.lora.rank", "spec.dataset.dataset"})
    request.mutable_update_mask()->add_paths(path);
  const grpc::Status refused = Call(*jobs_, &Jobs::CloneFineTuningJob, request, job_);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("update_mask", "priority", "lora.rank", "dataset"))
      << "all of it at once";
}

TEST_F(JobStepsTest, EstimatesWithoutCreatingAndLearnsTheSpeedOfOthers) {
  PlayedAgent agent(*workers_, "n1");
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
  EXPECT_EQ(store_->ListJobs({})->jobs.size(), 0u);
  Create(RequestFor("j"));
  agent.TakeStart();
  agent.ReportEvent({{"event", "progress"}, {"step", 1}, {"tokens_per_second", 1000}});
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
  EXPECT_GT(estimate.duration().seconds() + estimate.duration().nanos(), 0);
  EXPECT_EQ(estimate.duration_reason(), "from the speed of other base lora jobs");
}

TEST_F(JobStepsTest, SeveralNodesAreExpectedToBeAsFastAsTheyWereOrElseAsTheirDevicesAlone) {
  v1::EstimateFineTuningJobRequest request;
  v1::EstimateFineTuningJobResponse estimate;
  *request.mutable_spec() = RequestFor("").job().spec();
  const auto seconds = [&] {
    EXPECT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, request, estimate).ok());
    return static_cast<double>(estimate.duration().seconds()) + 1e-9 * estimate.duration().nanos();
  };
  const auto trained = [&](int nodes, int devices, double tokens_per_second) {
    Do([&](State& state, absl::Time) { state.LoadSpeed({"base", Tuning::kLora, nodes, devices, tokens_per_second}); });
  };
  trained(1, 1, /*tokens_per_second=*/1);
  const double alone = seconds();
  const v1::MemoryEstimate memory = estimate.memory();
  ASSERT_GT(alone, 0);
  request.mutable_spec()->mutable_resources()->set_nodes(2);
  request.mutable_spec()->mutable_resources()->set_devices(4);
  EXPECT_NEAR(seconds(), alone / 8, 1e-6);
  EXPECT_EQ(estimate.memory().total_bytes(), memory.total_bytes()) << "that of one device";
  EXPECT_THAT(estimate.duration_reason(), HasSubstr("from the speed of base lora jobs on one device, times 8"));
  EXPECT_THAT(estimate.duration_reason(), HasSubstr("add up their gradients over the network is not in it"));
  trained(2, 4, /*tokens_per_second=*/2);
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
              HasSubstr("tenant default: devices in use 1, jobs waiting 2, device-hours charged lately 1.00 (of what "
                        "runs, all that it is expected to use), weight 1"));
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
  PlayedAgent agent(*workers_, "n1");
  Create(RequestFor("j"));
  agent.TakeStart();
  v1::CreateJobCheckpointRequest request;
  request.set_parent("jobs/j");
  v1::CreateJobCheckpointResponse response;
  EXPECT_EQ(Call(*jobs_, &Jobs::CreateJobCheckpoint, request, response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  Report("j", 1, 1, JobInput::kTrainerStarted);
  EXPECT_TRUE(Call(*jobs_, &Jobs::CreateJobCheckpoint, request, response).ok());
  EXPECT_EQ(agent.TakeCheckpoint().attempt(), "jobs/j/attempts/1");
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

TEST_F(JobStepsTest, ANodeThatWasDrainedBeforeARestartIsKnownWithoutItsAgent) {
  Do([](State& state, absl::Time) { state.LoadDrained("n1"); });
  v1::DrainNodeRequest drain;
  drain.set_name("nodes/n1");
  v1::Node node;
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::DrainNode, drain, node).ok());
  EXPECT_EQ(node.name(), "nodes/n1");
  EXPECT_EQ(node.state(), v1::Node::DISCONNECTED);
  v1::UndrainNodeRequest undrain;
  undrain.set_name("nodes/n1");
  ASSERT_TRUE(Call(*nodes_, &v1::NodeService::Stub::UndrainNode, undrain, node).ok());
  EXPECT_EQ(node.state(), v1::Node::DISCONNECTED);
  EXPECT_EQ(Call(*nodes_, &v1::NodeService::Stub::DrainNode, drain, node).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(JobStepsTest, ATokenThatNoListGaveIsRefused) {
  for (const char* token : {"-1", "later", "9223372036854775807"}) {
    v1::ListNodesRequest request;
    request.set_page_token(token);
    v1::ListNodesResponse page;
    const grpc::Status status = Call(*nodes_, &v1::NodeService::Stub::ListNodes, request, page);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << token;
    EXPECT_THAT(status.error_message(), HasSubstr("page_token")) << token;
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
    EXPECT_THAT(status.error_message(), HasSubstr("page_token: belongs to another list"));
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

TEST_F(JobStepsTest, AfterThePageWithTheLastEventThereIsNone) {
  Create(RequestFor("j"));
  v1::ListJobEventsRequest request;
  request.set_parent("jobs/j");
  v1::ListJobEventsResponse page;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobEvents, request, page).ok());
  ASSERT_GT(page.events_size(), 0);
  request.set_page_size(page.events_size());
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobEvents, request, page).ok());
  EXPECT_EQ(page.next_page_token(), "");
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
  EXPECT_THAT(Call(*jobs_, &Jobs::CreateFineTuningJob, request, job).error_message(),
              testing::ContainsRegex("deadline: [0-9T:+-]+ is over; give a time to come"));
  const int64_t later = absl::ToUnixSeconds(absl::Now() + absl::Hours(1));
  request.mutable_job()->mutable_deadline()->set_seconds(later);
  Create(request);
  v1::UpdateFineTuningJobRequest update;
  update.mutable_job()->set_name("jobs/j");
  update.mutable_update_mask()->add_paths("deadline");
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, update, job).ok());
  EXPECT_FALSE(job.has_deadline()) << "none was given";
  update.mutable_job()->mutable_deadline()->set_seconds(later + 5);
  ASSERT_TRUE(Call(*jobs_, &Jobs::UpdateFineTuningJob, update, job).ok());
  EXPECT_EQ(job.deadline().seconds(), later + 5);
  Do([&](State& state, absl::Time) { state.Tick(absl::FromUnixSeconds(later + 5)); });
  job = GetJob("j");
  EXPECT_EQ(job.state(), v1::FineTuningJob::CANCELLED);
  EXPECT_EQ(job.stop_reason(), "DEADLINE");
}

}  // namespace
}  // namespace luthier
