// Which waiting jobs start, what stops for them, and why the others wait.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/forecast.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(StateTest, SaysWhyAJobWaits) {
  ASSERT_TRUE(Submit("first").ok());
  EXPECT_THAT(state_.WhyItWaits(job("first"), now_).message, HasSubstr("no node is connected"));
  Connect("n1");
  ASSERT_TRUE(Submit("second").ok());
  EXPECT_THAT(state_.WhyItWaits(job("second"), now_).message, HasSubstr("busy"));
  EXPECT_EQ(state_.WhyItWaits(job("first"), now_).code, luthier::Wait::kNone);
  ASSERT_TRUE(Submit("wide", {.devices = 8}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("wide"), now_).code, luthier::Wait::kTooLarge);
}

TEST_F(StateTest, SaysWhichMemoryOrLabelNoNodeHas) {
  state_.Register({.id = "n1", .memory = {24'000'000'000}, .labels = {{"gpu", "a100"}}}, {}, now_);
  ASSERT_TRUE(Submit("large", {.cpu_memory_bytes = 40'500'000'000}).ok());
  EXPECT_EQ(
      state_.WhyItWaits(job("large"), now_).message,
      "the job needs 40.5 GB on a device and the largest that a connected node has is one of 24.0 GB; connect a node "
      "with more");
  state_.Register({.id = "n2", .gpus = true, .memory = {80'000'000'000}, .main_memory = 32'000'000'000}, {}, now_);
  ASSERT_TRUE(Submit("export", {.cpu_memory_bytes = 40'500'000'000}).ok());
  EXPECT_EQ(
      state_.WhyItWaits(job("export"), now_).message,
      "the job needs 40.5 GB on a device and the largest that a connected node has is one of 32.0 GB; connect a node "
      "with more")
      << "it computes on CPUs, whatever the GPUs have";
  ASSERT_TRUE(Submit("picky", {.node_selector = "gpu=h100"}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("picky"), now_).code, luthier::Wait::kNoMatch);
  EXPECT_THAT(state_.WhyItWaits(job("picky"), now_).message, HasSubstr("has the labels gpu=h100"));
}

TEST_F(StateTest, SaysThatPartsOfAGpuAreNoDevicesOfOneJob) {
  state_.Register({.id = "n1", .devices = 4, .shares = 2, .gpus = true}, {}, now_);
  ASSERT_TRUE(Submit("pair", {.devices = 2}).ok());
  EXPECT_THAT(state_.WhyItWaits(job("pair"), now_).message,
              HasSubstr("the job asks for 2 devices and the largest connected node has 1"));
}

TEST_F(StateTest, SaysWhichDrainedNodesWouldTakeAJob) {
  for (const char* id : {"large-1", "large-2", "large-3", "large-4", "large-5"}) Connect(id, 2);
  Connect("small");
  for (const char* id : {"large-1", "large-2", "large-3", "large-4", "large-5", "small"}) {
    ASSERT_TRUE(state_.Drain(id, /*requeue=*/false, now_).ok());
  }
  EndBatch();
  ASSERT_TRUE(Submit("next", {.devices = 2}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("next"), now_).code, luthier::Wait::kDrained);
  EXPECT_EQ(state_.WhyItWaits(job("next"), now_).message,
            "nodes large-1, large-2, large-3 and 2 more would take it, but are drained; `luthier node undrain large-1` "
            "gives it work again");
  ASSERT_TRUE(Submit("too-wide", {.devices = 3}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("too-wide"), now_).code, luthier::Wait::kNoNode) << "no undrain would help it";
  EXPECT_THAT(state_.WhyItWaits(job("too-wide"), now_).message, HasSubstr("`luthier node list` says why"));
  ASSERT_TRUE(state_.Undrain("small").ok());
  EndBatch();
  EXPECT_EQ(state_.WhyItWaits(job("next"), now_).code, luthier::Wait::kDrained) << "the other node is too small";
  EXPECT_EQ(state_.WhyItWaits(job("too-wide"), now_).code, luthier::Wait::kTooLarge);
  ASSERT_TRUE(state_.Undrain("large-1").ok());
  EndBatch();
  EXPECT_EQ(job("next").state, JobState::kStarting);
}

TEST_F(StateTest, ANodeWithAnOutdatedAgentKeepsWhatItRunsAndGetsNothingNew) {
  const auto come_back = [&](bool outdated, const std::vector<std::string>& attempts) {
    state_.Register({.id = "n1", .outdated = outdated}, attempts, now_);
    EndBatch();
  };
  Connect("n1");
  for (const char* id : {"a", "b"}) ASSERT_TRUE(Submit(id).ok());
  Report("a", 1, 1, JobInput::kTrainerStarted);
  come_back(/*outdated=*/true, {"jobs/a/attempts/1"});
  EXPECT_EQ(job("a").state, JobState::kRunning);
  EXPECT_TRUE(Report("a", 1, 2, JobInput::kTrainerFinished));
  EXPECT_TRUE(Report("a", 1, 3, JobInput::kArtifactStored));
  EXPECT_EQ(job("b").state, JobState::kQueued);
  EXPECT_EQ(state_.WhyItWaits(job("b"), now_).code, luthier::Wait::kOutdated);
  EXPECT_EQ(state_.WhyItWaits(job("b"), now_).message,
            "node n1 would take it, but only with the server's version of luthier-worker; update it there");
  ASSERT_TRUE(Submit("too-wide", {.devices = 2}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("too-wide"), now_).code, luthier::Wait::kNoNode) << "no update would help it";
  ASSERT_TRUE(state_.Drain("n1", /*requeue=*/false, now_).ok());
  EndBatch();
  EXPECT_EQ(state_.WhyItWaits(job("b"), now_).code, luthier::Wait::kDrained) << "what an operator wanted comes first";
  ASSERT_TRUE(state_.Undrain("n1").ok());
  come_back(/*outdated=*/false, {});
  EXPECT_EQ(job("b").state, JobState::kStarting);
}

TEST_F(StateTest, AnOutdatedAgentIsNotGivenAgainAnOrderThatItLost) {
  Connect("n1");
  ASSERT_TRUE(Submit("a").ok());
  ASSERT_EQ(job("a").state, JobState::kStarting);
  state_.Register({.id = "n1", .outdated = true}, {}, now_);
  EndBatch();
  EXPECT_EQ(job("a").state, JobState::kRecovering);
}

// A reason that was worked out before a node changed must not be told after it.
TEST_F(StateTest, WhatWaitsHearsAtOnceThatANodeTakesNoJobsAnyMore) {
  Connect("n1");
  for (const char* id : {"a", "b"}) ASSERT_TRUE(Submit(id).ok());
  const auto code = [&] { return state_.WhyItWaits(job("b"), now_).code; };
  EXPECT_EQ(code(), luthier::Wait::kBusy);
  ASSERT_TRUE(state_.Drain("n1", /*requeue=*/false, now_).ok());
  EndBatch();
  EXPECT_EQ(code(), luthier::Wait::kDrained);
  EXPECT_EQ(state_.WhyItWaits(job("b"), now_).message,
            "node n1 would take it, but is drained; `luthier node undrain n1` gives it work again");
  ASSERT_TRUE(state_.Undrain("n1").ok());
  EndBatch();
  EXPECT_EQ(code(), luthier::Wait::kBusy);
  state_.Heartbeat("n1", "", {}, /*leaving=*/true, now_);
  EndBatch();
  EXPECT_EQ(code(), luthier::Wait::kNoNode);
  Heartbeat("n1", {});
  EXPECT_EQ(code(), luthier::Wait::kBusy);
  state_.Disconnect("n1");
  EndBatch();
  EXPECT_EQ(code(), luthier::Wait::kNoNode);
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
  for (const char* id : {"b", "c"}) restarted.LoadJob(std::make_unique<Job>(job(id)), now_);
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

TEST_F(StateTest, StartsMoreJobsAtOnceThanOneCycleLooksAt) {
  for (int i = 0; i < 1200; ++i) ASSERT_TRUE(Submit(absl::StrCat("j", i)).ok());
  Connect("n1", 1200);
  Wait(absl::Milliseconds(500));
  Wait(absl::Milliseconds(500));
  EXPECT_EQ(state_.jobs().waiting(), 0);
  EXPECT_EQ(state_.jobs().count(JobState::kStarting), 1200);
}

TEST_F(StateTest, APriorityChangesTheOrderOfWhatWaits) {
  ASSERT_TRUE(Submit("first").ok());
  ASSERT_TRUE(Submit("second").ok());
  ASSERT_TRUE(state_.Update("second", {.priority = 1}, now_).ok());
  Connect("n1");
  EXPECT_EQ(job("first").state, JobState::kQueued);
  EXPECT_EQ(job("second").state, JobState::kStarting);
}

TEST_F(StateTest, AnUrgentJobHasALessUrgentOneStopWhichGoesOnAfterwards) {
  Connect("n1");
  ASSERT_TRUE(Submit("background", {.service_class = ServiceClass::kBackground}).ok());
  Report("background", 1, 1, JobInput::kTrainerStarted);
  ASSERT_TRUE(Submit("urgent").ok());
  EXPECT_EQ(state_.WhyItWaits(job("urgent"), now_).code, luthier::Wait::kBusy) << "what has just begun gets somewhere";
  Pass(absl::Minutes(10) - kHeartbeatInterval, {"n1"});
  EXPECT_EQ(job("background").state, JobState::kRunning);
  Pass(kHeartbeatInterval, {"n1"});
  EXPECT_EQ(job("background").state, JobState::kPreempting);
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kStop);
  EXPECT_EQ(effects_[0].attempt, "jobs/background/attempts/1");
  EXPECT_EQ(state_.WhyItWaits(job("urgent"), now_).code, luthier::Wait::kMakingRoom);
  Report("background", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("urgent").state, JobState::kStarting);
  EXPECT_EQ(job("background").state, JobState::kQueued);
  Report("urgent", 1, 1, JobInput::kAttemptFailed);
  EXPECT_EQ(job("background").attempt, 2);
  EXPECT_EQ(job("background").preemptions, 1);
  EXPECT_EQ(job("background").lost_attempts, 0);
}

TEST_F(StateTest, NothingMoreStopsWhileRoomIsBeingMade) {
  Connect("n1", 2);
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(Submit(id, {.service_class = ServiceClass::kBackground}).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
  }
  Pass(absl::Minutes(10), {"n1"});
  ASSERT_TRUE(Submit("urgent").ok());
  EXPECT_EQ(job("b").state, JobState::kPreempting);
  Pass(absl::Minutes(1), {"n1"});  // it writes a large checkpoint
  ASSERT_TRUE(Submit("more-background", {.service_class = ServiceClass::kBackground}).ok());
  EXPECT_EQ(job("a").state, JobState::kRunning);
  Report("b", 1, 2, JobInput::kAttemptLost);  // or dies over it
  EXPECT_EQ(job("b").lost_attempts, 0);
  EXPECT_EQ(job("urgent").state, JobState::kStarting);
  EXPECT_EQ(job("a").state, JobState::kRunning);
}

TEST_F(StateTest, ATenantTakesBackWhatIsGuaranteedToItOnceItWantsIt) {
  ASSERT_TRUE(state_.SetTenant({.id = "owner", .guaranteed_devices = 1}, now_).ok());
  Connect("n1", 2);
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(Submit(id).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
  }
  ASSERT_TRUE(Submit("own", {.tenant = "owner", .service_class = ServiceClass::kBackground}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("own"), now_).code, luthier::Wait::kBusy) << "what has just begun gets somewhere";
  Pass(absl::Minutes(10) - kHeartbeatInterval, {"n1"});
  EXPECT_EQ(job("b").state, JobState::kRunning);
  Pass(kHeartbeatInterval, {"n1"});
  EXPECT_EQ(job("a").state, JobState::kRunning);
  EXPECT_EQ(job("b").state, JobState::kPreempting);
  EXPECT_THAT(events_.back().message, HasSubstr("which a tenant wants back to which they are guaranteed"));
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].attempt, "jobs/b/attempts/1");
  EXPECT_EQ(state_.WhyItWaits(job("own"), now_).code, luthier::Wait::kMakingRoom);

  ASSERT_TRUE(Submit("of-another", {.tenant = "third"}).ok());
  Pass(absl::Minutes(1), {"n1"});  // b writes a large checkpoint
  EXPECT_EQ(job("a").state, JobState::kRunning) << "nothing more stops meanwhile";
  Report("b", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("own").state, JobState::kStarting);
  EXPECT_EQ(job("b").state, JobState::kQueued);
  EXPECT_EQ(job("b").lost_attempts, 0);

  ASSERT_TRUE(Submit("beyond", {.tenant = "owner", .service_class = ServiceClass::kBackground}).ok());
  Pass(absl::Minutes(20), {"n1"});
  EXPECT_EQ(job("own").state, JobState::kStarting) << "nothing stops that is within a guarantee";
  EXPECT_EQ(job("a").state, JobState::kRunning) << "and nothing for what is beyond one";
  Report("own", 1, 1, JobInput::kAttemptFailed);
  EXPECT_EQ(job("beyond").state, JobState::kStarting) << "it is within by now, and comes before what borrows";
}

TEST_F(StateTest, WhatAStoppingAttemptHoldsIsNotKept) {
  ASSERT_TRUE(state_.SetTenant({.id = "owner", .guaranteed_devices = 2}, now_).ok());
  Connect("n1", 2);
  for (const char* id : {"a", "b"}) ASSERT_TRUE(Submit(id, {.tenant = "owner"}).ok());
  ASSERT_TRUE(state_.Cancel("a", now_).ok());
  EndBatch();
  ASSERT_TRUE(Submit("c", {.tenant = "owner"}).ok());
  const TenantView view = state_.TakeSnapshot(now_, 10).tenants.at("owner");
  EXPECT_EQ(view.running_devices, 2);
  EXPECT_EQ(view.kept_devices, 1);
  Report("a", 1, 1, JobInput::kAttemptStopped);
  EXPECT_EQ(job("c").state, JobState::kStarting);
  EXPECT_EQ(state_.TakeSnapshot(now_, 10).tenants.at("owner").kept_devices, 2);
}

// More jobs than a cycle looks at, of which two may run, and one behind them that is of no sweep.
TEST_F(StateTest, ASweepRunsNoMoreJobsAtATimeThanItMayAndHidesNobodyBehindIt) {
  std::vector<Job> jobs(600);
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].id = absl::StrCat("s-", i + 1);
    jobs[i].base_model = "base";
    jobs[i].max_parallel = 2;
  }
  Sweep sweep{.id = "s"};
  ASSERT_TRUE(state_.CreateSweep(sweep, jobs, {}, std::vector<SpecBytes>(jobs.size()), now_).ok());
  ASSERT_TRUE(Submit("other").ok());
  Connect("n1", 8);
  EXPECT_EQ(job("s-1").state, JobState::kStarting);
  EXPECT_EQ(job("s-2").state, JobState::kStarting);
  EXPECT_EQ(job("s-3").state, JobState::kQueued);
  EXPECT_EQ(job("other").state, JobState::kStarting);
  EXPECT_EQ(state_.WhyItWaits(job("s-3"), now_).code, luthier::Wait::kSweepLimit);
  EXPECT_THAT(state_.WhyItWaits(job("s-600"), now_).message, HasSubstr("its sweep runs 2 jobs at a time"));
  Report("s-1", 1, 1, JobInput::kAttemptFailed);
  EXPECT_EQ(job("s-3").state, JobState::kStarting);
  EXPECT_EQ(job("s-4").state, JobState::kQueued);

  State restarted;
  for (const char* id : {"s-2", "s-3", "s-4"}) restarted.LoadJob(std::make_unique<Job>(job(id)), now_);
  state_ = std::move(restarted);
  Connect("n1", 8, {"jobs/s-2/attempts/1", "jobs/s-3/attempts/1"});
  EXPECT_EQ(state_.Find("s-4")->state, JobState::kQueued);
  EXPECT_EQ(state_.WhyItWaits(*state_.Find("s-4"), now_).code, luthier::Wait::kSweepLimit);
}

// The sweep runs one job at a time, and has a device for each of them.
TEST_F(StateTest, AJobThatWaitsForOthersOfItsSweepIsExpectedToStartWhenTheyEnd) {
  std::vector<Job> jobs(500);
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].id = absl::StrCat("s-", i + 1);
    jobs[i].base_model = "base";
    jobs[i].estimate = absl::Minutes(30);
    jobs[i].max_parallel = 1;
  }
  Sweep sweep{.id = "s"};
  ASSERT_TRUE(state_.CreateSweep(sweep, jobs, {}, std::vector<SpecBytes>(jobs.size()), now_).ok());
  Connect("n1", 8);
  ASSERT_EQ(job("s-1").state, JobState::kStarting);
  ASSERT_TRUE(Submit("wide", {.devices = 7}).ok());
  ASSERT_TRUE(Submit("other", {.devices = 7}).ok());
  const auto starts_in = [&](const std::string& id) {
    return ForecastOf(job(id).number, state_.TakeSnapshot(now_, 20, /*for_forecast=*/true)).start - now_;
  };
  EXPECT_EQ(state_.TakeSnapshot(now_, 20).waiting[1].at("default").size(), 1u)
      << "what is decided about: the other one";
  EXPECT_EQ(starts_in("s-2"), absl::Minutes(30));
  EXPECT_EQ(starts_in("s-3"), absl::Minutes(60));
  EXPECT_EQ(starts_in("other"), absl::Minutes(60)) << "it comes behind all jobs of the sweep, and is looked at";
  EXPECT_EQ(starts_in("s-400"), absl::InfiniteDuration()) << "it is too far behind";

  ReportProgress("s-1", 1, 1, /*tokens_per_second=*/1, absl::Minutes(5));
  EXPECT_EQ(starts_in("s-2"), absl::Minutes(5));
  ASSERT_TRUE(state_.Drain("n1", /*requeue=*/false, now_).ok());
  Connect("n2", 1);
  EXPECT_EQ(starts_in("s-2"), absl::Minutes(5)) << "also where nothing else is given out";
  ASSERT_TRUE(state_.Cancel("s-1", now_).ok());
  EndBatch();
  EXPECT_EQ(starts_in("s-2"), absl::ZeroDuration()) << "at any moment";
}

}  // namespace
}  // namespace luthier
