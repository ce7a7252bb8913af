#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/core/reason.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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
  EXPECT_EQ(state_.WhyItWaits(job("large"), now_).message,
            "the job needs 40.5 GB on a device and no connected node has that; the largest device has 24.0 GB");
  ASSERT_TRUE(Submit("picky", {.node_selector = "gpu=h100"}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("picky"), now_).code, luthier::Wait::kNoMatch);
  EXPECT_THAT(state_.WhyItWaits(job("picky"), now_).message, HasSubstr("has the labels gpu=h100"));
}

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
    state_.Disconnect(node, now_);
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
  state_.Disconnect(node, now_);
  Wait(kLease - absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 1);
  state_.Heartbeat(other, "", {}, false, now_);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").state, JobState::kRecovering);
  Wait(absl::Seconds(1));
  EXPECT_EQ(job("j").attempt, 2);
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
  EXPECT_THAT(std::string(state_.Create(job, {}, {.own = "spec"}, now_).message()),
              HasSubstr("datasets/b does not exist"));
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

// A node comes back after its lease, and the trainer of the attempt that it lost is still there.
TEST_F(StateTest, WhatAStaleAttemptUsesIsGivenToNobodyUntilItsProcessHasEnded) {
  Connect("n1", 2);
  ASSERT_TRUE(Submit("lost").ok());
  Report("lost", 1, 1, JobInput::kTrainerStarted);
  state_.Disconnect("n1", now_);
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
  state_.SetTenant({.id = "new-tenant"}, now_);
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

TEST_F(StateTest, StartsMoreJobsAtOnceThanOneCycleLooksAt) {
  for (int i = 0; i < 1200; ++i) ASSERT_TRUE(Submit(absl::StrCat("j", i)).ok());
  Connect("n1", 1200);
  Wait(absl::Milliseconds(500));
  Wait(absl::Milliseconds(500));
  EXPECT_EQ(state_.jobs().waiting(), 0);
  EXPECT_EQ(state_.jobs().count(JobState::kStarting), 1200);
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
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.Resume("j", now_)));
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

TEST_F(StateTest, APriorityChangesTheOrderOfWhatWaits) {
  ASSERT_TRUE(Submit("first").ok());
  ASSERT_TRUE(Submit("second").ok());
  ASSERT_TRUE(state_.Update("second", {.priority = 1}, now_).ok());
  Connect("n1");
  EXPECT_EQ(job("first").state, JobState::kQueued);
  EXPECT_EQ(job("second").state, JobState::kStarting);
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
  state_.SetTenant({.id = "small", .max_queued_jobs = 2}, now_);
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
    state_.Disconnect(absl::StrCat("n", row - 1), now_);
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

TEST_F(StateTest, AFaultOfItsHardwareIsTheNodesEvenIfItEndsTheJob) {
  Connect("n1");
  for (const char* id : {"a", "b", "c"}) {
    ASSERT_TRUE(Submit(id).ok());
    Pass(kIncident, {"n1"});
    luthier::Report report{.attempt = {id, 1}, .sequence = 1, .input = JobInput::kAttemptFailed};
    report.blames_node = true;
    ASSERT_TRUE(state_.Record(report, now_));
    EndBatch();
  }
  EXPECT_TRUE(IsQuarantined("n1"));
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

TEST_F(StateTest, ATenantMayHaveNoMoreWaitingJobsThanItsLimit) {
  state_.SetTenant({.id = "small", .max_devices = 1, .max_queued_jobs = 2}, now_);
  EndBatch();
  Job job;
  job.tenant = "small";
  ASSERT_TRUE(Submit("a", job).ok());
  ASSERT_TRUE(Submit("b", job).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Submit("c", job)));
  ASSERT_TRUE(Submit("of-another").ok());
  Connect("n1", 4);
  EXPECT_EQ(this->job("a").state, JobState::kStarting);
  EXPECT_EQ(state_.WhyItWaits(this->job("b"), now_).code, luthier::Wait::kTenantLimit);
  EXPECT_EQ(this->job("of-another").state, JobState::kStarting);
}

// A job that is charged an hour at its start and runs for six minutes has cost six minutes.
TEST_F(StateTest, ChargesATenantForWhatItUsed) {
  Connect("n1", 2);
  ASSERT_TRUE(Submit("j", {.devices = 2}).ok());
  EXPECT_NEAR(state_.tenants().at(0).usage, 2 * 3600, 1);
  state_.Heartbeat("n1", "", {}, false, now_ += absl::Seconds(20));
  now_ += absl::Seconds(20);
  Report("j", 1, 1, JobInput::kAttemptFailed);
  EXPECT_NEAR(state_.tenants().at(0).UsageAt(now_), 2 * 40, 5);
}

TEST_F(StateTest, AnAliasNeedsAVersion) {
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 1})));
  state_.LoadVersion("intents", 2, "default");
  EXPECT_TRUE(state_.SetAlias({"intents", "production", 2}).ok());
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 3})));
  EXPECT_EQ(state_.TakeWrites().aliases.size(), 1u);
}

TEST(RetryDelayTest, StartsFastAndGrowsToTenMinutes) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(10));
  EXPECT_EQ(RetryDelay(100), absl::Minutes(10));
}

}  // namespace
}  // namespace luthier
