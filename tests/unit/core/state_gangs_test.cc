// Jobs of several nodes: that they get and lose them together, and what each of the nodes says of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kAttempt[] = "jobs/g/attempts/1";

class GangTest : public StateTest {
 protected:
  // A node that others reach.
  void Join(const std::string& id, int gpus = 1, const std::vector<std::string>& attempts = {},
            const Processes& processes = {}) {
    Node node{.id = id, .devices = gpus, .gpus = true, .gang_address = id + ".lan", .gang_port = 29400};
    node.processes = processes;
    stale_ = state_.Register(std::move(node), attempts, now_);
    EndBatch();
  }
  // `g` runs on n1, which leads, and on n2.
  void StartPair(JobState state = JobState::kRunning) {
    Join("n1");
    Join("n2");
    ASSERT_TRUE(Submit("g", {.nodes = 2}).ok());
    ASSERT_EQ(job("g").node, "n1");
    if (state == JobState::kStarting) return;
    Report("g", 1, 1, JobInput::kTrainerStarted);
    if (state == JobState::kPublishing) Report("g", 1, 2, JobInput::kTrainerFinished);
    if (state == JobState::kPausing) {
      ASSERT_TRUE(state_.Pause("g", now_).ok());
    }
    EndBatch();
    ASSERT_EQ(job("g").state, state);
  }
  // As the agent of a node that does not lead numbers it.
  bool ReportFrom(const std::string& node, JobInput input, bool crashed = false, bool lost_peer = false) {
    luthier::Report report;
    report.attempt = {"g", 1};
    report.node = node;
    report.sequence = 1;
    report.input = input;
    report.message = "why";
    report.crashed = crashed;
    report.lost_peer = lost_peer;
    const bool current = state_.Record(std::move(report), now_);
    EndBatch();
    return current;
  }
  std::vector<std::string> Told(Effect::Kind kind) const {
    std::vector<std::string> nodes;
    for (const Effect& effect : effects_) {
      if (effect.kind == kind) nodes.push_back(effect.node);
    }
    return nodes;
  }
  std::vector<std::string> ToldToStart() const { return Told(Effect::Kind::kStart); }
  std::vector<std::string> ToldToStop() const { return Told(Effect::Kind::kStop); }
  // Whether a new job finds room on a node.
  bool HasRoom(const std::string& node) {
    const std::string id = absl::StrCat("probe-", ++probes_);
    EXPECT_TRUE(Submit(id).ok());
    const bool has = job(id).state == JobState::kStarting && job(id).node == node;
    EXPECT_TRUE(state_.Cancel(id, now_).ok());
    EndBatch();
    if (job(id).state == JobState::kCancelling) Report(id, 1, 1, JobInput::kAttemptStopped);
    return has;
  }

  int probes_ = 0;
};

TEST_F(GangTest, StartsOnEachOfItsNodesWithTheDevicesRankAndMeetingPlace) {
  Join("n1", 2);
  Join("n2", 2);
  ASSERT_TRUE(Submit("g", {.devices = 2, .nodes = 2}).ok());
  EXPECT_THAT(job("g").held, ElementsAre(0, 1));
  ASSERT_THAT(job("g").others, SizeIs(1));
  EXPECT_EQ(job("g").others[0].node, "n2");
  EXPECT_EQ(state_.jobs().LoadOf("default").running_devices, 4);
  EXPECT_EQ(events_.back().message, "attempt 1 on nodes n1, n2");
  ASSERT_THAT(ToldToStart(), ElementsAre("n1", "n2"));
  for (int rank = 0; rank < 2; ++rank) {
    const Effect& effect = effects_[static_cast<size_t>(rank)];
    EXPECT_THAT(effect.devices, ElementsAre(0, 1));
    ASSERT_TRUE(effect.gang.has_value());
    EXPECT_EQ(effect.gang->node_rank, rank);
    EXPECT_EQ(effect.gang->meeting, "n1.lan:29400");
    EXPECT_EQ(effect.gang->address, effect.node + ".lan");
  }
}

TEST_F(GangTest, AnOrderThatCouldNotBeSentToOneOfTheNodesEndsTheAttemptOnAll) {
  StartPair(JobState::kStarting);
  state_.LoseOrder({"g", 1}, "n2", "its order could not be read", now_);
  EndBatch();
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_THAT(ToldToStop(), ElementsAre("n2", "n1"));
  EXPECT_FALSE(HasRoom("n2")) << "it may have an order of before, until it says that it has not";
}

TEST_F(GangTest, AnOrderToANodeThatHasStartedAlreadyIsNotMissed) {
  StartPair(JobState::kRunning);
  state_.LoseOrder({"g", 1}, "n2", "its order could not be read", now_);
  EndBatch();
  EXPECT_EQ(job("g").state, JobState::kRunning);
}

TEST_F(GangTest, NoTwoOfANodeMeetAtOnePort) {
  Join("n1", 3);
  Join("n2", 4);
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(Submit(id, {.nodes = 2}).ok());
    ASSERT_EQ(job(id).node, "n1");
    EXPECT_EQ(effects_.at(1).gang->meeting, *id == 'a' ? "n1.lan:29400" : "n1.lan:29401");
  }
  ASSERT_TRUE(Submit("alone").ok());
  EXPECT_FALSE(effects_.at(0).gang.has_value());
}

TEST_F(GangTest, WaitsForAllOfItsNodesAndHoldsNoneMeanwhile) {
  Join("n1");
  for (const char* id : {"g", "h"}) ASSERT_TRUE(Submit(id, {.nodes = 2}).ok());
  EXPECT_THAT(state_.jobs().OnNode("n1"), IsEmpty());
  Join("n2");
  EXPECT_EQ(job("g").state, JobState::kStarting);
  EXPECT_EQ(job("h").state, JobState::kQueued);
  EXPECT_THAT(state_.jobs().OnNode("n2"), ElementsAre("g"));
  Report("g", 1, 1, JobInput::kAttemptFailed);
  EXPECT_EQ(job("h").state, JobState::kQueued) << "n2 has not said yet that nothing of g is left";
  EXPECT_EQ(
      state_.WhyItWaits(job("h"), now_).message,
      "the job asks for 2 nodes at once, and fewer of the 2 connected ones have room; an attempt that is over has "
      "not ended yet on n2");
  ReportFrom("n2", JobInput::kAttemptStopped);
  EXPECT_EQ(job("h").state, JobState::kStarting);
}

TEST_F(GangTest, SaysWhichNodesAreMissing) {
  ASSERT_TRUE(Submit("g", {.devices = 2, .nodes = 3}).ok());
  const auto why = [&] { return state_.WhyItWaits(*state_.Find("g"), now_).message; };
  Connect("n1", 1);
  EXPECT_EQ(why(),
            "the job asks for 2 devices of each node and the largest connected node has 1; connect a larger one, or "
            "clone the "
            "job with fewer resources.devices");
  Connect("n2", 2);
  EXPECT_EQ(
      why(),
      "the job asks for 3 nodes, all with GPUs or all without, and 1 connected one has what it needs of each; connect "
      "more, or clone the job with fewer resources.nodes");
  Connect("n3", 2);
  Connect("n4", 2);
  EXPECT_EQ(why(),
            "the job asks for 3 nodes that reach one another, and of the 3 connected ones that are large enough 0 can "
            "take part; start luthier-worker there with --gang-address, and without --shares");
  for (const char* node : {"n2", "n3", "n4"}) Join(node, 2);
  EXPECT_EQ(job("g").state, JobState::kStarting);
  ASSERT_TRUE(Submit("h", {.nodes = 2}).ok());
  EXPECT_EQ(state_.WhyItWaits(job("h"), now_).message,
            "the job asks for 2 nodes at once, and fewer of the 4 connected ones have room");
}

// n2 is not heard of any more. The trainer on n1 waits for its peers, and holds its device until it has ended.
TEST_F(GangTest, WhenTheLeaseOfOneNodeEndsTheOthersAreToldToStopAndKeepTheirDevicesUntilThen) {
  StartPair();
  for (absl::Duration passed; passed < kLease; passed += kHeartbeatInterval) {
    ASSERT_EQ(job("g").state, JobState::kRunning);
    now_ += kHeartbeatInterval;
    Heartbeat("n1", {{kAttempt, {0}}});
  }
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_THAT(job("g").lost_on, ElementsAre("n2")) << "that is no fault of the node with its checkpoints";
  EXPECT_THAT(job("g").others, IsEmpty());
  EXPECT_THAT(events_.back().message, HasSubstr("node n2 was not heard of"));
  ASSERT_THAT(ToldToStop(), ElementsAre("n1"));
  EXPECT_EQ(effects_[0].attempt, kAttempt);
  EXPECT_FALSE(effects_[0].job_goes_on) << "a checkpoint of it would be refused";
  EXPECT_FALSE(HasRoom("n1"));
  Heartbeat("n1", {{kAttempt, {0}}});
  EXPECT_FALSE(HasRoom("n1"));
  Heartbeat("n1", {});
  EXPECT_TRUE(HasRoom("n1"));
}

TEST_F(GangTest, TheLeaseOfTheLeadingNodeEndsTheOtherPartsToo) {
  StartPair();
  Pass(kLease, {"n2"});
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_THAT(job("g").lost_on, ElementsAre("n1"));
  EXPECT_THAT(ToldToStop(), ElementsAre("n2"));
}

// The heartbeat may have been written before the order to start arrived, and the trainer start after it.
TEST_F(GangTest, AHeartbeatThatWasOnItsWayFreesNothing) {
  StartPair(JobState::kStarting);
  Report("g", 1, 1, JobInput::kAttemptFailed);
  ASSERT_THAT(ToldToStop(), ElementsAre("n2"));
  ASSERT_TRUE(Submit("on-n1").ok());
  ASSERT_EQ(job("on-n1").node, "n1");
  Heartbeat("n2", {});
  EXPECT_FALSE(HasRoom("n2"));
  EXPECT_FALSE(ReportFrom("n2", JobInput::kAttemptStopped)) << "it is not current any more";
  EXPECT_TRUE(HasRoom("n2"));
}

TEST_F(GangTest, WhatItsAgentNeverNamesIsFreeWhenTheOrderToStopMustHaveArrived) {
  StartPair(JobState::kStarting);
  Report("g", 1, 1, JobInput::kAttemptFailed);
  ASSERT_TRUE(Submit("on-n1").ok());
  Pass(kLease - kHeartbeatInterval, {"n1", "n2"});
  EXPECT_FALSE(HasRoom("n2"));
  Pass(kHeartbeatInterval, {"n1", "n2"});
  EXPECT_TRUE(HasRoom("n2"));
}

TEST_F(GangTest, ATrainerThatDiesBlamesItsOwnNode) {
  StartPair();
  EXPECT_TRUE(ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true));
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_EQ(job("g").last_report, 1) << "that counts what the leading node says";
  EXPECT_EQ(job("g").lost_attempts, 1);
  EXPECT_EQ(events_.back().message, "attempt 1 lost: on node n2: why");
  EXPECT_THAT(job("g").lost_on, ElementsAre("n2"));
  EXPECT_THAT(job("g").crashed_on, ElementsAre("n2"));
  EXPECT_THAT(state_.nodes().at("n1").losses, IsEmpty());
  EXPECT_THAT(state_.nodes().at("n2").losses, SizeIs(1));
  EXPECT_THAT(ToldToStop(), ElementsAre("n1"));
  EXPECT_TRUE(HasRoom("n2")) << "there no process is left";
  EXPECT_FALSE(ReportFrom("n1", JobInput::kAttemptLost, /*crashed=*/true)) << "it ended after the other";
  EXPECT_THAT(job("g").crashed_on, ElementsAre("n2"));
  EXPECT_TRUE(HasRoom("n1"));
}

TEST_F(GangTest, ATrainerThatDiesOnTheLeadingNodeBlamesThat) {
  StartPair();
  Report("g", 1, 2, JobInput::kAttemptLost, /*crashed=*/true);
  EXPECT_THAT(job("g").crashed_on, ElementsAre("n1"));
  EXPECT_THAT(job("g").lost_on, ElementsAre("n1"));
  EXPECT_THAT(state_.nodes().at("n2").losses, IsEmpty());
  EXPECT_THAT(ToldToStop(), ElementsAre("n2"));
}

TEST_F(GangTest, RanksThatOnlyLostTheirPeersBlameNobody) {
  for (const char* node : {"n1", "n2"}) {
    SCOPED_TRACE(node);
    StartPair();
    if (node == std::string("n1")) {
      luthier::Report report{.attempt = {"g", 1}, .sequence = 2, .input = JobInput::kAttemptLost};
      report.node = node;
      report.crashed = report.lost_peer = true;
      ASSERT_TRUE(state_.Record(std::move(report), now_));
      EndBatch();
    } else {
      ASSERT_TRUE(ReportFrom(node, JobInput::kAttemptLost, /*crashed=*/true, /*lost_peer=*/true));
    }
    EXPECT_EQ(job("g").state, JobState::kRecovering);
    EXPECT_EQ(job("g").lost_attempts, 1) << "else it could go on so for ever";
    EXPECT_THAT(job("g").lost_on, ElementsAre("n2")) << "the leading node had reached it, and has the checkpoints";
    EXPECT_THAT(job("g").crashed_on, IsEmpty());
    for (const char* any : {"n1", "n2"}) EXPECT_THAT(state_.nodes().at(any).losses, IsEmpty());
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
  }
}

TEST_F(GangTest, WhatANodeThatDoesNotLeadSaysOtherwiseIsTakenAndChangesNothing) {
  StartPair(JobState::kStarting);
  for (const JobInput input : {JobInput::kTrainerStarted, JobInput::kTrainerFinished}) {
    EXPECT_TRUE(ReportFrom("n2", input));
    EXPECT_EQ(job("g").state, JobState::kStarting);
    EXPECT_EQ(job("g").last_report, 0);
  }
  EXPECT_FALSE(ReportFrom("n3", JobInput::kAttemptLost)) << "no part of it is there";
  EXPECT_EQ(job("g").state, JobState::kStarting);
}

// Its ranks end a moment before the leading one reports that it is done.
TEST_F(GangTest, APartThatEndedFreesItsDevicesAndTheAttemptGoesOn) {
  StartPair();
  for (const char* once_more : {"", "after a break"}) {
    SCOPED_TRACE(once_more);
    EXPECT_TRUE(ReportFrom("n2", JobInput::kAttemptStopped));
    EXPECT_EQ(job("g").state, JobState::kRunning);
    EXPECT_TRUE(HasRoom("n2"));
  }
  EXPECT_EQ(state_.jobs().LoadOf("default").running_devices, 1);
  Join("n2");
  EXPECT_EQ(job("g").state, JobState::kRunning) << "nothing of it is expected there";
  Pass(kLease, {"n1"});
  EXPECT_EQ(job("g").state, JobState::kRunning);
  Report("g", 1, 2, JobInput::kTrainerFinished);
  Report("g", 1, 3, JobInput::kArtifactStored);
  EXPECT_EQ(job("g").state, JobState::kSucceeded);
  EXPECT_THAT(effects_, IsEmpty());
}

TEST_F(GangTest, TheOthersAreToldToStopWhenItsArtifactIsStored) {
  StartPair(JobState::kPublishing);
  Report("g", 1, 3, JobInput::kArtifactStored);
  EXPECT_THAT(ToldToStop(), ElementsAre("n2"));
  EXPECT_TRUE(HasRoom("n1"));
  ReportFrom("n2", JobInput::kAttemptStopped);
  ASSERT_TRUE(Submit("on-n1").ok());
  EXPECT_TRUE(HasRoom("n2"));
}

TEST_F(GangTest, FailsWhereverItIsReportedFirst) {
  StartPair();
  EXPECT_TRUE(ReportFrom("n2", JobInput::kAttemptFailed));
  EXPECT_EQ(job("g").state, JobState::kFailed);
  EXPECT_EQ(events_.back().message, "on node n2: why");
  EXPECT_THAT(ToldToStop(), ElementsAre("n1"));
}

// Once it publishes, the leading node needs no other; once it stops, the leading one may be writing its last
// checkpoint.
TEST_F(GangTest, TheLossOfAnotherNodeEndsOnlyAnAttemptThatStartsOrRuns) {
  for (const JobState state : {JobState::kStarting, JobState::kRunning, JobState::kPublishing, JobState::kPausing}) {
    for (const char* how : {"report", "lease"}) {
      SCOPED_TRACE(absl::StrCat(std::string(StateName(state)), " ", how));
      StartPair(state);
      if (how == std::string("report")) {
        ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true);
      } else {
        Pass(kLease, {"n1"});
      }
      const bool lost = state == JobState::kStarting || state == JobState::kRunning;
      EXPECT_EQ(job("g").state, lost ? JobState::kRecovering : state);
      EXPECT_EQ(job("g").crashed_on.size(), lost && how == std::string("report") ? 1u : 0u);
      EXPECT_EQ(ToldToStop(), lost ? std::vector<std::string>{"n1"} : std::vector<std::string>{});
      state_ = State();
      ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
    }
  }
}

// Each row: in which state a node that does not lead comes back, with the attempt or without, and what follows.
TEST_F(GangTest, WhatBecomesOfItWhenAnotherNodeComesBack) {
  struct Row {
    JobState before;
    bool has_it;
    JobState after;
    std::vector<std::string> start, stop;
  };
  const std::vector<Row> rows = {
      {JobState::kStarting, true, JobState::kStarting, {}, {}},
      {JobState::kStarting, false, JobState::kStarting, {"n2"}, {}},
      {JobState::kRunning, true, JobState::kRunning, {}, {}},
      {JobState::kRunning, false, JobState::kRecovering, {}, {"n1"}},
      {JobState::kPublishing, true, JobState::kPublishing, {}, {}},
      {JobState::kPublishing, false, JobState::kPublishing, {}, {}},
      {JobState::kPausing, true, JobState::kPausing, {}, {"n2"}},
      {JobState::kPausing, false, JobState::kPausing, {}, {}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(absl::StrCat(std::string(StateName(row.before)), row.has_it ? " with it" : " without it"));
    StartPair(row.before);
    Join("n2", 1, row.has_it ? std::vector<std::string>{kAttempt} : std::vector<std::string>{});
    EXPECT_THAT(stale_, IsEmpty());
    EXPECT_EQ(job("g").state, row.after);
    EXPECT_EQ(ToldToStart(), row.start);
    EXPECT_EQ(ToldToStop(), row.stop);
    if (!row.has_it && row.before != JobState::kStarting) {
      EXPECT_TRUE(HasRoom("n2")) << "nothing of it is left there";
    }
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
  }
}

TEST_F(GangTest, WhereRanksDoNotFindEachOtherAnyOfTheNodesMayBeTheReason) {
  StartPair(JobState::kStarting);
  ASSERT_TRUE(ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true, /*lost_peer=*/true));
  EXPECT_THAT(job("g").lost_on, ElementsAre("n1", "n2"));
  for (const char* any : {"n1", "n2"}) EXPECT_THAT(state_.nodes().at(any).losses, IsEmpty());
}

// The firewall between n1 and n2 costs the next job of two nodes nothing.
TEST_F(GangTest, NodesWhoseRanksDidNotFindEachOtherAreNotGivenTogetherAgainWhileThereAreOthers) {
  StartPair(JobState::kStarting);
  Join("n3");
  ASSERT_TRUE(ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true, /*lost_peer=*/true));
  EXPECT_FALSE(ReportFrom("n1", JobInput::kAttemptStopped));
  ASSERT_TRUE(Submit("next", {.nodes = 2}).ok());
  EXPECT_EQ(job("next").node, "n1");
  ASSERT_THAT(job("next").others, SizeIs(1));
  EXPECT_EQ(job("next").others[0].node, "n3");
}

TEST_F(GangTest, RanksThatLostEachOtherLaterHadMet) {
  StartPair();
  ASSERT_TRUE(ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true, /*lost_peer=*/true));
  for (const char* node : {"n1", "n2"}) EXPECT_THAT(state_.nodes().at(node).missed, IsEmpty());
}

TEST_F(GangTest, ThatTheyDidNotMeetIsForgottenWhenTheyDoAndWhenThatMayBeOtherwiseByNow) {
  const auto missed = [&] { return state_.nodes().at("n1").missed.size() + state_.nodes().at("n2").missed.size(); };
  for (const std::string how : {"they meet", "undrained", "moved", "a day later"}) {
    SCOPED_TRACE(how);
    StartPair(JobState::kStarting);
    ASSERT_TRUE(ReportFrom("n2", JobInput::kAttemptLost, /*crashed=*/true, /*lost_peer=*/true));
    EXPECT_FALSE(ReportFrom("n1", JobInput::kAttemptStopped));
    EXPECT_EQ(missed(), 2u);
    Join("n1");
    EXPECT_EQ(missed(), 2u) << "an agent that comes back says nothing of the network";
    if (how == "they meet") {
      Pass(RetryDelay(1), {"n1", "n2"});
      ASSERT_EQ(job("g").state, JobState::kStarting) << "there are no others";
      Report("g", 2, 1, JobInput::kTrainerStarted);
    } else if (how == "undrained") {
      ASSERT_TRUE(state_.Undrain("n2").ok());
    } else if (how == "moved") {
      Node moved{.id = "n2", .gpus = true, .gang_address = "n2.other", .gang_port = 29400};
      stale_ = state_.Register(std::move(moved), {}, now_);
    } else {
      Wait(absl::Hours(24));
    }
    EndBatch();
    EXPECT_EQ(missed(), 0u);
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
  }
}

TEST_F(GangTest, AMeetingWhoseReportCouldNotBeWrittenIsAsBefore) {
  StartPair(JobState::kStarting);
  const auto missed = [&] { return state_.nodes().at("n1").missed.size() + state_.nodes().at("n2").missed.size(); };
  luthier::Report lost{.attempt = {"g", 1}, .sequence = 1, .input = JobInput::kAttemptLost};
  lost.node = "n2";
  lost.lost_peer = true;
  ASSERT_TRUE(state_.Record(lost, now_));
  EXPECT_EQ(missed(), 2u);
  state_.Rollback();
  EXPECT_EQ(missed(), 0u);
  ASSERT_TRUE(state_.Record(lost, now_));
  EndBatch();
  ASSERT_TRUE(state_.Undrain("n1").ok());
  EXPECT_EQ(missed(), 0u);
  state_.Rollback();
  EXPECT_EQ(missed(), 2u);
}

// Its agent was started again, with another --gang-address, before its trainer said anything.
TEST_F(GangTest, WhereTheLeadingNodeCannotBeFoundAnyMoreTheAttemptIsLost) {
  for (const std::string leads : {"n1", "n2"}) {
    SCOPED_TRACE(leads);
    StartPair(JobState::kStarting);
    Node moved{.id = leads, .gpus = true, .gang_address = leads + ".lan", .gang_port = 30000};
    stale_ = state_.Register(std::move(moved), {}, now_);
    EndBatch();
    const bool is_led_there = leads == "n1";
    EXPECT_EQ(job("g").state, is_led_there ? JobState::kRecovering : JobState::kStarting);
    EXPECT_EQ(ToldToStop(), is_led_there ? std::vector<std::string>{"n2"} : std::vector<std::string>{});
    EXPECT_EQ(ToldToStart(), is_led_there ? std::vector<std::string>{} : std::vector<std::string>{"n2"});
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
  }
}

TEST_F(GangTest, ANodeThatOthersDoNotReachAnyMoreIsNotTheirsToStartOn) {
  StartPair(JobState::kStarting);
  Connect("n2", 1);
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_THAT(ToldToStop(), ElementsAre("n1"));
  EXPECT_THAT(ToldToStart(), IsEmpty());
}

TEST_F(GangTest, AfterARestartEachOfItsNodesIsExpectedAndNoneIsStale) {
  StartPair();
  state_ = State();
  state_.LoadJob(std::make_unique<Job>(job("g")), now_);
  for (const char* node : {"n2", "n1"}) {
    Join(node, 1, {kAttempt}, {{kAttempt, {0}}});
    EXPECT_THAT(stale_, IsEmpty());
    EXPECT_THAT(effects_, IsEmpty());
  }
  EXPECT_EQ(state_.Find("g")->state, JobState::kRunning);
  Join("n3", 1, {kAttempt});
  EXPECT_THAT(stale_, ElementsAre(kAttempt));
}

TEST_F(GangTest, AfterARestartEachOfItsNodesHasALease) {
  for (const std::string node : {"n1", "n2"}) {
    SCOPED_TRACE(node);
    StartPair();
    const Job running = job("g");
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
    state_.LoadJob(std::make_unique<Job>(running), now_);
    Join(node, 1, {kAttempt});
    Pass(kLease, {node});
    EXPECT_EQ(job("g").state, JobState::kRecovering);
    EXPECT_THAT(ToldToStop(), ElementsAre(node));
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
  }
}

// Where the leading node waits is known when it is there again: it says by which address others reach it.
TEST_F(GangTest, AfterARestartTheOrdersThatMayNotHaveArrivedAreSentWhenTheLeadingNodeIsThere) {
  StartPair(JobState::kStarting);
  state_ = State();
  state_.LoadJob(std::make_unique<Job>(job("g")), now_);
  Join("n2");
  EXPECT_THAT(effects_, IsEmpty());
  Join("n1", 1, {kAttempt});
  ASSERT_THAT(ToldToStart(), ElementsAre("n2"));
  EXPECT_EQ(effects_[0].gang->meeting, "n1.lan:29400");
  EXPECT_EQ(effects_[0].gang->node_rank, 1);
}

TEST_F(GangTest, ADrainOfOneOfItsNodesStopsAllOfIt) {
  StartPair();
  ASSERT_TRUE(state_.Drain("n2", /*requeue=*/true, now_).ok());
  EndBatch();
  EXPECT_EQ(job("g").state, JobState::kPreempting);
  EXPECT_THAT(ToldToStop(), ElementsAre("n1", "n2"));
  for (const Effect& effect : effects_) EXPECT_TRUE(effect.job_goes_on);
  EXPECT_TRUE(ReportFrom("n2", JobInput::kAttemptStopped));
  EXPECT_EQ(job("g").state, JobState::kPreempting) << "the leading node writes its checkpoint";
  Report("g", 1, 2, JobInput::kAttemptStopped);
  EXPECT_EQ(job("g").state, JobState::kQueued);
  EXPECT_EQ(job("g").lost_attempts, 0);
  EXPECT_THAT(effects_, IsEmpty());
}

TEST_F(GangTest, StopsOnceForAMoreUrgentJobThatTakesOneOfItsNodes) {
  Join("n1");
  Join("n2");
  ASSERT_TRUE(Submit("g", {.nodes = 2, .service_class = ServiceClass::kBackground}).ok());
  Pass(absl::Minutes(10), {"n1", "n2"});
  ASSERT_TRUE(Submit("urgent").ok());
  EXPECT_EQ(job("g").state, JobState::kPreempting);
  EXPECT_EQ(job("g").preemptions, 1);
  EXPECT_THAT(ToldToStop(), ElementsAre("n1", "n2"));
  Report("g", 1, 1, JobInput::kAttemptStopped);
  EXPECT_EQ(job("urgent").state, JobState::kStarting);
  EXPECT_EQ(job("urgent").node, "n1");
}

TEST_F(GangTest, ACancellationIsToldToAllOfItsNodesAndACheckpointAskedOfTheLeadingOne) {
  StartPair();
  ASSERT_TRUE(state_.Checkpoint("g").ok());
  EndBatch();
  EXPECT_THAT(Told(Effect::Kind::kCheckpoint), ElementsAre("n1"));
  ASSERT_TRUE(state_.Cancel("g", now_).ok());
  EndBatch();
  EXPECT_THAT(ToldToStop(), ElementsAre("n1", "n2"));
}

TEST_F(GangTest, ALossThatCouldNotBeWrittenHasNotHappened) {
  StartPair();
  luthier::Report lost{.attempt = {"g", 1}, .sequence = 1, .input = JobInput::kAttemptLost};
  lost.node = "n2";
  ASSERT_TRUE(state_.Record(lost, now_));
  EXPECT_THAT(state_.nodes().at("n1").leftovers, SizeIs(1));
  state_.Rollback();
  EXPECT_EQ(state_.Find("g")->state, JobState::kRunning);
  EXPECT_THAT(state_.nodes().at("n1").leftovers, IsEmpty());
  EXPECT_THAT(state_.jobs().OnNode("n2"), ElementsAre("g"));
  ASSERT_TRUE(state_.Record(lost, now_));
  EndBatch();
  EXPECT_EQ(job("g").state, JobState::kRecovering);
  EXPECT_THAT(ToldToStop(), ElementsAre("n1"));
}

// Usage is corrected where an attempt ends sooner than expected: on each node when its part ends.
TEST_F(GangTest, IsChargedForTheTimeOfEachOfItsNodes) {
  StartPair();
  EXPECT_NEAR(state_.TenantOf("default").UsageAt(now_), 2 * absl::ToDoubleSeconds(kUnknownDuration), 1e-6);
  Pass(absl::Minutes(10), {"n1", "n2"});
  EXPECT_TRUE(ReportFrom("n2", JobInput::kAttemptStopped));
  Pass(absl::Minutes(10), {"n1", "n2"});
  Report("g", 1, 2, JobInput::kAttemptFailed);
  const double half_life = absl::ToDoubleSeconds(absl::Hours(24));
  EXPECT_NEAR(state_.TenantOf("default").UsageAt(now_), 30 * 60, 2 * 3600 * 20 * 60 / half_life);
}

}  // namespace
}  // namespace luthier
