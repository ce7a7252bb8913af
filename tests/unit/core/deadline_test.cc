// Jobs that have to be done by a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class DeadlineTest : public StateTest {
 protected:
  const absl::Time deadline_ = kStart + absl::Hours(1);
};

TEST_F(DeadlineTest, AJobThatStillWaitsIsCancelledAtItsDeadlineAndNotBefore) {
  ASSERT_TRUE(Submit("j", {.deadline = deadline_}).ok());
  Wait(absl::Hours(1) - absl::Milliseconds(1));
  EXPECT_EQ(job("j").state, JobState::kQueued);
  Wait(absl::Milliseconds(1));
  EXPECT_EQ(job("j").state, JobState::kCancelled);
  EXPECT_EQ(job("j").end_time, deadline_);
  EXPECT_EQ(events_.back().message, "its deadline is over");
}

TEST_F(DeadlineTest, AJobThatTrainsIsToldToStopOnceAndGivesItsDeviceBackWhenItsProcessIsGone) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", {.deadline = deadline_}).ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Pass(absl::Hours(1), {"n1"});
  EXPECT_EQ(job("j").state, JobState::kCancelling);
  ASSERT_THAT(effects_, SizeIs(1));
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kStop);
  Pass(absl::Seconds(5), {"n1"});
  EXPECT_THAT(effects_, SizeIs(0)) << "asking again would only repeat it";
  Report("j", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("j").state, JobState::kCancelled);
}

TEST_F(DeadlineTest, WhatIsBeingPublishedIsPublished) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", {.deadline = deadline_}).ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Pass(absl::Hours(2), {"n1"});
  EXPECT_EQ(job("j").state, JobState::kPublishing);
  Report("j", 1, 3, JobInput::kArtifactStored);
  EXPECT_EQ(job("j").state, JobState::kSucceeded);
}

TEST_F(DeadlineTest, CanBeMovedAndTakenAway) {
  ASSERT_TRUE(Submit("later", {.deadline = deadline_}).ok());
  ASSERT_TRUE(Submit("never", {.deadline = deadline_}).ok());
  JobUpdate update;
  update.deadline = deadline_ + absl::Hours(1);
  ASSERT_TRUE(state_.Update("later", update, now_).ok());
  update.deadline = absl::InfiniteFuture();
  ASSERT_TRUE(state_.Update("never", update, now_).ok());
  Wait(absl::Hours(1));
  EXPECT_EQ(job("later").state, JobState::kQueued);
  Wait(absl::Hours(1));
  EXPECT_EQ(job("later").state, JobState::kCancelled);
  EXPECT_EQ(job("never").state, JobState::kQueued);
}

TEST_F(DeadlineTest, AJobIsTriedAgainOnlyWithADeadlineToCome) {
  ASSERT_TRUE(Submit("j", {.deadline = deadline_}).ok());
  Wait(absl::Hours(1));
  state_.Borrow(job("j"));
  const absl::Status refused = state_.Retry("j", now_);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--deadline"));
  JobUpdate update;
  update.deadline = now_ + absl::Hours(1);
  ASSERT_TRUE(state_.Update("j", update, now_).ok());
  EXPECT_TRUE(state_.Retry("j", now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kQueued);
  update.deadline = now_ - absl::Hours(1);
  ASSERT_TRUE(state_.Update("j", update, now_).ok());
  EXPECT_THAT(std::string(state_.Retry("j", now_).message()), HasSubstr("jobs/j is QUEUED"))
      << "another deadline would not help";
}

TEST_F(DeadlineTest, AJobThatSucceededGetsNoOtherAndKeepsItsLabelsChangeable) {
  Connect("n1");
  RunOne("j", "n1", JobInput::kTrainerFinished);
  ASSERT_EQ(job("j").state, JobState::kSucceeded);
  state_.Borrow(job("j"));
  JobUpdate update;
  update.deadline = now_ + absl::Hours(1);
  const absl::Status refused = state_.Update("j", update, now_);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("deadline: jobs/j is SUCCEEDED; only labels and retention"));
  JobUpdate harmless;
  harmless.labels = "labels";
  harmless.retention = absl::Hours(1);
  EXPECT_TRUE(state_.Update("j", harmless, now_).ok());
}

TEST_F(DeadlineTest, ABatchThatCouldNotBeWrittenLeavesItAsItWas) {
  ASSERT_TRUE(Submit("j", {.deadline = deadline_}).ok());
  now_ += absl::Hours(1);
  state_.Tick(now_);
  state_.Rollback();
  EXPECT_EQ(state_.Find("j")->state, JobState::kQueued);
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kCancelled);
}

}  // namespace
}  // namespace luthier
