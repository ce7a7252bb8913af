// Nodes, their leases and quarantines, and what becomes of attempts that they lose.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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

// Each row: a report behind two that are recorded, and whether it may be.
TEST_F(StateTest, GivesUpAfterTheLastRetry) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= kMaxLostAttempts; ++attempt) {
    ASSERT_EQ(job("j").attempt, attempt);
    Report("j", attempt, 1, JobInput::kAttemptLost);
    ASSERT_EQ(job("j").state, JobState::kRecovering);
    now_ += RetryDelay(attempt);
    state_.Heartbeat("n1", "", {}, false, now_);
    EndBatch();
  }
  Report("j", kMaxLostAttempts + 1, 1, JobInput::kAttemptLost);
  EXPECT_EQ(job("j").state, JobState::kFailed);
}

// Each row: on which node an attempt ends after the other, how, and what becomes of the job after the last one.
TEST_F(StateTest, GivesUpAJobWhoseTrainerDiesOnThreeNodes) {
  constexpr bool kCrashes = true;
  constexpr JobState kFailed = JobState::kFailed, kGoesOn = JobState::kRecovering;
  struct End {
    std::string node;
    bool crashed = kCrashes;
  };
  struct Row {
    std::string what;
    std::vector<End> ends;
    JobState then;
  };
  const std::vector<Row> rows = {
      {"three nodes", {{"n1"}, {"n2"}, {"n3"}}, kFailed},
      {"two nodes", {{"n1"}, {"n2"}}, kGoesOn},
      {"two nodes again and again", {{"n1"}, {"n1"}, {"n2"}, {"n2"}, {"n1"}}, kGoesOn},
      {"the last retry on two nodes", {{"n1"}, {"n1"}, {"n2"}, {"n2"}, {"n1"}, {"n1"}}, kFailed},
      {"three nodes among more attempts", {{"n1"}, {"n1"}, {"n2"}, {"n2"}, {"n3"}}, kFailed},
      {"nodes that died, and it with them", {{"n1", false}, {"n2", false}, {"n3", false}}, kGoesOn},
      {"one node died", {{"n1"}, {"n2", false}, {"n3"}}, kGoesOn},
  };
  const std::vector<std::string> nodes = {"n1", "n2", "n3"};
  for (const std::string& node : nodes) Connect(node);
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    const std::string id = absl::StrReplaceAll(row.what, {{" ", "-"}, {",", ""}});
    for (size_t i = 0; i < row.ends.size(); ++i) {
      for (const std::string& node : nodes) {
        ASSERT_TRUE(node == row.ends[i].node ? state_.Undrain(node).ok() : state_.Drain(node, false, now_).ok());
      }
      if (i == 0) {
        ASSERT_TRUE(Submit(id).ok());
      } else {
        Pass(RetryDelay(static_cast<int>(i)), nodes);
      }
      ASSERT_EQ(job(id).attempt, static_cast<int>(i) + 1);
      ASSERT_EQ(job(id).node, row.ends[i].node);
      Report(id, job(id).attempt, 1, JobInput::kAttemptLost, row.ends[i].crashed);
    }
    EXPECT_EQ(job(id).state, row.then);
    if (row.then != kFailed) {
      ASSERT_TRUE(state_.Cancel(id, now_).ok());
    }
    EndBatch();
  }
}

TEST_F(StateTest, SaysOnWhichNodesATrainerDiedAndForgetsThemWhenAUserTriesAgain) {
  for (const char* node : {"n1", "n2", "n3"}) {
    Connect(node);
    if (node == std::string("n1")) {
      ASSERT_TRUE(Submit("j").ok());
    }
    ASSERT_EQ(job("j").node, node);
    Report("j", job("j").attempt, 1, JobInput::kAttemptLost, /*crashed=*/true);
    state_.Disconnect(node);
    Pass(kLease, {});
  }
  EXPECT_EQ(job("j").state, JobState::kFailed);
  EXPECT_THAT(events_.back().message, HasSubstr("its trainer died on 3 nodes, n1, n2 and n3, giving up"));
  EXPECT_THAT(job("j").crashed_on, ElementsAre("n1", "n2", "n3"));
  state_.Borrow(job("j"));
  ASSERT_TRUE(state_.Retry("j", now_).ok());
  EndBatch();
  EXPECT_THAT(job("j").crashed_on, IsEmpty());
}

// A trainer that a preemption, a drain or a pause ends says nothing of its job, however it ends.
TEST_F(StateTest, ATrainerThatDiesWhileItStopsHasNotCrashed) {
  for (const char* node : {"n1", "n2", "n3", "n4"}) Connect(node);
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= 3; ++attempt) {
    const std::string node = job("j").node;
    Report("j", attempt, 1, JobInput::kTrainerStarted);
    ASSERT_TRUE(state_.Drain(node, /*requeue=*/true, now_).ok());
    EndBatch();
    Report("j", attempt, 2, JobInput::kAttemptLost, /*crashed=*/true);
    ASSERT_NE(job("j").node, node);
  }
  EXPECT_EQ(job("j").state, JobState::kStarting);
  EXPECT_THAT(job("j").crashed_on, IsEmpty());
}

TEST_F(StateTest, KeepsTheNewestStoredCheckpointOfAJobUntilItIsOver) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("j").ok());
  const auto store = [&](int attempt, int64_t sequence, int64_t step) {
    luthier::Report report{.attempt = {"j", attempt}, .sequence = sequence};
    report.checkpoint = {step, absl::StrCat("files of ", step)};
    const bool current = state_.Record(std::move(report), now_);
    EndBatch();
    return current;
  };
  EXPECT_TRUE(store(1, 1, 10));
  EXPECT_TRUE(store(1, 2, 20));
  EXPECT_EQ(job("j").stored_step, 20);
  ASSERT_EQ(checkpoints_.size(), 2u);
  EXPECT_EQ(checkpoints_[1].attempt, 1);
  EXPECT_EQ(checkpoints_[1].payload, "files of 20");
  EXPECT_TRUE(store(1, 2, 20)) << "sent again";
  EXPECT_EQ(checkpoints_.size(), 2u);

  const std::string node = job("j").node;
  ASSERT_TRUE(state_.Drain(node, /*requeue=*/true, now_).ok());
  EndBatch();
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_TRUE(effects_[0].job_goes_on);
  EXPECT_TRUE(store(1, 3, 25)) << "while it stops";
  Report("j", 1, 4, JobInput::kAttemptStopped);
  ASSERT_NE(job("j").node, node);
  EXPECT_FALSE(store(1, 5, 30)) << "it is not current any more";
  EXPECT_EQ(job("j").stored_step, 25);

  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_FALSE(effects_[0].job_goes_on);
  Report("j", 2, 1, JobInput::kAttemptStopped);
  EXPECT_EQ(job("j").stored_step, 0);
  ASSERT_EQ(checkpoints_.size(), 4u);
  EXPECT_FALSE(checkpoints_[3].payload.has_value());
}

TEST_F(StateTest, TakesAnAttemptFromANodeOnlyAfterItsLease) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("j").ok());
  const std::string node = job("j").node;
  const std::string other = node == "n1" ? "n2" : "n1";
  state_.Disconnect(node);
  Wait(kLease - absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 1);
  state_.Heartbeat(other, "", {}, false, now_);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").node, other);
}

// It hung, and the pings of its connection gave up when its lease was almost over.
TEST_F(StateTest, ALeaseRunsFromWhenItsAgentWasHeardLastWheneverItsSessionEnds) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("j").ok());
  const std::string node = job("j").node, other = node == "n1" ? "n2" : "n1";
  Pass(kHeartbeatInterval, {"n1", "n2"});
  Pass(kLease - absl::Seconds(1), {other});
  state_.Disconnect(node);
  EXPECT_EQ(job("j").attempt, 1);
  Pass(absl::Seconds(1), {other});
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Pass(RetryDelay(1), {other});
  EXPECT_EQ(job("j").node, other);
}

TEST_F(StateTest, AdoptsARunningAttemptAfterARestartOfTheServer) {
  state_.LoadJob(
      std::make_unique<Job>(
          Job{.number = 1, .id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7}),
      now_);
  Connect("n1", 0, {"jobs/j/attempts/3", "jobs/j/attempts/2"});
  EXPECT_THAT(stale_, ElementsAre("jobs/j/attempts/2"));
  EXPECT_EQ(state_.Find("j")->state, JobState::kRunning);
  EXPECT_THAT(effects_, IsEmpty());
}

TEST_F(StateTest, RecoversAnAttemptThatItsAgentNoLongerHolds) {
  state_.LoadJob(
      std::make_unique<Job>(
          Job{.number = 1, .id = "j", .state = JobState::kRunning, .attempt = 3, .node = "n1", .last_report = 7}),
      now_);
  Connect("n1");
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 4);
}

TEST_F(StateTest, SendsAStartAgainThatMayNeverHaveArrived) {
  state_.LoadJob(
      std::make_unique<Job>(Job{.number = 1, .id = "j", .state = JobState::kStarting, .attempt = 1, .node = "n1"}),
      now_);
  Connect("n1");
  EXPECT_EQ(state_.Find("j")->attempt, 1);
  EXPECT_EQ(effects_.size(), 1u);
}

// Its node is heard of, so nothing else would end an attempt of which the agent does not know.
TEST_F(StateTest, AnOrderThatCouldNotBeSentIsTriedAgainAndNotForEver) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= kMaxLostAttempts; ++attempt) {
    for (int time = 0; time < 2; ++time) {
      state_.LoseOrder({"j", attempt}, "n1", "its order could not be read", now_);
      EndBatch();
    }
    EXPECT_EQ(job("j").state, JobState::kRecovering);
    EXPECT_EQ(job("j").lost_attempts, attempt);
    Pass(RetryDelay(attempt), {"n1"});
    ASSERT_EQ(job("j").state, JobState::kStarting);
  }
  state_.LoseOrder({"j", kMaxLostAttempts + 1}, "n1", "its order could not be read", now_);
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kFailed);
  EXPECT_THAT(events_.back().message, HasSubstr("its order could not be read"));
}

TEST_F(StateTest, AnOrderThatCouldNotBeSentIsNoFaultOfItsNode) {
  Connect("n1");
  for (size_t i = 0; i < kQuarantineJobs; ++i) {
    const std::string id = absl::StrCat("j", i);
    ASSERT_TRUE(Submit(id).ok());
    state_.LoseOrder({id, 1}, "n1", "its order could not be read", now_);
    ASSERT_TRUE(state_.Cancel(id, now_).ok());
    Pass(kIncident, {"n1"});
    EXPECT_THAT(job(id).lost_on, IsEmpty());
  }
  EXPECT_FALSE(IsQuarantined("n1"));
}

// A node comes back after its lease, and the trainer of the attempt that it lost is still there.
TEST_F(StateTest, WhatAStaleAttemptUsesIsGivenToNobodyUntilItsProcessHasEnded) {
  Connect("n1", 2);
  ASSERT_TRUE(Submit("lost").ok());
  Report("lost", 1, 1, JobInput::kTrainerStarted);
  state_.Disconnect("n1");
  Wait(kLease);
  ASSERT_EQ(job("lost").state, JobState::kRecovering);
  Wait(RetryDelay(1));
  ASSERT_TRUE(Submit("next").ok());
  Connect("n1", 2, {"jobs/lost/attempts/1"}, {{"jobs/lost/attempts/1", {0}}});
  EXPECT_THAT(stale_, ElementsAre("jobs/lost/attempts/1"));
  EXPECT_THAT(job("lost").held, ElementsAre(1));
  EXPECT_EQ(job("next").state, JobState::kQueued);
  EXPECT_EQ(state_.WhyItWaits(job("next"), now_).code, luthier::Wait::kBusy);
  Heartbeat("n1", {{"jobs/lost/attempts/1", {0}}, {"jobs/lost/attempts/2", {1}}});
  EXPECT_EQ(job("next").state, JobState::kQueued);
  Heartbeat("n1", {{"jobs/lost/attempts/2", {1}}});
  EXPECT_THAT(job("next").held, ElementsAre(0));
}

TEST_F(StateTest, AServerThatRestartedDoesNotGiveAwayWhatAStaleAttemptUses) {
  Connect("n1", 1, {"jobs/gone/attempts/1"}, {{"jobs/gone/attempts/1", {0}}});
  ASSERT_TRUE(Submit("j").ok());
  EXPECT_EQ(job("j").state, JobState::kQueued);
  Connect("n1", 1);  // its agent was restarted, and has nothing left
  EXPECT_EQ(job("j").state, JobState::kStarting);
}

TEST_F(StateTest, TheReportOfItsEndFreesWhatAnAttemptUsesBeforeTheNextHeartbeat) {
  Connect("n1", 1);
  for (const JobInput end : {JobInput::kAttemptFailed, JobInput::kAttemptStopped, JobInput::kArtifactStored}) {
    const std::string id = absl::StrCat("j", static_cast<int>(end)), next = "after-" + id;
    ASSERT_TRUE(Submit(id).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Heartbeat("n1", {{absl::StrCat("jobs/", id, "/attempts/1"), {0}}});
    ASSERT_TRUE(Submit(next).ok());
    if (end == JobInput::kArtifactStored) Report(id, 1, 2, JobInput::kTrainerFinished);
    if (end == JobInput::kAttemptStopped) {
      ASSERT_TRUE(state_.Cancel(id, now_).ok());
    }
    Report(id, 1, 3, end);
    EXPECT_EQ(job(next).state, JobState::kStarting);
    Report(next, 1, 1, JobInput::kAttemptFailed);
  }
}

TEST_F(StateTest, MakesAnAgentRegisterAnewWhoseLeaseRanOutInAnOpenSession) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Wait(kLease);
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  state_.Heartbeat("n1", "", {}, false, now_);  // the agent was stopped for a while and goes on
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
    state_.Heartbeat("n1", "", {}, true, now_);
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

TEST_F(StateTest, ADrainedNodeGetsNothingAndGivesBackWhatItHas) {
  Connect("n1");
  Connect("n2");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  const std::string node = job("j").node, other = node == "n1" ? "n2" : "n1";
  ASSERT_TRUE(state_.Drain(node, /*requeue=*/true, now_).ok());
  EndBatch();
  EXPECT_EQ(job("j").state, JobState::kPreempting);
  ASSERT_EQ(effects_.size(), 1u);
  EXPECT_EQ(effects_[0].kind, Effect::Kind::kStop);
  Report("j", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("j").node, other);
  EXPECT_EQ(job("j").attempt, 2);
  EXPECT_EQ(job("j").preemptions, 1);
  EXPECT_EQ(job("j").lost_attempts, 0);
  ASSERT_TRUE(Submit("next").ok());
  EXPECT_EQ(job("next").state, JobState::kQueued);
  Connect(node);  // also when it registers anew
  EXPECT_EQ(job("next").state, JobState::kQueued);
  ASSERT_TRUE(state_.Undrain(node).ok());
  EndBatch();
  EXPECT_EQ(job("next").node, node);
  EXPECT_TRUE(absl::IsNotFound(state_.Drain("nobody", false, now_)));
}

TEST_F(StateTest, QuarantinesANodeOnWhichSeveralJobsDie) {
  constexpr JobInput kDies = JobInput::kAttemptLost, kSaysWhy = JobInput::kAttemptFailed,
                     kGetsThrough = JobInput::kTrainerFinished;
  struct Row {
    std::string what;
    absl::Duration between;
    std::vector<std::pair<std::string, JobInput>> ends;
    bool quarantined;
  };
  const std::vector<Row> rows = {
      {"three jobs", absl::Seconds(6), {{"a", kDies}, {"b", kDies}, {"c", kDies}}, true},
      {"two jobs", absl::Seconds(6), {{"a", kDies}, {"b", kDies}}, false},
      {"together, with their agent", absl::Seconds(1), {{"a", kDies}, {"b", kDies}, {"c", kDies}}, false},
      {"in an hour", absl::Minutes(20), {{"a", kDies}, {"b", kDies}, {"c", kDies}}, false},
      {"one got through", absl::Seconds(6), {{"a", kDies}, {"b", kDies}, {"x", kGetsThrough}, {"c", kDies}}, false},
      {"their own fault", absl::Seconds(6), {{"a", kSaysWhy}, {"b", kSaysWhy}, {"c", kSaysWhy}}, false},
  };
  for (size_t row = 0; row < rows.size(); ++row) {
    SCOPED_TRACE(rows[row].what);
    const std::string node = absl::StrCat("n", row);
    state_.Disconnect(absl::StrCat("n", row - 1));
    Pass(kLease, {});
    Connect(node);
    for (const auto& [id, end] : rows[row].ends) {
      Pass(rows[row].between, {node});
      RunOne(absl::StrCat(id, row), node, end);
    }
    EXPECT_EQ(IsQuarantined(node), rows[row].quarantined);
  }
}

TEST_F(StateTest, TheSameJobDyingAgainAndAgainQuarantinesNothing) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  for (int attempt = 1; attempt <= kMaxLostAttempts; ++attempt) {
    Report("j", attempt, 1, JobInput::kAttemptLost);
    Pass(RetryDelay(attempt), {"n1"});
  }
  EXPECT_FALSE(IsQuarantined("n1"));
}

// What fails by its own fault says nothing of its node.
TEST_F(StateTest, JobsThatFailQuarantineNothing) {
  Connect("n1");
  for (const char* id : {"a", "b", "c"}) {
    ASSERT_TRUE(Submit(id).ok());
    Pass(kIncident, {"n1"});
    ASSERT_TRUE(Report(id, 1, 1, JobInput::kAttemptFailed));
  }
  EXPECT_FALSE(IsQuarantined("n1"));
}

TEST_F(StateTest, AQuarantinedNodeGetsNothingUntilItEndsOrIsEnded) {
  Connect("n1");
  for (const char* id : {"a", "b", "c"}) {
    RunOne(id, "n1", JobInput::kAttemptLost);
    Pass(kIncident, {"n1"});
  }
  ASSERT_TRUE(Submit("d").ok());
  EXPECT_EQ(job("d").state, JobState::kQueued);
  EXPECT_EQ(state_.WhyItWaits(job("d"), now_).code, luthier::Wait::kQuarantined);
  EXPECT_THAT(state_.WhyItWaits(job("d"), now_).message, HasSubstr("node n1 is quarantined for another 595 s"));
  ASSERT_TRUE(Submit("wide", {.devices = 2}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("wide"), now_).code, luthier::Wait::kNoNode);
  Connect("n1");  // an agent that was started again says nothing about its machine
  state_.ClockJumped(absl::Hours(1));
  now_ += absl::Hours(1);
  EndBatch();
  EXPECT_TRUE(IsQuarantined("n1"));
  Pass(kQuarantine - kIncident, {"n1"});
  EXPECT_EQ(job("d").state, JobState::kStarting);
  Report("d", 1, 1, JobInput::kAttemptLost);
  EXPECT_TRUE(IsQuarantined("n1")) << "it was tried once more, and failed";
  EXPECT_EQ(job("d").state, JobState::kRecovering);
  ASSERT_TRUE(state_.Undrain("n1").ok());
  Pass(RetryDelay(1), {"n1"});
  EXPECT_EQ(job("d").attempt, 2);
  Report("d", 2, 1, JobInput::kAttemptLost);
  EXPECT_FALSE(IsQuarantined("n1")) << "what was before is forgiven";
}

TEST_F(StateTest, AQuarantineThatCouldNotBeWrittenBeginsWhenItsReportComesAgain) {
  Connect("n1");
  for (const char* id : {"a", "b"}) {
    RunOne(id, "n1", JobInput::kAttemptLost);
    Pass(kIncident, {"n1"});
  }
  ASSERT_TRUE(Submit("c").ok());
  const luthier::Report lost{.attempt = {"c", 1}, .sequence = 1, .input = JobInput::kAttemptLost};
  ASSERT_TRUE(state_.Record(lost, now_));
  EXPECT_TRUE(IsQuarantined("n1"));
  state_.Rollback();
  EXPECT_FALSE(IsQuarantined("n1"));
  ASSERT_TRUE(state_.Record(lost, now_));
  EXPECT_TRUE(IsQuarantined("n1"));
  EXPECT_THAT(state_.TakeWrites().quarantines.at(0).jobs, ElementsAre("a", "b", "c"));
}

TEST_F(StateTest, TheEndOfAQuarantineThatCouldNotBeWrittenIsWrittenLater) {
  Connect("n1");
  for (const char* id : {"a", "b", "c"}) {
    RunOne(id, "n1", JobInput::kAttemptLost);
    Pass(kIncident, {"n1"});
  }
  ASSERT_TRUE(IsQuarantined("n1"));
  now_ += kQuarantine;
  state_.Tick(now_);
  EXPECT_FALSE(IsQuarantined("n1"));
  state_.Rollback();
  now_ += absl::Seconds(1);
  state_.Tick(now_);
  EXPECT_FALSE(IsQuarantined("n1"));
  const Writes writes = state_.TakeWrites();
  ASSERT_EQ(writes.quarantines.size(), 1u);
  EXPECT_EQ(writes.quarantines[0].end, absl::InfinitePast());
}

TEST_F(StateTest, AtMostHalfOfTheNodesAreQuarantined) {
  for (const char* node : {"n1", "n2", "n3"}) Connect(node);
  for (const char* node : {"n1", "n2"}) {
    for (const char* other : {"n1", "n2", "n3"}) {
      if (other == std::string(node)) continue;
      ASSERT_TRUE(state_.Drain(other, /*requeue=*/false, now_).ok());
    }
    for (const char* id : {"a", "b", "c"}) {
      RunOne(absl::StrCat(id, "-on-", node), node, JobInput::kAttemptLost);
      Pass(kIncident, {"n1", "n2", "n3"});
    }
    EXPECT_EQ(IsQuarantined(node), node == std::string("n1"));
    for (const char* other : {"n2", "n3"}) ASSERT_TRUE(state_.Undrain(other).ok());
  }
}

TEST(RetryDelayTest, StartsFastAndGrowsToTenMinutes) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(10));
  EXPECT_EQ(RetryDelay(100), absl::Minutes(10));
}

TEST(RetryDelayTest, IsAnotherForEachJobAndAttemptButNeverLongerNorMuchShorter) {
  std::set<absl::Duration> delays;
  for (int number = 1; number <= 100; ++number) {
    for (const int lost : {1, 2, 5, 100}) {
      const Job job{.number = number, .attempt = lost, .lost_attempts = lost};
      const absl::Duration delay = RetryDelayOf(job);
      EXPECT_LE(delay, RetryDelay(lost));
      EXPECT_GE(delay, RetryDelay(lost) * 0.75);
      EXPECT_EQ(delay, RetryDelayOf(job)) << "a run can be repeated";
      delays.insert(delay);
    }
  }
  EXPECT_EQ(delays.size(), 400u);
}

}  // namespace
}  // namespace luthier
