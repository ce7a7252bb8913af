// The State as a whole: time, batches that cannot be written, and epochs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/batch.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST_F(StateTest, NumbersTheEventsOfAJobWithoutGaps) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  int64_t expected = 0;
  for (const Event& event : events_) EXPECT_EQ(event.sequence, ++expected);
  EXPECT_EQ(expected, job("j").last_event);
}

TEST_F(StateTest, RollsBackABatchThatCouldNotBeWritten) {
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  Report("running", 1, 1, JobInput::kTrainerStarted);
  Report("running", 1, 2, JobInput::kTrainerFinished);
  ASSERT_TRUE(Submit("waiting-for-a-node-with-a-long-name").ok());

  Job fresh{.id = "fresh", .base_model = "base"};
  ASSERT_TRUE(state_.Create(fresh, {"request", "body"}, {.own = "spec"}, now_).ok());
  ASSERT_TRUE(state_.Cancel("waiting-for-a-node-with-a-long-name", now_).ok());
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  ASSERT_TRUE(state_.SetTenant({.id = "new-tenant"}, now_).ok());
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
  EXPECT_EQ(state_.tenants().size(), 1u);
  EXPECT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  // The same again succeeds, with the same version and event numbers.
  ASSERT_TRUE(state_.Record(stored, now_));
  EndBatch();
  EXPECT_EQ(job("running").model_version, "models/running/versions/1");
  EXPECT_EQ(job("waiting-for-a-node-with-a-long-name").state, JobState::kStarting);
}

// A record from a backup does not know what was started since: neither those attempts nor the ones it knows may count.
TEST_F(StateTest, AnEpochEndsEveryAttemptOfBeforeAndNumbersLaterOnesApart) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("running").ok());
  ASSERT_TRUE(Submit("cancelled").ok());
  ASSERT_TRUE(Submit("waiting").ok());
  Report("running", 1, 1, JobInput::kTrainerStarted);
  ASSERT_TRUE(state_.Cancel("cancelled", now_).ok());
  EndBatch();
  state_.BeginEpoch(3, now_);
  EndBatch();
  EXPECT_EQ(job("running").lost_attempts, 0) << "that is no fault of the attempt";
  EXPECT_EQ(job("running").attempt, 3 * kAttemptsPerEpoch + 1);
  EXPECT_EQ(job("waiting").attempt, 3 * kAttemptsPerEpoch + 1);
  EXPECT_EQ(job("cancelled").state, JobState::kCancelled);
  EXPECT_FALSE(Report("running", 1, 2, JobInput::kTrainerFinished));
  Connect("n1", 0, {"jobs/running/attempts/1", "jobs/waiting/attempts/1"});
  EXPECT_THAT(stale_, ElementsAre("jobs/running/attempts/1", "jobs/waiting/attempts/1"));
  Report("running", job("running").attempt, 1, JobInput::kAttemptLost);
  Wait(RetryDelay(1));
  EXPECT_EQ(job("running").attempt, 3 * kAttemptsPerEpoch + 2);
}

TEST_F(StateTest, AVersionOfAfterTheBackupDoesNotShareItsNumberWithALaterOne) {
  Connect("n1");
  const auto publish = [&](const std::string& id) {
    EXPECT_TRUE(Submit(id, {.model = "intents"}).ok());
    const int attempt = job(id).attempt;
    Report(id, attempt, 1, JobInput::kTrainerStarted);
    Report(id, attempt, 2, JobInput::kTrainerFinished);
    Report(id, attempt, 3, JobInput::kArtifactStored);
    return job(id).model_version;
  };
  EXPECT_EQ(publish("a"), "models/intents/versions/1");
  state_.BeginEpoch(2, now_);
  EndBatch();
  EXPECT_EQ(publish("b"), absl::StrCat("models/intents/versions/", 2 * kVersionsPerEpoch + 1));
  EXPECT_EQ(publish("c"), absl::StrCat("models/intents/versions/", 2 * kVersionsPerEpoch + 2));
}

TEST_F(StateTest, AnEpochThatCouldNotBeWrittenHasNotBegun) {
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  state_.BeginEpoch(1, now_);
  (void)state_.TakeWrites();
  state_.Rollback();
  EXPECT_EQ(state_.epoch(), 0);
  EXPECT_TRUE(Report("running", 1, 1, JobInput::kTrainerStarted));
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

TEST_F(StateTest, AClockThatWasSetStaysSetThoughBatchesCannotBeWritten) {
  Connect("n1");
  ASSERT_TRUE(Submit("lost").ok());
  Report("lost", 1, 1, JobInput::kAttemptLost);
  const absl::Duration jump = -absl::Hours(1);
  const absl::Time start = job("lost").not_before + jump;
  now_ += jump;
  state_.ClockJumped(jump);
  for (int failed = 0; failed < 2; ++failed) {
    state_.Tick(now_);
    state_.Rollback();
    EXPECT_EQ(state_.Find("lost")->not_before, start);
  }
  EndBatch();
  EXPECT_EQ(job("lost").not_before, start) << "on record too";
  EXPECT_EQ(job("lost").state, JobState::kRecovering);
  Wait(RetryDelay(1));
  EXPECT_EQ(job("lost").attempt, 2);
}

TEST_F(StateTest, AClockThatWasSetMakesNoAttemptOlderOrYounger) {
  const auto set_clock = [&](absl::Duration jump) {
    now_ += jump;
    state_.ClockJumped(jump);
    state_.Tick(now_);
    state_.Rollback();
    EndBatch();
  };
  Connect("n1");
  ASSERT_TRUE(Submit("running", {.service_class = ServiceClass::kBackground}).ok());
  Report("running", 1, 1, JobInput::kTrainerStarted);
  set_clock(absl::Hours(24));
  ASSERT_TRUE(Submit("urgent", {.service_class = ServiceClass::kInteractive}).ok());
  EXPECT_EQ(job("running").state, JobState::kRunning) << "it may run for ten minutes before it is stopped for another";
  set_clock(-absl::Hours(48));
  Pass(absl::Minutes(10), {"n1"});
  EXPECT_EQ(job("running").state, JobState::kPreempting);
}

TEST_F(StateTest, ATenantIsChargedForWhatItsJobsRanWhateverTheClockIsSetTo) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", {.estimate = absl::Minutes(10)}).ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Pass(absl::Minutes(5), {"n1"});
  now_ -= absl::Hours(24);
  state_.ClockJumped(-absl::Hours(24));
  Report("j", 1, 2, JobInput::kAttemptFailed);
  EXPECT_NEAR(state_.TenantOf("default").UsageAt(now_), 300, 1);
}

// What is due is decided with every batch: else nobody could read anything on a full disk.
TEST_F(StateTest, WhatIsOnlyAskedIsAnsweredThoughWhatIsDueCannotBeWritten) {
  Connect("n1");
  ASSERT_TRUE(Submit("running").ok());
  Report("running", 1, 1, JobInput::kTrainerStarted);
  ASSERT_TRUE(Submit("due", {.deadline = now_ + absl::Seconds(1)}).ok());
  now_ += absl::Seconds(2);
  const Command ask = [](State&, absl::Time) { return absl::OkStatus(); };
  const Command order = [](State& state, absl::Time) { return state.Checkpoint("running"); };
  const Command cancel = [](State& state, absl::Time now) { return state.Cancel("running", now); };
  const auto statuses = [&](const std::vector<Command>& commands) {
    return RunBatch(state_, commands, now_, [](const Writes&) { return absl::UnavailableError("the disk is full"); })
        .statuses;
  };
  const absl::Status full = absl::UnavailableError("the disk is full");
  EXPECT_THAT(statuses({ask, ask}), ElementsAre(absl::OkStatus(), absl::OkStatus()));
  EXPECT_EQ(state_.Find("due")->state, JobState::kQueued);
  EXPECT_THAT(statuses({ask, cancel}), ElementsAre(full, full)) << "it may have seen what has not happened";
  EXPECT_THAT(statuses({order}), ElementsAre(full)) << "the agent has not heard of it";
  EXPECT_EQ(state_.Find("running")->state, JobState::kRunning);
}

TEST_F(StateTest, NoLeaseRunsOutWhileTheServerStandsStill) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  now_ += absl::Minutes(5);
  state_.StoodStill(absl::Minutes(5));
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kStarting);
  Wait(kLease);
  EXPECT_EQ(job("j").state, JobState::kRecovering) << "the lease goes on where it was";
}

}  // namespace
}  // namespace luthier
