// Tables of waiting jobs, and what the policy decides of each.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/forecast.h"
#include "server/core/policy.h"

namespace luthier {

inline const absl::Time kNow = absl::FromUnixSeconds(1700000000);
inline constexpr ServiceClass kInteractive = ServiceClass::kInteractive, kStandard = ServiceClass::kStandard,
                              kBackground = ServiceClass::kBackground;

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
  std::vector<std::string> lost_on = {};
  std::vector<std::string> crashed_on = {};
  int64_t memory = 0;  // of each device
  std::string selector = {};
  int nodes = 1;
  int64_t main_memory = 0;  // of an export
};

// A job that asks for more than a number of devices.
inline Row Asking(const std::string& id, int devices, const std::string& expected, int64_t memory,
                  const std::string& selector = "") {
  Row row{id, devices, expected};
  row.memory = memory;
  row.selector = selector;
  return row;
}

inline Row Exporting(const std::string& id, const std::string& expected, int64_t main_memory) {
  Row row{id, 1, expected};
  row.main_memory = main_memory;
  return row;
}

// A job of several nodes: "n1:0,1 n2:0,1".
inline Row Gang(const std::string& id, int nodes, int devices, const std::string& expected,
                const std::string& tenant = "default", ServiceClass service_class = ServiceClass::kStandard) {
  Row row{id, devices, expected, tenant, service_class};
  row.nodes = nodes;
  return row;
}
inline Row Lasting(Row row, absl::Duration estimate) {
  row.estimate = estimate;
  return row;
}

// "making room on n1: a b" if these have to stop, "making room on n1,n2: a" for a job of two nodes.
inline std::string NameOf(const Decision& decision) {
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
  // Ranks on these two nodes did not find each other, once more.
  void Miss(const std::string& a, const std::string& b) {
    for (Node& node : nodes_) {
      if (node.id == a) node.missed[b].times += 1;
      if (node.id == b) node.missed[a].times += 1;
    }
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
      job.lost_on = row.lost_on;
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
  Speeds speeds_;
  Snapshot snapshot_{.speeds = &speeds_};
};

}  // namespace luthier
