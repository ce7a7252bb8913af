#include "server/core/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;

const absl::Time kNow = absl::FromUnixSeconds(1700000000);

// A row of a table: a waiting job, and what is expected of it: "n1:0,1" or the reason why it waits.
struct Row {
  std::string id;
  int devices = 1;
  std::string expected;
  std::string tenant = "default";
  ServiceClass service_class = ServiceClass::kStandard;
  int priority = 0;
  absl::Duration estimate;
  std::string last_node;
  int lost_here = 0;
  std::vector<std::string> crashed_on = {};
  int64_t memory = 0;  // of each device
  std::string selector = {};
  int nodes = 1;
  int64_t main_memory = 0;  // of an export
};

// A job that asks for more than a number of devices.
Row Asking(const std::string& id, int devices, const std::string& expected, int64_t memory,
           const std::string& selector = "") {
  Row row{id, devices, expected};
  row.memory = memory;
  row.selector = selector;
  return row;
}

Row Exporting(const std::string& id, const std::string& expected, int64_t main_memory) {
  Row row{id, 1, expected};
  row.main_memory = main_memory;
  return row;
}

// A job of several nodes: "n1:0,1 n2:0,1".
Row Gang(const std::string& id, int nodes, int devices, const std::string& expected,
         const std::string& tenant = "default", ServiceClass service_class = ServiceClass::kStandard) {
  Row row{id, devices, expected, tenant, service_class};
  row.nodes = nodes;
  return row;
}
Row Lasting(Row row, absl::Duration estimate) {
  row.estimate = estimate;
  return row;
}

// "making room on n1: a b" if these have to stop, "making room on n1,n2: a" for a job of two nodes.
std::string NameOf(const Decision& decision) {
  static constexpr const char* kNames[] = {"", "no node", "too large", "busy", "reserved", "tenant limit"};
  if (decision.wait == Wait::kNone) {
    std::string name = absl::StrCat(decision.node, ":", absl::StrJoin(decision.devices, ","));
    for (const Place& place : decision.others)
      absl::StrAppend(&name, " ", place.node, ":", absl::StrJoin(place.devices, ","));
    return name;
  }
  if (decision.wait == Wait::kNoMatch) return "no match";
  if (decision.wait != Wait::kMakingRoom) return kNames[static_cast<size_t>(decision.wait)];
  const auto id = [](std::string* out, const Job* job) { absl::StrAppend(out, " ", job->id); };
  std::string nodes = decision.node;
  for (const Place& place : decision.others) absl::StrAppend(&nodes, ",", place.node);
  return absl::StrCat("making room on ", nodes, ":", absl::StrJoin(decision.preempted, "", id));
}

class PolicyTest : public testing::Test {
 protected:
  // `free` of `devices` are free; `releases`: minutes from now, devices. Nodes reach one another.
  void AddNode(const std::string& id, int devices, std::vector<int> free,
               std::vector<std::pair<int, int>> releases = {}) {
    nodes_.push_back({.id = id, .ready = true, .devices = devices, .gpus = true, .gang_address = id});
    NodeView view{&nodes_.back(), std::move(free), {}};
    for (const auto& [minutes, count] : releases) view.releases.push_back({kNow + absl::Minutes(minutes), count});
    snapshot_.nodes.push_back(std::move(view));
  }
  // Of the node that was added last.
  void Has(std::vector<int64_t> memory, std::map<std::string, std::string> labels = {}) {
    nodes_.back().memory = std::move(memory);
    nodes_.back().labels = std::move(labels);
  }
  // An attempt on the node that was added last, which ends in an hour; `minutes` since it started.
  void Runs(const std::string& id, int devices, ServiceClass service_class, int priority = 0, int minutes = 30) {
    Job& job = jobs_.emplace_back();
    job.id = id;
    job.devices = devices;
    job.service_class = service_class;
    job.priority = priority;
    job.attempt_start = kNow - absl::Minutes(minutes);
    job.node = nodes_.back().id;
    job.held.resize(static_cast<size_t>(devices));  // which ones matters only where they differ
    snapshot_.nodes.back().releases.push_back({kNow + absl::Hours(1), devices, &job});
  }
  // An attempt on all of the nodes, as Runs.
  void RunsOver(const std::vector<std::string>& nodes, const std::string& id, int devices, ServiceClass service_class,
                const std::string& tenant = "default") {
    Job& job = jobs_.emplace_back();
    job.id = id;
    job.tenant = tenant;
    job.devices = devices;
    job.nodes = static_cast<int>(nodes.size());
    job.service_class = service_class;
    job.attempt_start = kNow - absl::Minutes(30);
    job.node = nodes.front();
    job.held.resize(static_cast<size_t>(devices));
    for (const std::string& node : nodes) {
      if (node != job.node) job.others.push_back({node, job.held});
      for (NodeView& view : snapshot_.nodes) {
        if (view.node->id == node) view.releases.push_back({kNow + absl::Hours(1), devices, &job, tenant});
      }
    }
    snapshot_.tenants[tenant].running_devices += AllDevices(job);
    snapshot_.tenants[tenant].kept_devices += AllDevices(job);
  }
  // The same, of a tenant.
  void RunsOf(const std::string& tenant, const std::string& id, int devices,
              ServiceClass service_class = ServiceClass::kStandard, int minutes = 30) {
    Runs(id, devices, service_class, /*priority=*/0, minutes);
    jobs_.back().tenant = snapshot_.nodes.back().releases.back().tenant = tenant;
    snapshot_.tenants[tenant].running_devices += devices;
    snapshot_.tenants[tenant].kept_devices += devices;
  }
  void Guarantee(const std::string& tenant, int devices) { snapshot_.tenants[tenant].guaranteed_devices = devices; }
  void AddTenant(const std::string& id, double usage, double weight = 1, int max_devices = 0, int running = 0) {
    snapshot_.tenants[id] = {usage, weight, max_devices, running};
  }
  void Wait(const std::vector<Row>& rows) {
    snapshot_.now = kNow;
    for (const Row& row : rows) {
      Job& job = jobs_.emplace_back();
      job.number = ++number_;
      job.id = row.id;
      job.devices = row.devices;
      job.tenant = row.tenant;
      job.service_class = row.service_class;
      job.priority = row.priority;
      job.estimate = row.estimate;
      job.node = row.last_node;
      job.lost_here = row.lost_here;
      job.gpu_memory_bytes = row.memory;
      job.cpu_memory_bytes = row.main_memory;
      job.node_selector = row.selector;
      job.nodes = row.nodes;
      job.crashed_on = row.crashed_on;
      job.create_time = kNow;
      snapshot_.waiting[static_cast<size_t>(row.service_class) - 1][row.tenant].push_back(&job);
      snapshot_.tenants[row.tenant];
    }
  }
  void Expect(const std::vector<Row>& rows) {
    Wait(rows);
    std::map<std::string, std::string> got;
    for (const Decision& decision : Decide(snapshot_)) {
      got[decision.job->id] = NameOf(decision);
    }
    EXPECT_EQ(got.size(), rows.size()) << "one decision for every job";
    for (const Row& row : rows) EXPECT_EQ(got[row.id], row.expected) << row.id;
  }

  std::deque<Node> nodes_;
  std::deque<Job> jobs_;
  int64_t number_ = 0;
  Snapshot snapshot_;
};

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
  Expect({{"back", 1, "b:0", "default", ServiceClass::kStandard, 0, {}, "b", 1},
          {"away", 1, "a:0", "default", ServiceClass::kStandard, 0, {}, "b", 2},
          {"nowhere-else", 1, "b:1", "default", ServiceClass::kStandard, 0, {}, "b", 2}});
}

// Of three nodes: `b` was last and lost it twice, on `a` it had died before.
TEST_F(PolicyTest, GoesToANodeOnWhichItsTrainerHasNotDied) {
  AddNode("a", 1, {0});
  AddNode("b", 2, {0, 1});
  AddNode("c", 4, {0, 1, 2, 3});
  Expect({{"away", 1, "c:0", "default", ServiceClass::kStandard, 0, {}, "b", 2, {"a", "b"}},
          {"wide", 3, "c:1,2,3", "default", ServiceClass::kStandard, 0, {}, "b", 2, {"a", "b"}},
          {"nowhere-else", 1, "a:0", "default", ServiceClass::kStandard, 0, {}, "b", 2, {"a", "b"}}});
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

constexpr ServiceClass kInteractive = ServiceClass::kInteractive, kStandard = ServiceClass::kStandard,
                       kBackground = ServiceClass::kBackground;

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

TEST_F(PolicyTest, AGuaranteeLiftsNoLimit) {
  AddNode("n", 2, {});
  RunsOf("borrower", "running", 1);
  AddTenant("owner", 0, 1, /*max_devices=*/1, /*running=*/1);  // which stops, and keeps nothing
  Guarantee("owner", 1);
  Expect({{"own", 1, "tenant limit", "owner"}});
}

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
    snapshot_ = {};
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
