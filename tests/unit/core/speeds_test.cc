// How long jobs are expected to take, by the speed of those that are like them, and what follows from it.
#include "server/core/speeds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1700000000);

Job Training(int64_t work_tokens, Tuning tuning = Tuning::kLora, int nodes = 1, int devices = 1) {
  Job job{.base_model = "base", .devices = devices, .nodes = nodes};
  job.tuning = tuning;
  job.work_tokens = work_tokens;
  return job;
}

TEST(SpeedsTest, AJobTakesWhatOthersLikeItWouldOrElseTheirDevicesAlone) {
  Speeds speeds;
  speeds.Load({"base", Tuning::kLora, 1, 1, 100});
  speeds.Load({"base", Tuning::kLora, 2, 4, 200});
  speeds.Load({"other", Tuning::kFull, 1, 1, 1});
  const struct {
    Job job;
    std::optional<absl::Duration> duration;
    std::string reason;
  } rows[] = {
      {Training(6000), absl::Seconds(60), "from the speed of other base lora jobs"},
      {Training(6000, Tuning::kLora, 2, 4), absl::Seconds(30),
       "from the speed of other 2-node 4-device base lora jobs"},
      {Training(6000, Tuning::kLora, 1, 2), absl::Seconds(30),
       "from the speed of base lora jobs on one device, times 2; the time in which ranks add up their gradients is not "
       "in it"},
      {Training(6000, Tuning::kLora, 3, 1), absl::Seconds(20),
       "from the speed of base lora jobs on one device, times 3; the time in which ranks add up their gradients over "
       "the network is not in it"},
      {Training(6000, Tuning::kFull), std::nullopt, "no base full job has reported its speed to this server yet"},
      {Training(6000, Tuning::kFull, 1, 8), std::nullopt,
       "no 8-device base full job has reported its speed to this server yet"},
      {Job{.base_model = "base", .estimate = absl::Seconds(7)}, absl::Seconds(7), "from the size of the model"},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(KnownDuration(row.job, speeds), row.duration) << row.reason;
    EXPECT_EQ(DurationReason(row.job, speeds), row.reason);
    EXPECT_EQ(ExpectedDuration(row.job, speeds), row.duration.value_or(kUnknownDuration)) << row.reason;
  }
}

TEST(SpeedsTest, TheNewestReportDoesNotDecideAloneAndIsRecordedOnceMuchHasChanged) {
  Speeds speeds;
  const Job job = Training(1000);
  ASSERT_TRUE(speeds.Observe(job, 100, kNow).has_value());
  EXPECT_FALSE(speeds.Observe(job, 190, kNow).has_value());
  EXPECT_NEAR(speeds.Of(job)->tokens_per_second, 109, 1e-9);
  const std::optional<Speed> notable = speeds.Observe(job, 190, kNow);
  ASSERT_TRUE(notable.has_value()) << "since it was recorded as 100 it has moved by more than a tenth";
  EXPECT_NEAR(notable->tokens_per_second, 117.1, 1e-9);
  EXPECT_FALSE(speeds.Observe(job, 110, kNow).has_value());
}

TEST(SpeedsTest, OneReportOfAKindCountsInTenSecondsHoweverManyTrainAndOnceMoreAfterTheClockWasSetBack) {
  Speeds speeds;
  const Job job = Training(1000);
  EXPECT_TRUE(speeds.IsDue(job, 100, kNow));
  speeds.Observe(job, 100, kNow);
  EXPECT_FALSE(speeds.IsDue(job, 100, kNow + absl::Seconds(9)));
  EXPECT_TRUE(speeds.IsDue(Training(1000, Tuning::kFull), 100, kNow + absl::Seconds(9)));
  EXPECT_TRUE(speeds.IsDue(job, 100, kNow + absl::Seconds(10)));
  EXPECT_TRUE(speeds.IsDue(job, 100, kNow - absl::Hours(1)));
  EXPECT_FALSE(speeds.IsDue(Job{.base_model = "base"}, 100, kNow)) << "an export";
}

TEST(SpeedsTest, ASpeedThatNoMachineHasMakesNoJobLastForEver) {
  Speeds speeds;
  const Job job = Training(1000);
  for (const double none : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    EXPECT_FALSE(speeds.IsDue(job, none, kNow)) << none;
  speeds.Observe(job, 1e-300, kNow);
  EXPECT_EQ(ExpectedDuration(job, speeds), absl::Hours(24 * 365));
}

TEST_F(StateTest, AJobThatWasSubmittedBeforeAnyOfItsKindRanFollowsTheirSpeed) {
  Connect("n1", 1);
  ASSERT_TRUE(Submit("runs", Training(1000)).ok());
  ASSERT_TRUE(Submit("waits", Training(6000)).ok());
  ASSERT_TRUE(Submit("other", Training(6000, Tuning::kFull)).ok());
  const auto expected = [&](const std::string& id) { return ExpectedDuration(*state_.Find(id), state_.speeds()); };
  EXPECT_EQ(expected("waits"), kUnknownDuration);
  ReportProgress("runs", 1, 1, /*tokens_per_second=*/100, absl::Minutes(1));
  EXPECT_EQ(expected("waits"), absl::Seconds(60));
  EXPECT_EQ(expected("other"), kUnknownDuration);
  for (int i = 2; i < 100; ++i) {
    Pass(absl::Seconds(10), {"n1"});
    ReportProgress("runs", 1, i, /*tokens_per_second=*/200, absl::Minutes(1));
  }
  EXPECT_LT(absl::AbsDuration(expected("waits") - absl::Seconds(30)), absl::Seconds(1));
}

TEST_F(StateTest, AJobFitsBeforeAReservationOnceItsSpeedIsKnownAndIsChargedForThat) {
  Connect("n1", 2);
  ASSERT_TRUE(Submit("runs", Training(100'000)).ok());
  Pass(absl::Minutes(1), {"n1"});
  ASSERT_TRUE(Submit("wide", Training(1000, Tuning::kLora, 1, 2)).ok());
  ASSERT_TRUE(Submit("small", Training(6000)).ok());
  EXPECT_EQ(state_.WhyItWaits(job("small"), now_).code, luthier::Wait::kReserved) << "an hour is too long";
  ReportProgress("runs", 1, 1, /*tokens_per_second=*/100, absl::Minutes(20));
  EXPECT_EQ(job("small").state, JobState::kStarting);
  EXPECT_EQ(job("small").charged, absl::Seconds(60));
  EXPECT_EQ(job("runs").charged, kUnknownDuration);
  EXPECT_NEAR(state_.TenantOf("default").UsageAt(now_), 3600 + 60, 5);
}

TEST_F(StateTest, ATenantIsChargedForWhatItsJobsRanThoughTheirSpeedBecameKnownMeanwhile) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", Training(6000)).ok());
  ReportProgress("j", 1, 1, /*tokens_per_second=*/100, absl::Minutes(1));
  Pass(absl::Minutes(5), {"n1"});
  Report("j", 1, 2, JobInput::kAttemptFailed);
  EXPECT_NEAR(state_.TenantOf("default").UsageAt(now_), 300, 10);
}

TEST_F(StateTest, ASpeedIsWrittenWhenItIsFirstKnownAndWhenItHasChangedNotably) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", Training(6000)).ok());
  const auto report = [&](int64_t sequence, double tokens_per_second) {
    Pass(absl::Seconds(10), {"n1"});
    ReportProgress("j", 1, sequence, tokens_per_second, absl::Minutes(1));
  };
  for (int i = 1; i <= 5; ++i) report(i, 100 + i);
  ASSERT_EQ(recorded_speeds_.size(), 1u);
  EXPECT_EQ(recorded_speeds_[0].base_model, "base");
  EXPECT_EQ(recorded_speeds_[0].tokens_per_second, 101);
  report(6, 1000);
  EXPECT_EQ(recorded_speeds_.size(), 2u);
  report(6, 5000);  // sent again: it counts once
  EXPECT_EQ(recorded_speeds_.size(), 2u);
}

TEST_F(StateTest, ASpeedThatCouldNotBeWrittenIsNotKnown) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", Training(6000)).ok());
  luthier::Report progress{.attempt = {"j", 1}, .sequence = 1, .tokens_per_second = 100};
  ASSERT_TRUE(state_.Record(progress, now_));
  EXPECT_EQ(state_.TakeWrites().speeds.size(), 1u);
  state_.Rollback();
  EXPECT_FALSE(state_.speeds().Of(job("j")).has_value());
  ASSERT_TRUE(state_.Record(progress, now_));
  EndBatch();
  EXPECT_EQ(recorded_speeds_.size(), 1u) << "the report comes again, and is as new";
}

TEST_F(StateTest, TheSpeedOfABaseModelIsNotThatOfAnotherOneWithItsName) {
  Connect("n1");
  ASSERT_TRUE(Submit("j", Training(6000)).ok());
  ReportProgress("j", 1, 1, /*tokens_per_second=*/100, absl::Minutes(1));
  Report("j", 1, 2, JobInput::kAttemptFailed);
  ASSERT_TRUE(state_.DeleteResource(ResourceKind::kBaseModel, "base").ok());
  EXPECT_FALSE(state_.speeds().Of(job("j")).has_value());
  state_.Rollback();
  EXPECT_TRUE(state_.speeds().Of(job("j")).has_value());
}

}  // namespace
}  // namespace luthier
