// What users ask of jobs and sweeps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

TEST_F(StateTest, RunsAJobFromSubmissionToPublication) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_EQ(effects_.size(), 1u);
  EXPECT_TRUE(Report("j", 1, 1, JobInput::kTrainerStarted));
  EXPECT_TRUE(Report("j", 1, 2, JobInput::kTrainerFinished));
  EXPECT_TRUE(Report("j", 1, 3, JobInput::kArtifactStored));
  EXPECT_EQ(job("j").state, JobState::kSucceeded);
  EXPECT_EQ(job("j").model_version, "models/j/versions/1");
  EXPECT_EQ(versions_.size(), 1u);
}

TEST_F(StateTest, CancelsAWaitingJobAtOnceAndARunningOneWhenItsProcessIsGone) {
  ASSERT_TRUE(Submit("waiting").ok());
  ASSERT_TRUE(state_.Cancel("waiting", now_).ok());
  EndBatch();
  EXPECT_EQ(job("waiting").state, JobState::kCancelled);
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  ASSERT_TRUE(state_.Cancel("running", now_).ok());
  EndBatch();
  EXPECT_EQ(job("running").state, JobState::kCancelling);
  ASSERT_TRUE(state_.Cancel("running", now_).ok());
  EXPECT_TRUE(absl::IsNotFound(state_.Cancel("waiting", now_)));  // only the record knows it now
  Report("running", 1, 1, JobInput::kAttemptStopped);
  EXPECT_EQ(job("running").state, JobState::kCancelled);
}

TEST_F(StateTest, ACancellationAndTheEndOfAJobInEitherOrderGiveOneTerminalState) {
  Connect("n1", 2);
  for (const std::string id : {"cancelled-first", "finished-first"}) {
    ASSERT_TRUE(Submit(id).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
  }
  ASSERT_TRUE(state_.Cancel("cancelled-first", now_).ok());
  EndBatch();
  Report("cancelled-first", 1, 2, JobInput::kTrainerFinished);
  Report("cancelled-first", 1, 3, JobInput::kArtifactStored);
  Report("cancelled-first", 1, 4, JobInput::kAttemptStopped);
  EXPECT_EQ(job("cancelled-first").state, JobState::kCancelled);

  Report("finished-first", 1, 2, JobInput::kTrainerFinished);
  Report("finished-first", 1, 3, JobInput::kArtifactStored);
  EXPECT_FALSE(state_.Cancel("finished-first", now_).ok());
  EndBatch();
  EXPECT_EQ(job("finished-first").state, JobState::kSucceeded);
  ASSERT_EQ(versions_.size(), 1u) << "what was cancelled is not published";
  EXPECT_EQ(versions_[0].model, "finished-first");
}

TEST_F(StateTest, AnswersARequestThatIsRepeatedWithinABatchWithTheFirstJobAndRefusesAnotherBody) {
  const JobRequest request{"request", "body"};
  Job first{.id = "a", .base_model = "base"}, again{.id = "b", .base_model = "base"},
      other{.id = "c", .base_model = "base"};
  ASSERT_TRUE(state_.Create(first, request, {.own = "spec"}, now_).ok());
  ASSERT_TRUE(state_.Create(again, request, {.own = "spec"}, now_).ok());
  EXPECT_EQ(again.id, "a");
  EXPECT_TRUE(absl::IsAlreadyExists(state_.Create(other, {"request", "another body"}, {.own = "spec"}, now_)));
  EXPECT_EQ(state_.TakeWrites().new_jobs.size(), 1u);
}

TEST_F(StateTest, KnowsARequestAgainThatChangedAJobInTheSameBatch) {
  Job job{.id = "a", .base_model = "base"};
  ASSERT_TRUE(state_.Create(job, {}, {.own = "spec"}, now_).ok());
  const JobRequest request{"request", "body"};
  EXPECT_EQ(*state_.AnswerTo(request), nullptr);
  state_.Remember(request, job);
  EXPECT_EQ(*state_.AnswerTo(request), state_.Find("a"));
  EXPECT_TRUE(absl::IsAlreadyExists(state_.AnswerTo({"request", "another body"}).status()));
  EXPECT_EQ(*state_.AnswerTo({"", "body"}), nullptr) << "without an id nothing is known again";
  EXPECT_EQ(state_.TakeWrites().requests.size(), 1u);
}

TEST_F(StateTest, RefusesAJobWhoseDatasetOrBaseModelIsGone) {
  Job job{.id = "j", .base_model = "base", .datasets = "a,b"};
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "a"}).ok());
  EXPECT_THAT(std::string(state_.Create(job, {}, {.own = "spec"}, now_).message()),
              HasSubstr("datasets/b does not exist"));
}

TEST_F(StateTest, PausesARunningJobOnceItsProcessIsGoneAndResumesIt) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  ASSERT_TRUE(state_.Pause("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kPausing);
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kStop);
  EXPECT_TRUE(state_.Pause("j", now_).ok());
  Report("j", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("j").state, JobState::kPaused);
  EXPECT_EQ(state_.WhyItWaits(job("j"), now_).code, luthier::Wait::kPaused);
  Wait(absl::Hours(1));
  EXPECT_EQ(job("j").state, JobState::kPaused);
  Connect("n1");
  ASSERT_TRUE(state_.Resume("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").lost_attempts, 0);
  EXPECT_TRUE(state_.Resume("j", now_).ok()) << "it goes on already";
}

TEST_F(StateTest, AJobThatIsResumedBeforeItHasPausedGoesOnOnceItsProcessIsGone) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  ASSERT_TRUE(state_.Pause("j", now_).ok());
  EndBatch();
  ASSERT_TRUE(state_.Resume("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kPreempting);
  EXPECT_EQ(job("j").preemptions, 0);
  ASSERT_TRUE(state_.Resume("j", now_).ok()) << "asked again";
  ASSERT_TRUE(state_.Pause("j", now_).ok()) << "and changed their mind once more";
  ASSERT_TRUE(state_.Resume("j", now_).ok());
  EndBatch();

  State restarted;
  restarted.LoadJob(std::make_unique<Job>(job("j")), now_);
  restarted.LoadResource(ResourceKind::kBaseModel, "base");
  state_ = std::move(restarted);
  Connect("n1", 0, {"jobs/j/attempts/1"});
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kStop);
  EXPECT_TRUE(effects_[0].job_goes_on);
  Report("j", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").lost_attempts, 0);
}

TEST_F(StateTest, AJobOnHoldStartsWhenItIsReleased) {
  Connect("n1");
  Job held;
  held.state = JobState::kHeld;
  ASSERT_TRUE(Submit("j", held).ok());
  EXPECT_EQ(job("j").state, JobState::kHeld);
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.Resume("j", now_)));
  ASSERT_TRUE(state_.StartHeld("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kStarting);
}

TEST_F(StateTest, TriesAJobAgainThatFailed) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kAttemptFailed);
  ASSERT_EQ(job("j").state, JobState::kFailed);
  EXPECT_EQ(state_.jobs().count(JobState::kFailed), 1);
  EXPECT_TRUE(absl::IsNotFound(state_.Retry("j", now_)));

  state_.Borrow(job("j"));
  ASSERT_TRUE(state_.Retry("j", now_).ok());
  state_.Rollback();
  EXPECT_EQ(state_.Find("j"), nullptr);
  EXPECT_EQ(state_.jobs().count(JobState::kFailed), 1);

  state_.Borrow(job("j"));
  ASSERT_TRUE(state_.Retry("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").end_time, absl::InfinitePast());
  EXPECT_EQ(state_.jobs().count(JobState::kFailed), 0);
}

TEST_F(StateTest, DoesNotTryAJobAgainWhoseInputsAreGoneThoughTheirNamesAreThere) {
  ASSERT_TRUE(Submit("j").ok());
  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  state_.Borrow(job("j"));
  const absl::Status refused = state_.Retry("j", now_, /*inputs_remain=*/false);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_EQ(ReasonOf(refused), "INPUT_DELETED");
}

TEST_F(StateTest, ABorrowedJobLeavesAgainAfterItsLabelsWereChanged) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kAttemptFailed);
  state_.Borrow(job("j"));
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.Update("j", {.priority = 3}, now_)));
  ASSERT_TRUE(state_.Update("j", {.labels = "bytes"}, now_).ok());
  EndBatch();
  EXPECT_EQ(state_.Find("j"), nullptr);
  EXPECT_EQ(state_.jobs().count(JobState::kFailed), 1);
  state_.Borrow(job("j"));
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.Pause("j", now_)));
  EndBatch();
  EXPECT_EQ(state_.Find("j"), nullptr);
}

TEST_F(StateTest, AnUpdateWithAnOldRevisionIsRefused) {
  ASSERT_TRUE(Submit("j").ok());
  ASSERT_TRUE(state_.Update("j", {.priority = 5, .revision = 1}, now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").priority, 5);
  EXPECT_EQ(job("j").revision, 2);
  EXPECT_TRUE(absl::IsAborted(state_.Update("j", {.priority = 6, .revision = 1}, now_)));
  EXPECT_TRUE(state_.Update("j", {.priority = 6}, now_).ok());
}

TEST_F(StateTest, ASweepIsCreatedWithAllOfItsJobsOrNot) {
  const auto create = [&](const std::string& id, int count, const JobRequest& request,
                          std::vector<Job>* created = nullptr, const std::string& tenant = "default") {
    std::vector<Job> jobs;
    for (int i = 1; i <= count; ++i) {
      Job& job = jobs.emplace_back();
      job.id = absl::StrCat(id, "-", i);
      job.base_model = "base";
      job.tenant = tenant;
    }
    Sweep sweep{.id = id};
    const absl::Status status =
        state_.CreateSweep(sweep, jobs, request, std::vector<SpecBytes>(static_cast<size_t>(count)), now_);
    if (created != nullptr) *created = jobs;
    return status;
  };
  ASSERT_TRUE(state_.SetTenant({.id = "small", .max_queued_jobs = 2}, now_).ok());
  ASSERT_TRUE(Submit("taken-2").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(create("taken", 3, {})));
  EXPECT_TRUE(absl::IsResourceExhausted(create("many", 3, {}, nullptr, "small")));
  EXPECT_EQ(state_.jobs().size(), 1u) << "nothing of either";
  std::vector<Job> first, again;
  ASSERT_TRUE(create("s", 3, {"request", "body"}, &first).ok());
  ASSERT_TRUE(create("t", 3, {"request", "body"}, &again).ok());
  EXPECT_EQ(again.front().id, "s-1") << "the same request, in the same batch";
  EXPECT_TRUE(absl::IsAlreadyExists(create("u", 3, {"request", "another body"})));
  const Writes writes = state_.TakeWrites();
  ASSERT_EQ(writes.sweeps.size(), 1u);
  EXPECT_EQ(writes.sweeps[0].first_job, first[0].number);
  EXPECT_EQ(writes.sweeps[0].jobs, 3);
  EXPECT_EQ(first[2].number, first[0].number + 2);
}

TEST_F(StateTest, ATenantMayHaveNoMoreWaitingJobsThanItsLimit) {
  ASSERT_TRUE(state_.SetTenant({.id = "small", .max_devices = 1, .max_queued_jobs = 2}, now_).ok());
  EndBatch();
  Job job;
  job.tenant = "small";
  ASSERT_TRUE(Submit("a", job).ok());
  ASSERT_TRUE(Submit("b", job).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Submit("c", job)));
  ASSERT_TRUE(state_.SetTenant({.id = "tiny", .max_queued_jobs = 1}, now_).ok());
  job.tenant = "tiny";
  ASSERT_TRUE(Submit("d", job).ok());
  EXPECT_THAT(std::string(Submit("e", job).message()), HasSubstr("tenant tiny has 1 waiting job and may have 1;"));
  ASSERT_TRUE(Submit("of-another").ok());
  Connect("n1", 4);
  EXPECT_EQ(this->job("a").state, JobState::kStarting);
  EXPECT_EQ(state_.WhyItWaits(this->job("b"), now_).code, luthier::Wait::kTenantLimit);
  EXPECT_EQ(this->job("of-another").state, JobState::kStarting);
}

// Created on hold, paused or cancelled, they would all wait a moment later.
TEST_F(StateTest, ATenantGetsRoundItsLimitOfWaitingJobsInNoWay) {
  ASSERT_TRUE(state_.SetTenant({.id = "small", .max_queued_jobs = 2}, now_).ok());
  EndBatch();
  Job job{.tenant = "small"}, held{.tenant = "small", .state = JobState::kHeld};
  ASSERT_TRUE(Submit("held", held).ok());
  ASSERT_TRUE(Submit("paused", job).ok());
  ASSERT_TRUE(state_.Pause("paused", now_).ok());
  EndBatch();
  const absl::Status refused = Submit("more", held);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(ReasonOf(refused), "TENANT_QUEUE_FULL");
  EXPECT_TRUE(absl::IsResourceExhausted(Submit("more", job)));

  ASSERT_TRUE(state_.Cancel("paused", now_).ok());
  EndBatch();
  ASSERT_TRUE(Submit("more", job).ok());
  state_.Borrow(this->job("paused"));
  EXPECT_TRUE(absl::IsResourceExhausted(state_.Retry("paused", now_)));
  state_.Rollback();
  ASSERT_TRUE(state_.StartHeld("held", now_).ok()) << "it counted already";
}

}  // namespace
}  // namespace luthier
