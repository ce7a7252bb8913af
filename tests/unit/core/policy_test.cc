#include "server/core/policy.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/unit/core/policy_fixture.h"

namespace luthier {
namespace {

TEST_F(PolicyTest, SaysThatNoNodeIsThere) { Expect({{"a", 1, "no node"}, {"b", 8, "no node"}}); }

TEST_F(PolicyTest, FillsTheNodeThatFitsBestAndKeepsLargeHoles) {
  AddNode("large", 8, {0, 1, 2, 3, 4, 5, 6, 7});
  AddNode("small", 2, {0, 1});
  Expect({{"one", 1, "small:0"}, {"wide", 8, "large:0,1,2,3,4,5,6,7"}, {"another", 1, "small:1"}, {"late", 1, "busy"}});
}

// A gang: ranks that get their devices one after the other would wait for one another.
TEST_F(PolicyTest, AJobGetsAllOfItsDevicesOnOneNodeOrNone) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 4, {0, 1}, {{30, 2}});
  Expect({{"gang", 4, "busy"}, {"pair", 2, "a:0,1"}, {"another-pair", 2, "reserved"}});
}

TEST_F(PolicyTest, AJobGetsTheSmallestDevicesThatHaveTheMemoryItNeeds) {
  AddNode("n1", 3, {0, 1, 2});
  Has({80, 24, 24});
  AddNode("n2", 1, {0});
  Has({16});
  Expect({Asking("small", 1, "n2:0", 10), Asking("pair", 2, "n1:1,2", 24), Asking("large", 1, "n1:0", 40),
          Asking("larger", 1, "too large", 81)});
}

TEST_F(PolicyTest, AnExportLeavesGpusToOthersWhereItCanAndNeedsMainMemoryWhereItCannot) {
  AddNode("a", 2, {0, 1});
  Has({80, 80});
  nodes_.back().main_memory = 64;
  AddNode("b", 2, {0, 1});
  Has({32, 32});
  nodes_.back().gpus = false;
  Expect({Exporting("small", "b:0", 16), Exporting("large", "a:0", 48), Exporting("larger", "too large", 72)});
}

TEST_F(PolicyTest, AnExportTakesAGpuWhereThereIsNothingElse) {
  AddNode("a", 1, {0});
  Expect({Exporting("export", "a:0", 16)});
}

TEST_F(PolicyTest, ADeviceThatIsFreeButTooSmallIsNoRoom) {
  AddNode("n1", 2, {1}, {{30, 1}});
  Has({80, 24});
  Expect({Asking("large", 1, "busy", 40)});
}

TEST_F(PolicyTest, AnAttemptOnASmallDeviceDoesNotStopForAJobThatNeedsALargeOne) {
  AddNode("n1", 2, {});
  Has({80, 24});
  Runs("on-small", 1, ServiceClass::kBackground);
  jobs_.back().held = {1};
  Runs("on-large", 1, ServiceClass::kStandard);
  jobs_.back().held = {0};
  Row urgent = Asking("urgent", 1, "making room on n1: on-large", 40);
  urgent.service_class = ServiceClass::kInteractive;
  Expect({urgent});
}

TEST_F(PolicyTest, AJobOfSeveralDevicesTakesNoPartsOfSharedOnes) {
  AddNode("n1", 4, {0, 1, 2, 3});
  nodes_.back().shares = 2;
  Expect({{"pair", 2, "too large"}, {"one", 1, "n1:0"}, {"another", 1, "n1:1"}});
}

TEST_F(PolicyTest, AGpuThatDoesNotAnswerIsGivenToNobody) {
  AddNode("n1", 3, {0, 1, 2});
  Has({24, -1, 24});
  Expect({{"a", 1, "n1:0"}, {"b", 1, "n1:2"}, {"c", 1, "busy"}});
}

TEST_F(PolicyTest, AJobRunsOnlyWhereTheLabelsAreThatItAsksFor) {
  AddNode("n1", 1, {0});
  Has({}, {{"gpu", "a100"}});
  AddNode("n2", 1, {0});
  Has({}, {{"gpu", "h100"}, {"zone", "b"}});
  Expect({Asking("picky", 1, "n2:0", 0, "gpu=h100,zone=b"),
          Asking("pickier", 1, "no match", 0, "gpu=h100,zone=a"),
          Asking("behind", 1, "busy", 0, "gpu=h100"),
          {"any", 1, "n1:0"}});
}

TEST_F(PolicyTest, AJobThatFitsNowhereReservesNothing) {
  AddNode("n", 2, {0, 1});
  Expect({{"impossible", 4, "too large"}, {"next", 2, "n:0,1"}});
}

TEST_F(PolicyTest, GoesBackToTheNodeWithItsCheckpointsUnlessThatLostItTwice) {
  AddNode("a", 1, {0});
  AddNode("b", 4, {0, 1, 2, 3});
  Expect({{"back", 1, "b:0", "default", ServiceClass::kStandard, 0, {}, "b", {"b"}},
          {"away", 1, "a:0", "default", ServiceClass::kStandard, 0, {}, "b", {"b", "b"}},
          {"nowhere-else", 1, "b:1", "default", ServiceClass::kStandard, 0, {}, "b", {"b", "b"}}});
}

// Of three nodes: `b` was last and lost it twice, on `a` it had died before.
TEST_F(PolicyTest, GoesToANodeOnWhichItsTrainerHasNotDied) {
  AddNode("a", 1, {0});
  AddNode("b", 2, {0, 1});
  AddNode("c", 4, {0, 1, 2, 3});
  Expect({{"away", 1, "c:0", "default", ServiceClass::kStandard, 0, {}, "b", {"b", "b"}, {"a", "b"}},
          {"wide", 3, "c:1,2,3", "default", ServiceClass::kStandard, 0, {}, "b", {"b", "b"}, {"a", "b"}},
          {"nowhere-else", 1, "a:0", "default", ServiceClass::kStandard, 0, {}, "b", {"b", "b"}, {"a", "b"}}});
}

TEST_F(PolicyTest, ClassesAreStrict) {
  AddNode("n", 1, {0});
  Expect({{"background", 1, "busy", "default", ServiceClass::kBackground},
          {"standard", 1, "busy", "default", ServiceClass::kStandard},
          {"interactive", 1, "n:0", "default", ServiceClass::kInteractive}});
}

TEST_F(PolicyTest, TheTenantThatUsedLeastForItsWeightComesFirst) {
  AddNode("n", 3, {0, 1, 2});
  AddTenant("used-much", 9 * 3600);
  AddTenant("used-little", 0);
  AddTenant("heavy", 9 * 3600, /*weight=*/9);
  // Each start is charged an hour: little takes two before it has used as much for its weight as heavy, which has one
  // hour.
  Expect({{"m1", 1, "busy", "used-much"},
          {"l1", 1, "n:0", "used-little"},
          {"l2", 1, "n:2", "used-little"},
          {"l3", 1, "busy", "used-little"},
          {"h1", 1, "n:1", "heavy"}});
}

TEST_F(PolicyTest, ATenantRunsNoMoreThanItMay) {
  AddNode("n", 4, {0, 1, 2, 3});
  AddTenant("limited", 0, 1, /*max_devices=*/3, /*running=*/1);
  Expect({{"a", 2, "n:0,1", "limited"}, {"b", 1, "tenant limit", "limited"}, {"c", 1, "n:2", "other"}});
}

// Two of four devices are free; the first job needs four, and gets them in 30 minutes. What is behind it may use the
// two until then.
TEST_F(PolicyTest, BackfillsOnlyWhatEndsBeforeTheReservation) {
  AddNode("n", 4, {0, 1}, {{30, 2}});
  Expect({{"wide", 4, "busy"},
          {"long", 1, "reserved", "default", ServiceClass::kStandard, 0, absl::Minutes(31)},
          {"short", 1, "n:0", "default", ServiceClass::kStandard, 0, absl::Minutes(30)},
          {"unknown", 1, "reserved"}});
}

TEST_F(PolicyTest, BackfillsDevicesThatTheReservationDoesNotNeed) {
  AddNode("n", 4, {0, 1}, {{30, 2}});
  Expect({{"wide", 3, "busy"},
          {"long", 1, "n:0", "default", ServiceClass::kStandard, 0, absl::Hours(9)},
          {"more", 1, "reserved", "default", ServiceClass::kStandard, 0, absl::Hours(9)}});
}

TEST_F(PolicyTest, AReservationKeepsNoOtherNode) {
  AddNode("big", 8, {0, 1}, {{30, 6}});
  AddNode("other", 2, {0, 1});
  Expect({{"wide", 8, "busy"}, {"long", 2, "other:0,1", "default", ServiceClass::kStandard, 0, absl::Hours(9)}});
}

TEST_F(PolicyTest, AJobThatFitsNowhereStopsWhatIsLessUrgentAndNothingElse) {
  AddNode("n", 3, {});
  Runs("running-background", 1, kBackground);
  Runs("running-standard", 1, kStandard);
  Runs("running-interactive", 1, kInteractive);
  Expect({{"first", 1, "making room on n: running-background", "default", kInteractive},
          {"second", 1, "making room on n: running-standard", "default", kInteractive},
          {"third", 1, "busy", "default", kInteractive},
          {"standard", 1, "busy"}});
}

TEST_F(PolicyTest, NothingIsStoppedWhileThereIsRoom) {
  AddNode("n", 2, {1});
  Runs("running", 1, kBackground);
  Expect({{"a", 1, "n:1", "default", kInteractive}});
}

TEST_F(PolicyTest, TheLeastUrgentThenTheLowestPriorityThenTheNewestStops) {
  AddNode("n", 4, {});
  Runs("standard", 1, kStandard, /*priority=*/-100, /*minutes=*/11);
  Runs("important", 1, kBackground, /*priority=*/5, 11);
  Runs("old", 1, kBackground, 0, 90);
  Runs("new", 1, kBackground, 0, 11);
  Expect({{"1", 1, "making room on n: new", "default", kInteractive},
          {"2", 1, "making room on n: old", "default", kInteractive},
          {"3", 1, "making room on n: important", "default", kInteractive},
          {"4", 1, "making room on n: standard", "default", kInteractive}});
}

TEST_F(PolicyTest, NothingStopsThatIsNotNeededBesideALargerOne) {
  AddNode("n", 6, {0});
  Runs("small-and-new", 1, kBackground, 0, 11);
  Runs("large", 3, kBackground, 0, 20);
  Runs("other", 1, kBackground, 0, 30);
  Expect({{"wide", 4, "making room on n: large", "default", kStandard}});
}

TEST_F(PolicyTest, TheNodeWhereLeastStopsMakesRoom) {
  AddNode("a", 2, {});
  Runs("standard", 2, kStandard);
  AddNode("b", 4, {});
  Runs("wide", 4, kBackground);
  AddNode("c", 2, {});
  Runs("one", 1, kBackground);
  Runs("two", 1, kBackground);
  AddNode("d", 2, {0});
  Runs("half", 1, kBackground);
  Expect({{"i", 2, "making room on d: half", "default", kInteractive}});
}

TEST_F(PolicyTest, RoomThatIsBeingMadeIsForOneJobAndNobodyBehindIt) {
  AddNode("n", 4, {0, 1});
  snapshot_.nodes.back().stopping = 2;
  Expect({{"wide", 4, "making room on n:", "default", kInteractive},
          {"next", 2, "busy", "default", kInteractive},
          {"short", 1, "busy", "default", kBackground, 0, absl::Seconds(1)}});
}

TEST_F(PolicyTest, ATenantAtItsLimitStopsNothing) {
  AddNode("n", 2, {});
  Runs("running", 2, kBackground);
  AddTenant("limited", 0, 1, /*max_devices=*/3, /*running=*/1);
  Expect({{"a", 1, "making room on n: running", "limited", kInteractive},
          {"b", 1, "making room on n:", "limited", kInteractive},
          {"c", 1, "tenant limit", "limited", kInteractive}});
}

// `wide` has the node in half an hour; what may make room for itself there must not delay it.
TEST_F(PolicyTest, RoomIsNotMadeWhereAReservationIs) {
  AddNode("n", 4, {}, {{30, 2}});
  Runs("running", 2, kBackground);
  snapshot_.nodes.back().releases.back().end = kNow + absl::Minutes(30);
  Expect({{"wide", 4, "busy", "default", kInteractive},
          {"long", 1, "busy", "default", kInteractive, 0, absl::Hours(9)},
          {"short", 1, "making room on n: running", "default", kInteractive, 0, absl::Minutes(20)}});
}

TEST_F(PolicyTest, ATenantTakesBackWhatIsGuaranteedToItAndNoMore) {
  AddNode("n", 2, {});
  RunsOf("borrower", "old", 1, kStandard, /*minutes=*/60);
  RunsOf("borrower", "new", 1, kStandard, /*minutes=*/11);
  Guarantee("owner", 1);
  Expect({{"own", 1, "making room on n: new", "owner"},
          {"beyond", 1, "busy", "owner"},
          {"of-borrower", 1, "busy", "borrower"}});
}

TEST_F(PolicyTest, OfWhatWasBorrowedTheLeastUrgentStopsFirstWhateverWaits) {
  AddNode("n", 3, {});
  RunsOf("borrower", "interactive", 1, kInteractive);
  RunsOf("borrower", "standard", 1, kStandard);
  RunsOf("borrower", "background", 1, kBackground);
  Guarantee("owner", 3);
  Expect({{"1", 1, "making room on n: background", "owner", kBackground},
          {"2", 1, "making room on n: standard", "owner", kBackground},
          {"3", 1, "making room on n: interactive", "owner", kBackground}});
}

TEST_F(PolicyTest, NothingStopsThatIsWithinTheGuaranteeOfAnotherTenant) {
  AddNode("n", 4, {});
  RunsOf("other", "new", 1, kBackground, /*minutes=*/11);
  RunsOf("other", "old", 1, kBackground, /*minutes=*/60);
  RunsOf("other", "urgent", 1, kInteractive);
  RunsOf("owner", "running", 1);
  Guarantee("other", 2);
  Guarantee("owner", 4);
  Expect({{"1", 1, "making room on n: new", "owner"},
          {"2", 1, "busy", "owner"},
          {"more-urgent", 1, "busy", "third", kInteractive}});
}

TEST_F(PolicyTest, AmongTheJobsOfATenantTheGuaranteeDoesNotMatter) {
  AddNode("n", 1, {});
  RunsOf("owner", "background", 1, kBackground);
  Guarantee("owner", 1);
  Expect({{"urgent", 1, "making room on n: background", "owner", kInteractive},
          {"standard", 1, "busy", "owner", kStandard}});
}

TEST_F(PolicyTest, AnAttemptOfSeveralDevicesStopsIfAllOfThemWereBorrowed) {
  AddNode("n", 4, {});
  RunsOf("other", "wide", 3, kStandard, /*minutes=*/60);
  RunsOf("other", "small-and-new", 1, kStandard, /*minutes=*/11);
  Guarantee("other", 1);
  Guarantee("owner", 3);
  Expect({{"gang", 3, "making room on n: wide", "owner"}});
}

TEST_F(PolicyTest, AnAttemptOfSeveralDevicesStaysIfOneOfThemIsItsOwn) {
  AddNode("n", 4, {});
  RunsOf("other", "wide", 3);
  RunsOf("other", "small", 1);
  Guarantee("other", 2);
  Guarantee("owner", 3);
  Expect({{"gang", 3, "busy", "owner"}});
}

TEST_F(PolicyTest, AJobBeyondTheGuaranteeOfItsTenantHoldsUpNoneWithinIt) {
  AddNode("n", 2, {});
  RunsOf("borrower", "old", 1, kStandard, /*minutes=*/60);
  RunsOf("borrower", "new", 1, kStandard, /*minutes=*/11);
  Guarantee("owner", 1);
  Expect({{"wide", 2, "busy", "owner"}, {"one", 1, "making room on n: new", "owner"}});
}

// Else what was taken back would be borrowed again at once, and taken back again ten minutes later.
TEST_F(PolicyTest, WhatIsWithinAGuaranteeComesBeforeWhatBorrows) {
  AddNode("n", 1, {0});
  Guarantee("owner", 1);
  Expect({{"urgent", 1, "busy", "other", kInteractive}, {"own", 1, "n:0", "owner", kBackground}});
}

// Else `background`, which stopped for `wide` and is within the guarantee again, would have its device back at once and
// stop again, without an end.
TEST_F(PolicyTest, WhatStoppedForAMoreUrgentJobOfItsTenantComesBehindItThoughItIsWithinTheGuarantee) {
  AddNode("n", 4, {1, 2, 3});
  RunsOf("owner", "background-too", 1, kBackground);
  Guarantee("owner", 2);
  Expect({{"background", 1, "busy", "owner", kBackground},
          {"wide", 4, "making room on n: background-too", "owner", kInteractive}});
}

TEST_F(PolicyTest, AMoreUrgentJobThatStoppedOthersOfItsTenantGetsTheirDevices) {
  AddNode("n", 4, {0, 1, 2, 3});
  Guarantee("owner", 2);
  Expect({{"background", 1, "busy", "owner", kBackground}, {"wide", 4, "n:0,1,2,3", "owner", kInteractive}});
}

// `wide` fits nowhere, and `borrows` may not stop what is as urgent: neither keeps the tenant from what is its own.
TEST_F(PolicyTest, AMoreUrgentJobThatGetsNothingHoldsUpNoneWithinTheGuarantee) {
  AddNode("n", 2, {});
  RunsOf("other", "old", 1, kInteractive, /*minutes=*/60);
  RunsOf("other", "new", 1, kInteractive, /*minutes=*/11);
  Guarantee("owner", 1);
  Expect({{"wide", 4, "too large", "owner", kInteractive},
          {"borrows", 2, "busy", "owner", kInteractive},
          {"own", 1, "making room on n: new", "owner", kBackground},
          {"of-other", 1, "busy", "other", kInteractive}});
}

TEST_F(PolicyTest, NoMoreIsTakenBackThanStopsAlready) {
  AddNode("n", 2, {});
  RunsOf("borrower", "running", 1);
  snapshot_.nodes.back().stopping = 1;
  Guarantee("owner", 1);
  Expect({{"own", 1, "making room on n:", "owner"}});
}

TEST_F(PolicyTest, ATenantBorrowsNothingWhileRoomIsMadeForWhatIsItsOwn) {
  AddNode("a", 2, {0, 1});
  AddNode("b", 3, {});
  RunsOf("borrower", "running", 3);
  Guarantee("owner", 3);
  Expect({{"own", 3, "making room on b: running", "owner"},
          {"beyond", 1, "reserved", "owner"},
          {"of-another", 1, "a:0", "borrower"}});
}

// When `background` stops for `urgent`, `standard` is all that their tenant has until `urgent` runs.
TEST_F(PolicyTest, WhatRoomIsMadeForDoesNotCountAsThereYet) {
  AddNode("n", 3, {});
  RunsOf("other", "standard", 1, kStandard);
  RunsOf("other", "background", 1, kBackground);
  Guarantee("other", 1);
  Guarantee("owner", 1);
  snapshot_.nodes.back().stopping = 1;
  Expect({{"own", 1, "making room on n:", "owner"},
          {"urgent", 1, "making room on n: background", "other", kInteractive},
          {"more-urgent", 1, "busy", "third", kInteractive}});
}

// `gang` goes back to n1, where its checkpoints lie, so that `wide` can have nothing. Passed over, `wide` leaves n1 to
// `own`, and `gang` goes to n2 and n3: so `wide` can have n1.
TEST_F(PolicyTest, AJobThatWasPassedOverHasWhatWasLeftToTheLessUrgentOnesOfItsTenant) {
  AddNode("n1", 4, {0, 1, 2, 3});
  AddNode("n2", 2, {0, 1});
  AddNode("n3", 2, {0, 1});
  Guarantee("owner", 3);
  Row gang = Gang("gang", 2, 2, "n2:0,1 n3:0,1", "other", kInteractive);
  gang.last_node = "n1";
  Expect({{"wide", 4, "n1:0,1,2,3", "owner", kStandard}, gang, {"own", 3, "busy", "owner", kBackground}});
}

TEST_F(PolicyTest, AGuaranteeLiftsNoLimit) {
  AddNode("n", 2, {});
  RunsOf("borrower", "running", 1);
  AddTenant("owner", 0, 1, /*max_devices=*/1, /*running=*/1);  // which stops, and keeps nothing
  Guarantee("owner", 1);
  Expect({{"own", 1, "tenant limit", "owner"}});
}

TEST_F(PolicyTest, ForecastsThatWhatWasBorrowedIsGivenBack) {
  AddNode("n", 1, {});
  RunsOf("borrower", "running", 1);
  Guarantee("owner", 1);
  Wait({{"borrows", 1, "", "borrower"}, {"own", 1, "", "owner"}});
  EXPECT_EQ(ForecastOf(2, snapshot_).start, kNow);
  EXPECT_EQ(ForecastOf(1, snapshot_).start, kNow + absl::Hours(1));
}

TEST_F(PolicyTest, ForecastsWhenATenantIsBelowItsLimitAgain) {
  AddNode("n", 2, {1});
  AddTenant("limited", 0, 1, /*max_devices=*/1);
  RunsOf("limited", "running", 1);
  Wait({{"next", 1, "", "limited"}});
  EXPECT_EQ(ForecastOf(1, snapshot_).start, kNow + absl::Hours(1));
}

// Of four devices none is missing: it is the sweep that waits for its own jobs, of which one may run at a time.
TEST_F(PolicyTest, ForecastsWhenASweepMayStartTheNextOfItsJobs) {
  AddNode("n", 4, {0, 1, 2}, {{30, 1}});
  Wait({{"a", 1, ""}, Lasting({"b", 1, ""}, absl::Minutes(10)), {"c", 1, ""}, {"other", 1, ""}});
  for (Job& job : jobs_) {
    if (job.id == "other") continue;
    job.sweep = 9;
    job.max_parallel = 1;
  }
  snapshot_.ends_of_sweeps[9][77] = kNow + absl::Minutes(30);
  EXPECT_EQ(ForecastOf(1, snapshot_).start, kNow + absl::Minutes(30));
  EXPECT_EQ(ForecastOf(2, snapshot_).start, kNow + absl::Minutes(90));
  EXPECT_EQ(ForecastOf(3, snapshot_).start, kNow + absl::Minutes(100));
  EXPECT_LT(absl::AbsDuration(ForecastOf(3, snapshot_).late_start - (kNow + absl::Minutes(180))),
            absl::Milliseconds(1));
  EXPECT_EQ(ForecastOf(3, snapshot_).ahead, 3);
  EXPECT_EQ(ForecastOf(4, snapshot_).start, kNow);
}

TEST(OrderTest, APriorityPointIsWorthAnHourOfWaiting) {
  Job old{.number = 1}, urgent{.number = 2};
  old.create_time = kNow;
  urgent.create_time = kNow + absl::Minutes(59);
  EXPECT_TRUE(ComesBefore(old, urgent));
  urgent.priority = 1;
  EXPECT_TRUE(ComesBefore(urgent, old));
  urgent.create_time = kNow + absl::Minutes(61);
  EXPECT_TRUE(ComesBefore(old, urgent));
}

TEST(TenantTest, UsageHalvesEveryDay) {
  Tenant tenant;
  tenant.Charge(1000, kNow);
  tenant.Charge(1000, kNow + absl::Hours(24));
  EXPECT_NEAR(tenant.UsageAt(kNow + absl::Hours(24)), 1500, 1e-6);
  EXPECT_NEAR(tenant.UsageAt(kNow + absl::Hours(48)), 750, 1e-6);
  tenant.Charge(-1e9, kNow + absl::Hours(48));
  EXPECT_EQ(tenant.UsageAt(kNow + absl::Hours(48)), 0);
}

// One node of two devices, both busy for an hour; each job takes one hour.
TEST_F(PolicyTest, ForecastsWhenAWaitingJobStarts) {
  AddNode("n", 2, {}, {{60, 1}, {60, 1}});
  Wait({{"a", 1, ""}, {"b", 1, ""}, {"c", 2, ""}, {"d", 1, ""}, {"never", 3, ""}});
  const auto detached = Detach(std::move(snapshot_));
  nodes_.clear();
  const Forecast a = ForecastOf(1, detached->snapshot), c = ForecastOf(3, detached->snapshot),
                 d = ForecastOf(4, detached->snapshot);
  EXPECT_EQ(a.ahead, 0);
  EXPECT_EQ(a.start, kNow + absl::Hours(1));
  EXPECT_LT(absl::AbsDuration(a.late_start - (kNow + absl::Minutes(108))), absl::Milliseconds(1));
  EXPECT_EQ(c.ahead, 2);
  EXPECT_EQ(c.start, kNow + absl::Hours(2));
  EXPECT_EQ(d.ahead, 3);
  EXPECT_EQ(d.start, kNow + absl::Hours(3));
  EXPECT_EQ(ForecastOf(5, detached->snapshot).start, absl::InfiniteFuture());
}

TEST_F(PolicyTest, ForecastsThatWhatStartsBeforeItTakesWhatOthersLikeThatTake) {
  AddNode("n", 1, {}, {{30, 1}});
  Wait({{"a", 1, ""}, {"b", 1, ""}});
  jobs_[0].base_model = "base";
  jobs_[0].tuning = Tuning::kLora;
  jobs_[0].work_tokens = 6000;
  speeds_.Load({"base", Tuning::kLora, 1, 1, /*tokens_per_second=*/10});
  const auto detached = Detach(std::move(snapshot_));
  nodes_.clear();
  speeds_ = {};
  EXPECT_EQ(ForecastOf(2, detached->snapshot).start, kNow + absl::Minutes(40));
}

TEST_F(PolicyTest, ForecastsThatWhatIsLessUrgentStops) {
  AddNode("n", 2, {});
  Runs("running", 2, kBackground);
  Wait({{"standard", 2, ""}, {"interactive", 2, "", "default", kInteractive}});
  const auto detached = Detach(std::move(snapshot_));
  nodes_.clear();
  jobs_.clear();
  EXPECT_EQ(ForecastOf(2, detached->snapshot).start, kNow);
  EXPECT_EQ(ForecastOf(1, detached->snapshot).start, kNow + absl::Hours(1));
}

}  // namespace
}  // namespace luthier
