#include "server/core/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kStart = absl::FromUnixSeconds(1700000000);

class StateTest : public testing::Test {
 protected:
  absl::Status Submit(const std::string& id, const std::string& request_id = "", const std::string& body = "body") {
    Job job{.id = id, .request_id = request_id, .body_sha256 = body, .base_model = "base"};
    const absl::Status status = state_.Create(job, "spec", now_);
    last_ = job.id;
    return status;
  }
  void Connect(const std::string& node, const std::vector<std::string>& attempts = {}) {
    stale_ = state_.Register(Node{.id = node}, attempts, now_);
  }
  bool Report(const std::string& job, int attempt, int64_t sequence, JobInput input) {
    luthier::Report report;
    report.attempt = {job, attempt};
    report.sequence = sequence;
    report.input = input;
    return state_.Record(std::move(report), now_);
  }
  void Wait(absl::Duration duration) {
    now_ += duration;
    state_.Tick(now_);
  }
  const Job& job(const std::string& id) { return *state_.Find(id); }

  State state_;
  absl::Time now_ = kStart;
  std::string last_;
  std::vector<std::string> stale_;
};

TEST_F(StateTest, RunsAJobFromSubmissionToPublication) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_EQ(state_.TakeEffects().size(), 1u);
  EXPECT_TRUE(Report("j", 1, 1, JobInput::kTrainerStarted));
  EXPECT_TRUE(Report("j", 1, 2, JobInput::kTrainerFinished));
  EXPECT_TRUE(Report("j", 1, 3, JobInput::kArtifactStored));
  EXPECT_EQ(job("j").state, JobState::kSucceeded);
  EXPECT_EQ(job("j").model_version, "models/j/versions/1");
  EXPECT_EQ(state_.TakeWrites().versions.size(), 1u);
}

TEST_F(StateTest, PublishesOnceThoughTheReportArrivesTwice) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 4, JobInput::kArtifactStored);
  EXPECT_EQ(state_.TakeWrites().versions.size(), 1u);
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
  EXPECT_THAT(job("first").pending_reason, HasSubstr("no node is connected"));
  Connect("n1");
  ASSERT_TRUE(Submit("second").ok());
  EXPECT_THAT(job("second").pending_reason, HasSubstr("busy"));
  EXPECT_EQ(job("first").pending_reason, "");
}

TEST_F(StateTest, GivesUpAfterTheLastRetry) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= kMaxLostAttempts; ++attempt) {
    ASSERT_EQ(job("j").attempt, attempt);
    Report("j", attempt, 1, JobInput::kAttemptLost);
    ASSERT_EQ(job("j").state, JobState::kRecovering);
    now_ += RetryDelay(attempt);
    state_.Heartbeat("n1", "", now_);
    state_.Tick(now_);
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
  state_.Heartbeat(other, "", now_);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").node, other);
}

TEST_F(StateTest, AdoptsARunningAttemptAfterARestartOfTheServer) {
  Job running{.id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7};
  state_.LoadJob(running, now_);
  Connect("n1", {"jobs/j/attempts/3", "jobs/j/attempts/2"});
  EXPECT_THAT(stale_, ElementsAre("jobs/j/attempts/2"));
  EXPECT_EQ(job("j").state, JobState::kRunning);
  EXPECT_THAT(state_.TakeEffects(), IsEmpty());
}

TEST_F(StateTest, RecoversAnAttemptThatItsAgentNoLongerHolds) {
  Job running{.id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7};
  state_.LoadJob(running, now_);
  Connect("n1");
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 4);
}

TEST_F(StateTest, SendsAStartAgainThatMayNeverHaveArrived) {
  Job starting{.id = "j", .state = JobState::kStarting, .attempt = 1, .node = "n1"};
  state_.LoadJob(starting, now_);
  Connect("n1");
  EXPECT_EQ(job("j").attempt, 1);
  EXPECT_EQ(state_.TakeEffects().size(), 1u);
}

TEST_F(StateTest, CancelsAWaitingJobAtOnceAndARunningOneWhenItsProcessIsGone) {
  ASSERT_TRUE(Submit("waiting").ok());
  ASSERT_TRUE(state_.Cancel("waiting", now_).ok());
  EXPECT_EQ(job("waiting").state, JobState::kCancelled);
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  ASSERT_TRUE(state_.Cancel("running", now_).ok());
  EXPECT_EQ(job("running").state, JobState::kCancelling);
  ASSERT_TRUE(state_.Cancel("running", now_).ok());
  Report("running", 1, 1, JobInput::kAttemptStopped);
  EXPECT_EQ(job("running").state, JobState::kCancelled);
}

TEST_F(StateTest, AnswersARepeatedRequestWithTheFirstJobAndRefusesAnotherBody) {
  ASSERT_TRUE(Submit("a", "request").ok());
  ASSERT_TRUE(Submit("b", "request").ok());
  EXPECT_EQ(last_, "a");
  EXPECT_EQ(state_.jobs().size(), 1u);
  EXPECT_TRUE(absl::IsAlreadyExists(Submit("c", "request", "another body")));
}

TEST_F(StateTest, NumbersTheEventsOfAJobWithoutGaps) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  int64_t expected = 0;
  for (const Event& event : state_.TakeWrites().events) EXPECT_EQ(event.sequence, ++expected);
  EXPECT_EQ(expected, job("j").last_event);
}

TEST(RetryDelayTest, StartsFastAndGrowsToTenMinutes) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(10));
  EXPECT_EQ(RetryDelay(100), absl::Minutes(10));
}

}  // namespace
}  // namespace luthier
