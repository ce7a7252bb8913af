#include "server/core/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kStart = absl::FromUnixSeconds(1700000000);

// Each step is a batch of its own, as the loop runs them, unless a test says otherwise.
class StateTest : public testing::Test {
 protected:
  StateTest() {
    EXPECT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
    EndBatch();
  }
  absl::Status Submit(const std::string& id, Job job = {}) {
    job.id = id;
    job.base_model = "base";
    const absl::Status status = state_.Create(job, {}, "spec", now_);
    EndBatch();
    return status;
  }
  void Connect(const std::string& node, int gpus = 0, const std::vector<std::string>& attempts = {}) {
    stale_ = state_.Register(Node{.id = node, .devices = std::max(1, gpus), .gpus = gpus > 0}, attempts, now_);
    EndBatch();
  }
  bool Report(const std::string& job, int attempt, int64_t sequence, JobInput input) {
    luthier::Report report;
    report.attempt = {job, attempt};
    report.sequence = sequence;
    report.input = input;
    const bool current = state_.Record(std::move(report), now_);
    EndBatch();
    return current;
  }
  void Wait(absl::Duration duration) {
    now_ += duration;
    EndBatch();
  }
  void EndBatch() {
    state_.Tick(now_);
    Writes writes = state_.TakeWrites();
    for (const Job& job : writes.jobs) record_[job.id] = job;
    for (Event& event : writes.events) events_.push_back(std::move(event));
    for (ModelVersion& version : writes.versions) versions_.push_back(std::move(version));
    effects_ = state_.TakeEffects();
    state_.Commit();
  }
  // As it was last written, which is all that is left of a job that is over.
  const Job& job(const std::string& id) { return record_.at(id); }

  State state_;
  absl::Time now_ = kStart;
  std::map<std::string, Job> record_;
  std::vector<Event> events_;
  std::vector<ModelVersion> versions_;
  std::vector<Effect> effects_;  // of the last batch
  std::vector<std::string> stale_;
};

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

TEST_F(StateTest, PublishesOnceThoughTheReportArrivesTwice) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 4, JobInput::kArtifactStored);
  EXPECT_EQ(versions_.size(), 1u);
}

TEST_F(StateTest, RefusesReportsOfAnAttemptThatWasReplaced) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kAttemptLost);
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  ASSERT_EQ(job("j").attempt, 2);
  EXPECT_FALSE(Report("j", 1, 3, JobInput::kTrainerFinished));
  EXPECT_EQ(job("j").state, JobState::kStarting);
}

TEST_F(StateTest, SaysWhyAJobWaits) {
  ASSERT_TRUE(Submit("first").ok());
  EXPECT_THAT(state_.WhyItWaits(job("first"), now_), HasSubstr("no node is connected"));
  Connect("n1");
  ASSERT_TRUE(Submit("second").ok());
  EXPECT_THAT(state_.WhyItWaits(job("second"), now_), HasSubstr("busy"));
  EXPECT_EQ(state_.WhyItWaits(job("first"), now_), "");
  ASSERT_TRUE(Submit("wide", {.devices = 8}).ok());
  EXPECT_THAT(state_.WhyItWaits(job("wide"), now_), HasSubstr("asks for 8 devices"));
}

TEST_F(StateTest, GivesUpAfterTheLastRetry) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= kMaxLostAttempts; ++attempt) {
    ASSERT_EQ(job("j").attempt, attempt);
    Report("j", attempt, 1, JobInput::kAttemptLost);
    ASSERT_EQ(job("j").state, JobState::kRecovering);
    now_ += RetryDelay(attempt);
    state_.Heartbeat("n1", "", false, now_);
    EndBatch();
  }
  Report("j", kMaxLostAttempts + 1, 1, JobInput::kAttemptLost);
  EXPECT_EQ(job("j").state, JobState::kFailed);
}

TEST_F(StateTest, TakesAnAttemptFromANodeOnlyAfterItsLease) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("j").ok());
  const std::string node = job("j").node;
  const std::string other = node == "n1" ? "n2" : "n1";
  state_.Disconnect(node, now_);
  Wait(kLease - absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 1);
  state_.Heartbeat(other, "", false, now_);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").node, other);
}

TEST_F(StateTest, AdoptsARunningAttemptAfterARestartOfTheServer) {
  state_.LoadJob({.number = 1, .id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7}, now_);
  Connect("n1", 0, {"jobs/j/attempts/3", "jobs/j/attempts/2"});
  EXPECT_THAT(stale_, ElementsAre("jobs/j/attempts/2"));
  EXPECT_EQ(state_.Find("j")->state, JobState::kRunning);
  EXPECT_THAT(effects_, IsEmpty());
}

TEST_F(StateTest, RecoversAnAttemptThatItsAgentNoLongerHolds) {
  state_.LoadJob({.number = 1, .id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7}, now_);
  Connect("n1");
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 4);
}

TEST_F(StateTest, SendsAStartAgainThatMayNeverHaveArrived) {
  state_.LoadJob({.number = 1, .id = "j", .state = JobState::kStarting, .attempt = 1, .node = "n1"}, now_);
  Connect("n1");
  EXPECT_EQ(state_.Find("j")->attempt, 1);
  EXPECT_EQ(effects_.size(), 1u);
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

TEST_F(StateTest, AnswersARequestThatIsRepeatedWithinABatchWithTheFirstJobAndRefusesAnotherBody) {
  const JobRequest request{"request", "body"};
  Job first{.id = "a", .base_model = "base"}, again{.id = "b", .base_model = "base"}, other{.id = "c", .base_model = "base"};
  ASSERT_TRUE(state_.Create(first, request, "spec", now_).ok());
  ASSERT_TRUE(state_.Create(again, request, "spec", now_).ok());
  EXPECT_EQ(again.id, "a");
  EXPECT_TRUE(absl::IsAlreadyExists(state_.Create(other, {"request", "another body"}, "spec", now_)));
  EXPECT_EQ(state_.TakeWrites().new_jobs.size(), 1u);
}

TEST_F(StateTest, NumbersTheEventsOfAJobWithoutGaps) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  int64_t expected = 0;
  for (const Event& event : events_) EXPECT_EQ(event.sequence, ++expected);
  EXPECT_EQ(expected, job("j").last_event);
}

TEST_F(StateTest, RefusesAJobWhoseDatasetOrBaseModelIsGone) {
  Job job{.id = "j", .base_model = "base", .datasets = "a,b"};
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "a"}).ok());
  EXPECT_THAT(std::string(state_.Create(job, {}, "spec", now_).message()), HasSubstr("datasets/b does not exist"));
}

TEST_F(StateTest, KeepsADatasetWhileAJobThatIsNotOverUsesIt) {
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  ASSERT_TRUE(Submit("j", {.datasets = "d"}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.DeleteResource(ResourceKind::kDataset, "d")));
  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  EXPECT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  EXPECT_TRUE(absl::IsNotFound(state_.DeleteResource(ResourceKind::kDataset, "d")));
}

TEST_F(StateTest, PublishesUnderTheModelThatTheJobAskedForOneVersionAfterTheOther) {
  Connect("n1");
  for (const char* id : {"first", "second"}) {
    ASSERT_TRUE(Submit(id, {.model = "intents"}).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Report(id, 1, 3, JobInput::kArtifactStored);
  }
  EXPECT_EQ(job("first").model_version, "models/intents/versions/1");
  EXPECT_EQ(job("second").model_version, "models/intents/versions/2");
}

// Three jobs of one device each run on a node with four GPUs; the server restarts. The fourth device alone is free.
TEST_F(StateTest, ADeviceThatAnAttemptHoldsIsNotGivenAwayAfterARestart) {
  Connect("n1", 4);
  for (const char* id : {"a", "b", "c"}) {
    ASSERT_TRUE(Submit(id).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
  }
  Report("a", 1, 2, JobInput::kAttemptFailed);
  ASSERT_THAT(job("b").held, ElementsAre(1));
  ASSERT_THAT(job("c").held, ElementsAre(2));

  State restarted;
  for (const char* id : {"b", "c"}) restarted.LoadJob(job(id), now_);
  restarted.LoadResource(ResourceKind::kBaseModel, "base");
  state_ = std::move(restarted);
  ASSERT_TRUE(Submit("wide", {.devices = 2}).ok());
  ASSERT_TRUE(Submit("wider", {.devices = 2}).ok());
  Connect("n1", 4, {"jobs/b/attempts/1", "jobs/c/attempts/1"});
  EXPECT_THAT(job("wide").held, ElementsAre(0, 3));
  EXPECT_EQ(job("wider").state, JobState::kQueued);
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_THAT(effects_[0].devices, ElementsAre(0, 3));
}

TEST_F(StateTest, RollsBackABatchThatCouldNotBeWritten) {
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  Report("running", 1, 1, JobInput::kTrainerStarted);
  Report("running", 1, 2, JobInput::kTrainerFinished);
  ASSERT_TRUE(Submit("waiting-for-a-node-with-a-long-name").ok());

  Job fresh{.id = "fresh", .base_model = "base"};
  ASSERT_TRUE(state_.Create(fresh, {"request", "body"}, "spec", now_).ok());
  ASSERT_TRUE(state_.Cancel("waiting-for-a-node-with-a-long-name", now_).ok());
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  luthier::Report stored{.attempt = {"running", 1}, .sequence = 3, .input = JobInput::kArtifactStored};
  ASSERT_TRUE(state_.Record(stored, now_));
  state_.Tick(now_);
  (void)state_.TakeWrites();
  state_.Rollback();

  EXPECT_THAT(state_.TakeEffects(), IsEmpty());
  EXPECT_TRUE(state_.TakeWrites().empty());
  EXPECT_EQ(state_.Find("fresh"), nullptr);
  EXPECT_EQ(state_.Find("running")->state, JobState::kPublishing);
  EXPECT_EQ(state_.Find("running")->last_report, 2);
  ASSERT_NE(state_.Find("waiting-for-a-node-with-a-long-name"), nullptr);
  EXPECT_EQ(state_.Find("waiting-for-a-node-with-a-long-name")->state, JobState::kQueued);
  EXPECT_EQ(state_.jobs().waiting(), 1);
  EXPECT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  // The same again succeeds, with the same version and event numbers.
  ASSERT_TRUE(state_.Record(stored, now_));
  EndBatch();
  EXPECT_EQ(job("running").model_version, "models/running/versions/1");
  EXPECT_EQ(job("waiting-for-a-node-with-a-long-name").state, JobState::kStarting);
}

TEST_F(StateTest, MakesAnAgentRegisterAnewWhoseLeaseRanOutInAnOpenSession) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Wait(kLease);
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  state_.Heartbeat("n1", "", false, now_);  // the agent was stopped for a while and goes on
  EndBatch();
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kReconnect);
  Connect("n1", 0, {"jobs/j/attempts/1"});
  EXPECT_THAT(stale_, ElementsAre("jobs/j/attempts/1"));
}

TEST_F(StateTest, AnAgentThatLeavesReportsToTheEndAndGetsNothingNew) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  for (int beat = 0; beat < 8; ++beat) {  // longer than a lease: its trainer writes a large checkpoint
    state_.Heartbeat("n1", "", true, now_);
    Wait(kHeartbeatInterval);
    EXPECT_THAT(effects_, IsEmpty());
    EXPECT_EQ(job("j").state, JobState::kRunning);
  }
  Report("j", 1, 2, JobInput::kAttemptStopped);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  EXPECT_EQ(job("j").attempt, 1);
  Connect("n1");  // the next agent of the node
  EXPECT_EQ(job("j").attempt, 2);
}

TEST_F(StateTest, AClockThatWasSetEndsNoLeaseAndNoDelay) {
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  Connect("n2");
  ASSERT_TRUE(Submit("lost").ok());
  Report("lost", 1, 1, JobInput::kAttemptLost);
  for (const absl::Duration jump : {absl::Hours(24), -absl::Hours(48)}) {
    now_ += jump;
    state_.ClockJumped(jump);
    EndBatch();
    EXPECT_EQ(job("running").state, JobState::kStarting);
    EXPECT_EQ(job("lost").state, JobState::kRecovering);
  }
  Wait(RetryDelay(1));
  EXPECT_EQ(job("lost").attempt, 2);
}

TEST_F(StateTest, StartsMoreJobsAtOnceThanOneCycleLooksAt) {
  for (int i = 0; i < 1200; ++i) ASSERT_TRUE(Submit(absl::StrCat("j", i)).ok());
  Connect("n1", 1200);
  Wait(absl::Milliseconds(500));
  Wait(absl::Milliseconds(500));
  EXPECT_EQ(state_.jobs().waiting(), 0);
  EXPECT_EQ(state_.jobs().count(JobState::kStarting), 1200);
}

TEST(RetryDelayTest, StartsFastAndGrowsToTenMinutes) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(10));
  EXPECT_EQ(RetryDelay(100), absl::Minutes(10));
}

}  // namespace
}  // namespace luthier
