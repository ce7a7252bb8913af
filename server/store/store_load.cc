// What a start reads of the record: everything that the State decides with.
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/store/connection.h"
#include "server/store/rows.h"
#include "server/store/store.h"
#include "server/store/store_error.h"

namespace luthier {
namespace {

// The jobs that `sql` selects between two numbers. Reading a million of them takes two seconds and indexing them one:
// the newer half is read beside the older one, on a connection of its own.
void LoadJobs(Connection& connection, const std::string& path, const std::string& sql, int64_t last, State& state,
              absl::Time now) {
  const int64_t middle = last / 2;
  std::future<std::vector<std::unique_ptr<Job>>> newer = std::async(std::launch::async, [&] {
    Connection other(path, SQLite::OPEN_READONLY);
    Query rows = other.Prepare(sql);
    rows.Bind(middle + 1, last);
    std::vector<std::unique_ptr<Job>> jobs;
    while (rows.Step()) jobs.push_back(std::make_unique<Job>(ReadJob(rows)));
    return jobs;
  });
  Query rows = connection.Prepare(sql);
  rows.Bind(int64_t{0}, middle);
  while (rows.Step()) state.LoadJob(std::make_unique<Job>(ReadJob(rows)), now);
  for (std::unique_ptr<Job>& job : newer.get()) state.LoadJob(std::move(job), now);
}

// Numbers of the states of a job that is not over.
std::string LiveStates() {
  std::vector<int> states;
  for (const JobState state : kAllStates) {
    if (!IsTerminal(state)) states.push_back(static_cast<int>(state));
  }
  return absl::StrJoin(states, ",");
}

void LoadVersions(Connection& record, State& state) {
  // With max(), SQLite takes the other columns from the row that has it.
  Query latest = record.Prepare("SELECT model, max(version), tenant FROM model_versions GROUP BY model");
  while (latest.Step()) {
    const std::string model = latest.Text();
    const int version = static_cast<int>(latest.Int());
    state.LoadVersion(model, version, latest.Text());
  }
  Query deleted = record.Prepare("SELECT model, version FROM model_versions WHERE deleted = 1");
  while (deleted.Step()) {
    const std::string model = deleted.Text();
    state.LoadDeletedVersion(NameOfVersion(model, static_cast<int>(deleted.Int())));
  }
}

void LoadTenants(Connection& record, State& state) {
  Query tenants = record.Prepare(
      "SELECT id, weight, max_devices, max_queued_jobs, usage, usage_time, guaranteed_devices, max_storage_bytes, "
      "storage_bytes FROM tenants");
  while (tenants.Step()) {
    Tenant tenant{.id = tenants.Text()};
    tenant.weight = tenants.Real();
    tenant.max_devices = static_cast<int>(tenants.Int());
    tenant.max_queued_jobs = tenants.Int();
    tenant.usage = tenants.Real();
    tenant.usage_time = tenants.Time();
    tenant.guaranteed_devices = static_cast<int>(tenants.Int());
    tenant.max_storage_bytes = tenants.Int();
    tenant.storage_bytes = tenants.Int();
    state.LoadTenant(tenant);
  }
}

void LoadSpeeds(Connection& record, State& state) {
  Query speeds = record.Prepare("SELECT base_model, tuning, nodes, devices, tokens_per_second FROM speeds");
  while (speeds.Step()) {
    Speed speed{.base_model = speeds.Text()};
    speed.tuning = static_cast<Tuning>(speeds.Int());
    for (int* count : {&speed.nodes, &speed.devices}) *count = static_cast<int>(speeds.Int());
    speed.tokens_per_second = speeds.Real();
    state.LoadSpeed(std::move(speed));
  }
}

void LoadNodes(Connection& record, State& state, absl::Time now) {
  Query drained = record.Prepare("SELECT id FROM drained_nodes");
  while (drained.Step()) state.LoadDrained(drained.Text());
  Query quarantined = record.Prepare("SELECT id, jobs, end_time FROM quarantined_nodes");
  while (quarantined.Step()) {
    Quarantine quarantine{.node = quarantined.Text()};
    quarantine.jobs = absl::StrSplit(quarantined.Text(), ',', absl::SkipEmpty());
    quarantine.end = quarantined.Time();
    state.LoadQuarantine(quarantine, now);
  }
}

void LoadResources(Connection& record, State& state) {
  for (const ResourceKind kind : {ResourceKind::kDataset, ResourceKind::kBaseModel}) {
    Query rows = record.Prepare(absl::StrCat("SELECT id, tenant, bytes FROM ", TableOf(kind)));
    while (rows.Step()) {
      const std::string id = rows.Text();
      Stored stored{.tenant = rows.Text()};
      stored.bytes = rows.Int();
      state.LoadResource(kind, id, std::move(stored));
    }
  }
}

}  // namespace

absl::StatusOr<State> Store::LoadState(absl::Time now, State::Options options) {
  return Guard([&]() -> absl::StatusOr<State> {
    State state(options);
    Query last = writer_->Prepare("SELECT ifnull(max(number), 0) FROM jobs");
    if (last.Step()) state.LoadLastNumber(last.Int());
    int64_t live = 0, over = 0;
    Query counts = writer_->Prepare("SELECT state, count(*) FROM jobs GROUP BY state");
    while (counts.Step()) {
      const auto of = static_cast<JobState>(counts.Int());
      const int64_t count = counts.Int();
      (IsTerminal(of) ? over : live) += count;
      if (IsTerminal(of)) state.LoadFinished(of, count);
    }
    state.Reserve(static_cast<size_t>(live));
    // The index is for the few among many; where most are wanted, one walk through the table takes half the time.
    const std::string jobs = absl::StrCat("SELECT ", kJobColumns, " FROM jobs", live > over ? " NOT INDEXED" : "",
                                          " WHERE state IN (", LiveStates(), ") AND number BETWEEN ? AND ?");
    LoadJobs(*writer_, path_, jobs, state.last_number(), state, now);
    LoadVersions(*writer_, state);
    LoadTenants(*writer_, state);
    LoadSpeeds(*writer_, state);
    Query epoch = writer_->Prepare("SELECT ifnull(max(number), 0) FROM epochs");
    if (epoch.Step()) state.LoadEpoch(static_cast<int>(epoch.Int()));
    LoadNodes(*writer_, state, now);
    LoadResources(*writer_, state);
    return state;
  });
}

}  // namespace luthier
