// The policy with jobs of several nodes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/core/policy_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;

// Of this process, so that what else the machine does counts for nothing.
double ProcessorSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

TEST_F(PolicyTest, AJobOfSeveralNodesGetsItsDevicesOfEachOfThem) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 4, {1, 2});
  AddNode("c", 2, {1});
  Expect({Gang("gang", 2, 2, "a:0,1 b:1,2"), {"one", 1, "c:1"}});
}

TEST_F(PolicyTest, AJobOfSeveralNodesGetsAllOfThemOrNone) {
  AddNode("a", 1, {0});
  AddNode("b", 1, {}, {{30, 1}});
  AddNode("c", 2, {0, 1});
  Expect({Gang("three", 3, 1, "busy"), Gang("two", 2, 1, "reserved"), {"one", 1, "c:0"}});
}

TEST_F(PolicyTest, AJobOfMoreNodesThanThereAreReservesNothing) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 1, {0});
  Expect({Gang("three", 3, 1, "too large"), Gang("wide", 2, 2, "too large"), Gang("two", 2, 1, "b:0 a:0")});
}

// Whichever of four nodes are free: a job that starts has all that it asked for, and one that waits has nothing. So no
// two wait for what the other one holds.
TEST_F(PolicyTest, NoTwoJobsHoldHalfOfTheirNodesEach) {
  for (unsigned free = 0; free < 16; ++free) {
    SCOPED_TRACE(free);
    nodes_.clear();
    snapshot_ = {.speeds = &speeds_};
    int left = 0;
    for (unsigned node = 0; node < 4; ++node) {
      const bool is_free = ((free >> node) & 1) != 0;
      AddNode(absl::StrCat("n", node), 1, is_free ? std::vector<int>{0} : std::vector<int>{}, {{30, is_free ? 0 : 1}});
      left += is_free ? 1 : 0;
    }
    Wait({Gang("a", 2, 1, ""), Gang("b", 2, 1, ""), Gang("c", 2, 1, "")});
    std::set<std::string> taken;
    for (const Decision& decision : Decide(snapshot_)) {
      std::vector<Place> places = decision.others;
      places.push_back({decision.node, decision.devices});
      if (decision.wait != luthier::Wait::kNone) {
        for (const Place& place : places) EXPECT_THAT(place.devices, ElementsAre());
        continue;
      }
      EXPECT_EQ(places.size(), 2u);
      for (const Place& place : places) {
        EXPECT_THAT(place.devices, ElementsAre(0));
        EXPECT_TRUE(taken.insert(place.node).second) << place.node << " is given away twice";
      }
    }
    EXPECT_EQ(taken.size(), static_cast<size_t>(left / 2 * 2));
  }
}

TEST_F(PolicyTest, TheNodeWithTheCheckpointsLeads) {
  AddNode("a", 1, {0});
  AddNode("b", 4, {0, 1, 2, 3});
  Row row = Gang("back", 2, 1, "b:0 a:0");
  row.last_node = "b";
  Expect({row});
}

TEST_F(PolicyTest, ANodeThatLosesAJobAgainAndAgainTakesPartInItOnlyIfThereAreNoOthers) {
  for (const char* id : {"a", "b", "c"}) AddNode(id, 3, {0, 1, 2});
  Row once = Gang("once", 2, 1, "a:0 b:0"), twice = Gang("twice", 2, 1, "a:1 c:0"),
      all = Gang("all", 3, 1, "a:2 c:1 b:1");
  for (Row* row : {&once, &twice, &all}) row->last_node = "a";
  once.lost_on = {"b"};
  twice.lost_on = all.lost_on = {"b", "b"};
  Expect({once, twice, all});
}

// Where ranks lost each other every node of the job may be the reason. Those that it was lost on least are tried first.
TEST_F(PolicyTest, OfNodesThatMayBeTheReasonThoseComeFirstThatWereThereLeastOften) {
  for (const char* id : {"a", "b", "c"}) AddNode(id, 1, {0});
  Row row = Gang("pair", 2, 1, "b:0 c:0");
  row.last_node = "a";
  row.lost_on = {"a", "b", "a", "b", "a", "c", "a", "c"};
  Expect({row});
}

// Four nodes with a device each; `missed`: two of which ranks did not find each other, as often as they are there.
TEST_F(PolicyTest, NodesThatDidNotMeetAreTakenTogetherOnlyIfThereAreNoOthers) {
  struct Case {
    const char* what;
    std::vector<std::string> missed;
    Row row;
  };
  Row back = Gang("back", 2, 1, "b:0 c:0");
  back.last_node = "b";
  const std::vector<Case> cases = {
      {"none", {}, Gang("pair", 2, 1, "a:0 b:0")},
      {"two", {"ab"}, Gang("pair", 2, 1, "a:0 c:0")},
      {"one and all the others", {"ab", "ac", "ad"}, Gang("pair", 2, 1, "b:0 c:0")},
      {"two, of which one has the checkpoints", {"ab"}, back},
      {"all", {"ab", "ac", "ad", "bc", "bd", "cd"}, Gang("pair", 2, 1, "a:0 b:0")},
      {"any two of a, b and c, and then of a, b and d",
       {"ab", "ac", "bc", "ab", "ad", "bd"},
       Gang("three", 3, 1, "a:0 c:0 d:0")},
      {"two, and a third that missed one who is away", {"ab", "ce", "ce", "ce"}, Gang("three", 3, 1, "a:0 c:0 d:0")},
      {"two, and a job needs all", {"ab"}, Gang("four", 4, 1, "a:0 b:0 c:0 d:0")},
      {"two, and a job needs one", {"ab"}, {"one", 1, "a:0"}},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    nodes_.clear();
    snapshot_ = {.speeds = &speeds_};
    for (const char* id : {"a", "b", "c", "d"}) AddNode(id, 1, {0});
    for (const std::string& two : each.missed) Miss(two.substr(0, 1), two.substr(1));
    Expect({each.row});
  }
}

// In a cluster that fell to pieces.
TEST_F(PolicyTest, ADecisionAmongManyNodesThatDidNotMeetIsMadeSoon) {
  constexpr int kNodes = 200;
  for (int node = 0; node < kNodes; ++node) AddNode(absl::StrCat("n", node), 1, {0});
  for (int a = 0; a < kNodes; ++a) {
    for (int b = a + 1; b < kNodes; ++b) {
      nodes_[static_cast<size_t>(a)].missed[absl::StrCat("n", b)].times = 1;
      nodes_[static_cast<size_t>(b)].missed[absl::StrCat("n", a)].times = 1;
    }
  }
  Wait({Gang("half", kNodes / 2, 1, "")});
  const double start = ProcessorSeconds();
  const std::vector<Decision> decisions = Decide(snapshot_);
  EXPECT_LT(ProcessorSeconds() - start, 1);
  EXPECT_EQ(decisions.at(0).others.size() + 1, size_t{kNodes / 2});
}

TEST_F(PolicyTest, AJobOfSeveralNodesIsOnNodesWithGpusOrOnNodesWithout) {
  AddNode("c1", 1, {0});
  nodes_.back().gpus = false;
  AddNode("g1", 2, {0, 1});
  Expect({Gang("mixed", 2, 1, "too large")});
}

TEST_F(PolicyTest, AJobOfSeveralNodesTakesEitherKind) {
  AddNode("g1", 2, {0, 1});
  AddNode("c1", 1, {0});
  nodes_.back().gpus = false;
  AddNode("g2", 2, {0, 1});
  AddNode("c2", 1, {0});
  nodes_.back().gpus = false;
  Expect({Gang("1", 2, 1, "c1:0 c2:0"), Gang("2", 2, 1, "g1:0 g2:0"), Gang("3", 2, 1, "g1:1 g2:1"),
          Gang("4", 2, 1, "busy")});
}

// A free node of each kind is no pair. The CPU nodes have room first, so they are kept, and no GPU is.
TEST_F(PolicyTest, AReservationIsOnNodesOfOneKind) {
  AddNode("c1", 1, {0});
  nodes_.back().gpus = false;
  AddNode("c2", 1, {}, {{10, 1}});
  nodes_.back().gpus = false;
  AddNode("g1", 1, {0});
  AddNode("g2", 1, {}, {{30, 1}});
  Expect({Gang("pair", 2, 1, "busy"), {"long", 1, "g1:0"}, {"longer", 1, "reserved"}});
}

TEST_F(PolicyTest, OnlyNodesThatOthersReachTakePartInAJobOfSeveral) {
  AddNode("a", 1, {0});
  AddNode("b", 1, {0});
  nodes_.back().gang_address.clear();
  AddNode("c", 2, {0, 1});
  nodes_.back().shares = 2;
  Expect({Gang("pair", 2, 1, "too large"), {"1", 1, "a:0"}, {"2", 1, "b:0"}, {"3", 1, "c:0"}});
}

TEST_F(PolicyTest, AReservationOverTwoNodesIsDelayedOnNeither) {
  AddNode("a", 1, {0});
  AddNode("b", 1, {}, {{30, 1}});
  Expect({Gang("pair", 2, 1, "busy"), {"long", 1, "reserved"}, Lasting({"short", 1, "a:0"}, absl::Minutes(30))});
}

TEST_F(PolicyTest, WhatEndsBeforeAReservationOverTwoNodesMayUseThemUntilThen) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 2, {0}, {{30, 1}});
  AddNode("c", 2, {}, {{40, 2}});
  Expect({Gang("wide", 2, 2, "busy"),
          {"long", 1, "reserved"},
          Lasting(Gang("short", 2, 1, "b:0 a:0"), absl::Minutes(30)),
          Lasting({"other", 1, "a:1"}, absl::Minutes(30))});
}

TEST_F(PolicyTest, EachNodeOfAReservationHasItsOwnSpareDevices) {
  AddNode("a", 3, {0, 1, 2});
  AddNode("b", 1, {}, {{30, 1}});
  Expect({Gang("pair", 2, 1, "busy"), {"1", 1, "a:0"}, {"2", 1, "a:1"}, {"3", 1, "reserved"}});
}

TEST_F(PolicyTest, AReservationIsOnTheNodesThatHaveRoomFirstWhenTheLastOfThemHas) {
  AddNode("a", 1, {}, {{10, 1}});
  AddNode("b", 1, {}, {{30, 1}});
  AddNode("c", 1, {}, {{20, 1}});
  AddNode("d", 1, {}, {{40, 1}});
  Wait({Gang("pair", 2, 1, "")});
  EXPECT_EQ(Decide(snapshot_).at(0).not_before, kNow + absl::Minutes(20));
}

TEST_F(PolicyTest, AnAttemptOverTwoNodesStopsOnceForAJobOfTwoNodes) {
  AddNode("a", 1, {});
  AddNode("b", 1, {});
  RunsOver({"a", "b"}, "running", 1, kBackground);
  Expect({Gang("urgent", 2, 1, "making room on a,b: running", "default", kInteractive),
          {"next", 1, "busy", "default", kInteractive}});
}

TEST_F(PolicyTest, AnAttemptOverTwoNodesThatStopsForOneGivesBackTheOther) {
  AddNode("a", 1, {});
  AddNode("b", 1, {});
  RunsOver({"a", "b"}, "running", 1, kBackground);
  Expect({{"1", 1, "making room on a: running", "default", kInteractive},
          {"2", 1, "making room on b:", "default", kInteractive},
          {"3", 1, "busy", "default", kInteractive}});
}

TEST_F(PolicyTest, RoomForAJobOfTwoNodesIsMadeWhereLeastStops) {
  AddNode("a", 1, {});
  Runs("standard", 1, kStandard);
  AddNode("b", 1, {0});
  AddNode("c", 2, {});
  Runs("old", 1, kBackground);
  Runs("new", 1, kBackground, 0, /*minutes=*/11);
  AddNode("d", 2, {});
  Runs("wide", 2, kBackground);
  Expect({Gang("urgent", 2, 1, "making room on b,c: new", "default", kInteractive)});
}

TEST_F(PolicyTest, NothingStopsForAJobOfTwoNodesWhereOnlyOneCouldHaveRoom) {
  AddNode("a", 1, {});
  Runs("background", 1, kBackground);
  AddNode("b", 1, {});
  Runs("urgent", 1, kInteractive);
  Expect({Gang("pair", 2, 1, "busy", "default", kInteractive)});
}

// Beside `one`, which costs less than `over-two`, that would have to stop as well.
TEST_F(PolicyTest, OneAttemptThatMakesAllTheRoomStopsAlone) {
  AddNode("a", 1, {});
  Runs("one", 1, kBackground);
  AddNode("b", 1, {});
  AddNode("c", 1, {});
  RunsOver({"b", "c"}, "over-two", 1, kBackground);
  Expect({Gang("urgent", 2, 1, "making room on b,c: over-two", "default", kInteractive)});
}

// It took 80 s when every node was tried beside every choice before it; everybody else waits meanwhile.
TEST_F(PolicyTest, RoomOnManyNodesIsFoundAtOnce) {
  constexpr int kNodes = 100, kWide = 64, kDevices = 8;
  for (int node = 0; node < kNodes; ++node) {
    AddNode(absl::StrCat("n", node), kDevices, {});
    for (int device = 0; device < kDevices; ++device)
      Runs(absl::StrCat("j", node, "-", device), 1, kBackground, /*priority=*/0, /*minutes=*/device);
  }
  Wait({Gang("gang", kWide, kDevices, "")});
  const double start = ProcessorSeconds();
  const std::vector<Decision> decisions = Decide(snapshot_);
  EXPECT_LT(ProcessorSeconds() - start, 2);
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].wait, luthier::Wait::kMakingRoom);
  EXPECT_EQ(decisions[0].preempted.size(), static_cast<size_t>(kWide * kDevices));
}

TEST_F(PolicyTest, ATenantsLimitCountsTheDevicesOfAllNodes) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 2, {0, 1});
  AddTenant("limited", 0, 1, /*max_devices=*/3);
  Expect({Gang("four", 2, 2, "tenant limit", "limited"),
          Gang("two", 2, 1, "a:0 b:0", "limited"),
          Gang("two-more", 2, 1, "tenant limit", "limited"),
          {"one", 1, "a:1", "limited"}});
}

TEST_F(PolicyTest, AGuaranteeCountsTheDevicesOfAllNodes) {
  AddNode("a", 1, {});
  RunsOf("borrower", "on-a", 1);
  AddNode("b", 1, {});
  RunsOf("borrower", "on-b", 1);
  Guarantee("owner", 2);
  Guarantee("poor", 1);
  Expect({Gang("beyond", 2, 1, "busy", "poor"), Gang("own", 2, 1, "making room on a,b: on-a on-b", "owner")});
}

TEST_F(PolicyTest, AnAttemptOverTwoNodesStaysIfTheDevicesOfOneAreItsOwn) {
  AddNode("a", 1, {});
  AddNode("b", 1, {});
  RunsOver({"a", "b"}, "running", 1, kStandard, "other");
  Guarantee("other", 1);
  Guarantee("owner", 1);
  Expect({{"own", 1, "busy", "owner"}});
}

TEST_F(PolicyTest, ATenantIsChargedForTheDevicesOfAllNodes) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 2, {0, 1});
  // Two hours of devices for the first: the other tenant has two before it has used as much.
  Expect({Gang("x1", 2, 1, "a:0 b:0", "x"), {"x2", 1, "busy", "x"}, {"y1", 1, "a:1", "y"}, {"y2", 1, "b:1", "y"}});
}

// The second job would be over only after the first one could begin.
TEST_F(PolicyTest, ForecastsWhenAJobOfTwoNodesStarts) {
  AddNode("a", 1, {}, {{60, 1}});
  AddNode("b", 1, {}, {{90, 1}});
  Wait({Gang("pair", 2, 1, ""), {"one", 1, ""}, Gang("never", 3, 1, "")});
  EXPECT_EQ(ForecastOf(1, snapshot_).start, kNow + absl::Minutes(90));
  EXPECT_EQ(ForecastOf(2, snapshot_).start, kNow + absl::Minutes(150));
  EXPECT_EQ(ForecastOf(3, snapshot_).start, absl::InfiniteFuture());
}

TEST_F(PolicyTest, ForecastsThatAnAttemptOverTwoNodesStopsOnBoth) {
  AddNode("a", 1, {});
  AddNode("b", 1, {});
  RunsOver({"a", "b"}, "running", 1, kBackground);
  Wait({Gang("urgent", 2, 1, "", "default", kInteractive)});
  const auto detached = Detach(std::move(snapshot_));
  nodes_.clear();
  jobs_.clear();
  EXPECT_EQ(detached->jobs.size(), 2u) << "one job, on however many nodes";
  EXPECT_EQ(ForecastOf(1, detached->snapshot).start, kNow);
}

}  // namespace
}  // namespace luthier
