#include "server/store/writes.h"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "lib/artifact/hash.h"
#include "server/store/rows.h"
#include "server/store/store.h"

namespace luthier {
namespace {

void WriteResource(Connection& connection, const Writes::ResourceChange& change) {
  if (!change.resource) {
    if (change.kind == ResourceKind::kBaseModel)
      connection.Prepare("DELETE FROM speeds WHERE base_model = ?").Bind(change.id).Run();
    connection.Prepare(absl::StrCat("DELETE FROM ", TableOf(change.kind), " WHERE id = ?")).Bind(change.id).Run();
    return;
  }
  connection.Prepare(absl::StrCat("INSERT INTO ", TableOf(change.kind), " VALUES (?, ?, ?, ?, ?)"))
      .Bind(change.id, change.resource->create_time, Bytes{change.resource->payload}, change.resource->tenant,
            change.resource->bytes)
      .Run();
}

void WriteSweep(Connection& connection, const Sweep& sweep) {
  connection.Prepare("INSERT INTO sweeps VALUES (?, ?, ?, ?, ?, ?)")
      .Bind(sweep.id, sweep.tenant, sweep.first_job, int64_t{sweep.jobs}, sweep.create_time, Bytes{sweep.payload})
      .Run();
}

void WriteEvent(Connection& connection, const Event& event) {
  connection.Prepare("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
      .Bind(event.job, event.sequence, event.time, int64_t{event.attempt}, event.type, event.message,
            int64_t{event.state}, Bytes{event.payload})
      .Run();
}

void WriteVersion(Connection& connection, const ModelVersion& version) {
  connection.Prepare("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)")
      .Bind(version.model, int64_t{version.version}, version.job, int64_t{version.attempt}, version.base_model,
            version.create_time, Bytes{version.payload}, version.tenant, version.bytes)
      .Run();
}

void DeleteVersion(Connection& connection, const std::string& model, int version) {
  connection.Prepare("UPDATE model_versions SET deleted = 1, payload = x'' WHERE model = ? AND version = ?")
      .Bind(model, int64_t{version})
      .Run();
}

void WriteTenant(Connection& connection, const Tenant& tenant) {
  connection.Prepare("REPLACE INTO tenants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
      .Bind(tenant.id, tenant.weight, int64_t{tenant.max_devices}, tenant.max_queued_jobs, tenant.usage,
            tenant.usage_time, int64_t{tenant.guaranteed_devices}, tenant.max_storage_bytes, tenant.storage_bytes)
      .Run();
}

void WriteSpeed(Connection& connection, const Speed& speed) {
  connection.Prepare("REPLACE INTO speeds VALUES (?, ?, ?, ?, ?)")
      .Bind(speed.base_model, static_cast<int64_t>(speed.tuning), int64_t{speed.nodes}, int64_t{speed.devices},
            speed.tokens_per_second)
      .Run();
}

void WriteDrain(Connection& connection, const std::string& node, bool drained) {
  connection.Prepare(drained ? "REPLACE INTO drained_nodes VALUES (?)" : "DELETE FROM drained_nodes WHERE id = ?")
      .Bind(node)
      .Run();
}

void WriteToken(Connection& connection, const Token& token) {
  connection.Prepare("REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
      .Bind(token.id, token.sha256, static_cast<int64_t>(token.role), token.tenant, token.create_time,
            token.expire_time, token.revoke_time, token.node)
      .Run();
}

void WriteAlias(Connection& connection, const Alias& alias) {
  if (alias.version == 0) {
    connection.Prepare("DELETE FROM model_aliases WHERE model = ? AND name = ?").Bind(alias.model, alias.name).Run();
  } else {
    connection.Prepare("REPLACE INTO model_aliases VALUES (?, ?, ?)")
        .Bind(alias.model, alias.name, int64_t{alias.version})
        .Run();
  }
}

void WriteQuarantine(Connection& connection, const Quarantine& quarantine) {
  if (quarantine.end == absl::InfinitePast()) {
    connection.Prepare("DELETE FROM quarantined_nodes WHERE id = ?").Bind(quarantine.node).Run();
  } else {
    const std::string jobs = absl::StrJoin(quarantine.jobs, ",");
    connection.Prepare("REPLACE INTO quarantined_nodes VALUES (?, ?, ?)")
        .Bind(quarantine.node, jobs, quarantine.end)
        .Run();
  }
}

void WriteCheckpoint(Connection& connection, const Writes::CheckpointChange& change) {
  if (!change.payload) {
    connection.Prepare("DELETE FROM checkpoints WHERE job = ?").Bind(change.job).Run();
  } else {
    connection.Prepare("REPLACE INTO checkpoints VALUES (?, ?, ?, ?)")
        .Bind(change.job, int64_t{change.attempt}, change.step, Bytes{*change.payload})
        .Run();
  }
}

// What a history is without: it goes first where a job made much of it.
void ExpireEvents(Connection& connection, int64_t job) {
  const int deleted =
      connection
          .Prepare(
              "DELETE FROM events WHERE job = ?1 AND sequence IN (SELECT sequence FROM events WHERE job = ?1 "
              "AND type NOT IN ('state', 'evaluation', 'failed', 'published') LIMIT ?2)")
          .Bind(job, int64_t{Store::kExpiredEvents})
          .Run();
  if (deleted == Store::kExpiredEvents) return;
  connection.Prepare("UPDATE jobs SET expired = 1 WHERE number = ?").Bind(job).Run();
}

// The number of the row that holds it, which is made if there is none, in one transaction with the spec that names it.
// No row is ever without such a spec: these stay, as jobs do, to be shown, cloned and tried again.
int64_t PlanNumber(Connection& connection, const std::string& plan) {
  const std::string sha256 = Sha256Hex(plan);
  connection.Prepare("INSERT OR IGNORE INTO plans (sha256, bytes) VALUES (?, ?)").Bind(sha256, Bytes{plan}).Run();
  Query query = connection.Prepare("SELECT plan_number FROM plans WHERE sha256 = ?");
  query.Bind(sha256).Step();
  return query.Int();
}

void WriteNewJobs(Connection& connection, const std::vector<Writes::NewJob>& jobs) {
  std::map<const std::string*, int64_t> plans;  // a batch mostly has one
  for (const Writes::NewJob& job : jobs) {
    std::optional<int64_t> plan;
    if (job.spec.plan != nullptr) {
      const auto [known, first] = plans.try_emplace(job.spec.plan.get());
      if (first) known->second = PlanNumber(connection, *job.spec.plan);
      plan = known->second;
    }
    connection.Prepare("INSERT INTO job_specs (job, spec, plan) VALUES (?, ?, ?)")
        .Bind(job.number, Bytes{job.spec.own}, plan)
        .Run();
  }
}

}  // namespace

void WriteAll(Connection& connection, const Writes& writes) {
  std::set<int64_t> added;
  for (const Writes::NewJob& job : writes.new_jobs) added.insert(job.number);
  for (const Job& job : writes.jobs) WriteJob(connection, job, added.count(job.number) > 0);
  WriteNewJobs(connection, writes.new_jobs);
  for (const auto& [request, job] : writes.requests)
    connection.Prepare("INSERT INTO requests VALUES (?, ?, ?)").Bind(request.id, request.body_sha256, job).Run();
  for (const Sweep& sweep : writes.sweeps) WriteSweep(connection, sweep);
  for (const Writes::LabelChange& change : writes.labels)
    connection.Prepare("UPDATE job_specs SET labels = ? WHERE job = ?").Bind(Bytes{change.labels}, change.number).Run();
  for (const Event& event : writes.events) WriteEvent(connection, event);
  for (const Writes::CheckpointChange& change : writes.checkpoints) WriteCheckpoint(connection, change);
  for (const int64_t job : writes.expired) ExpireEvents(connection, job);
  for (const ModelVersion& version : writes.versions) WriteVersion(connection, version);
  for (const auto& [model, version] : writes.deleted_versions) DeleteVersion(connection, model, version);
  for (const Speed& speed : writes.speeds) WriteSpeed(connection, speed);
  for (const Writes::ResourceChange& change : writes.resources) WriteResource(connection, change);
  for (const Tenant& tenant : writes.tenants) WriteTenant(connection, tenant);
  for (const auto& [node, drained] : writes.drained) WriteDrain(connection, node, drained);
  for (const Quarantine& quarantine : writes.quarantines) WriteQuarantine(connection, quarantine);
  for (const Alias& alias : writes.aliases) WriteAlias(connection, alias);
  for (const Token& token : writes.tokens) WriteToken(connection, token);
  if (writes.epoch)
    connection.Prepare("INSERT INTO epochs VALUES (?, ?)")
        .Bind(int64_t{writes.epoch->first}, writes.epoch->second)
        .Run();
}

}  // namespace luthier
