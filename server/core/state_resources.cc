// What jobs name besides a node: the tenant whose share they use, the datasets and base models that they are made from,
// with how fast these are trained, and the versions of models that they publish.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/reason.h"
#include "server/core/state.h"

namespace luthier {

std::string NameOfVersion(const std::string& model, int version) {
  return absl::StrCat("models/", model, "/versions/", version);
}

std::string ResourceName(ResourceKind kind, const std::string& id) {
  return absl::StrCat(kind == ResourceKind::kDataset ? "datasets/" : "baseModels/", id);
}

absl::Status State::SetTenant(const Tenant& tenant, absl::Time now) {
  if (tenant.max_devices > 0 && tenant.guaranteed_devices > tenant.max_devices) {
    return absl::InvalidArgumentError(absl::StrCat("tenant.guaranteed_devices: ", tenant.guaranteed_devices,
                                                   " are more than tenant.max_devices lets it use, ",
                                                   tenant.max_devices, "; give that many at most, or raise the limit"));
  }
  Tenant& mine = ChangeTenant(tenant.id);
  Tenant changed = tenant;
  changed.usage = mine.UsageAt(now);
  changed.usage_time = now;
  changed.storage_bytes = mine.storage_bytes;
  mine = changed;
  unsettled_ = true;
  return absl::OkStatus();
}

std::pair<int64_t, int64_t> State::GuaranteedAndThere() const {
  int64_t guaranteed = 0, there = 0;
  for (const auto& [id, tenant] : tenants_) guaranteed += tenant.guaranteed_devices;
  for (const auto& [id, node] : nodes_) there += node.TakesWork() ? node.devices : 0;
  return {guaranteed, there};
}

void State::Charge(const std::string& tenant, double device_seconds, absl::Time now) {
  ChangeTenant(tenant).Charge(device_seconds, now);
}

void State::SettleCharge(const Job& job, int devices, absl::Time now) {
  const absl::Duration over = (now - job.attempt_start) - job.charged;
  Charge(job.tenant, absl::ToDoubleSeconds(over) * devices, now);
}

// What waits may now fit before a reservation, or not any more.
void State::ObserveSpeed(const Job& job, double tokens_per_second, absl::Time now) {
  if (!speeds_.IsDue(job, tokens_per_second, now)) return;
  std::optional<Speed> notable = ChangeSpeeds(job.base_model).Observe(job, tokens_per_second, now);
  if (!notable) return;
  writes_.speeds.push_back(*std::move(notable));
  unsettled_ = true;
}

Speeds& State::ChangeSpeeds(const std::string& base_model) {
  undo_.push_back([this, base_model, before = speeds_.OfModel(base_model)] { speeds_.SetModel(base_model, before); });
  return speeds_;
}

void State::CountStored(const std::string& tenant, int64_t bytes) {
  if (!tenant.empty() && bytes != 0) ChangeTenant(tenant).storage_bytes += bytes;
}

absl::Status State::CheckStorage(const std::string& id, int64_t bytes) const {
  const auto tenant = tenants_.find(id);
  if (tenant == tenants_.end() || tenant->second.max_storage_bytes == 0) return absl::OkStatus();
  const int64_t limit = tenant->second.max_storage_bytes, stored = tenant->second.storage_bytes;
  if (bytes <= limit - stored) return absl::OkStatus();
  return TenantMayNotHaveMore(
      id,
      absl::StrCat("tenant ", id, " stores ", SizeText(stored), " and may store ", SizeText(limit),
                   bytes > 1 ? absl::StrCat(", so that ", SizeText(bytes), " more do not fit") : "",
                   "; delete datasets or versions of models that nobody needs"),
      kTenantStorageFull);
}

Tenant& State::ChangeTenant(const std::string& id) {
  const auto [entry, added] = tenants_.try_emplace(id, Tenant{.id = id});
  if (added) {
    undo_.push_back([this, id] { tenants_.erase(id); });
  } else {
    undo_.push_back([this, before = entry->second] { tenants_[before.id] = before; });
  }
  changed_tenants_.insert(id);
  return entry->second;
}

std::vector<Tenant> State::tenants() const {
  std::vector<Tenant> all;
  for (const auto& [id, tenant] : tenants_) all.push_back(tenant);
  return all;
}

Tenant State::TenantOf(const std::string& id) const {
  const auto found = tenants_.find(id);
  return found == tenants_.end() ? Tenant{.id = id} : found->second;
}

std::string State::SummaryOf(const std::string& id, absl::Time now) const {
  const Tenant tenant = TenantOf(id);
  const JobTable::Load load = jobs_.LoadOf(id);
  std::string text = absl::StrFormat(
      "tenant %s: devices in use %d%s, jobs waiting %d, device-hours charged lately %.2f (of what runs, "
      "all that it is expected to use), weight %g",
      id, load.running_devices, tenant.max_devices > 0 ? absl::StrCat(" of ", tenant.max_devices) : "", load.waiting,
      tenant.UsageAt(now) / 3600, tenant.weight);
  if (tenant.guaranteed_devices > 0) absl::StrAppend(&text, ", devices guaranteed ", tenant.guaranteed_devices);
  if (tenant.max_storage_bytes > 0) {
    absl::StrAppend(&text, ", stored ", SizeText(tenant.storage_bytes), " of ", SizeText(tenant.max_storage_bytes));
  }
  return text;
}

bool State::Exists(const std::string& name) const {
  return absl::StartsWith(name, "models/") ? deleted_versions_.count(name) == 0 : resources_.count(name) > 0;
}

bool State::IsOfAnother(const std::string& model, const std::string& tenant) const {
  const auto published = models_.find(model);
  if (published != models_.end() && published->second.latest > 0 && published->second.tenant != tenant) return true;
  const std::string* publisher = jobs_.PublisherOf(model);
  return publisher != nullptr && *publisher != tenant;
}

absl::Status State::CheckResource(ResourceKind kind, const Resource& resource) const {
  const std::string name = ResourceName(kind, resource.id);
  if (resources_.count(name) > 0) return absl::AlreadyExistsError(name + " exists; choose another id");
  return CheckStorage(resource.tenant, resource.bytes);
}

absl::Status State::AddResource(ResourceKind kind, Resource resource) {
  if (absl::Status status = CheckResource(kind, resource); !status.ok()) return status;
  const std::string name = ResourceName(kind, resource.id);
  resources_[name] = {resource.tenant, resource.bytes};
  undo_.push_back([this, name] { resources_.erase(name); });
  CountStored(resource.tenant, resource.bytes);
  const std::string id = resource.id;
  writes_.resources.push_back({kind, id, std::move(resource)});
  return absl::OkStatus();
}

absl::Status State::CheckUnused(const std::string& name) const {
  const int64_t uses = jobs_.UsesOf(name);
  if (uses == 0) return absl::OkStatus();
  const std::string others = uses == 1 ? "" : absl::StrCat(" and ", uses - 1, uses == 2 ? " other job" : " other jobs");
  return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is used by jobs/", jobs_.AUserOf(name), others,
                                                               "; cancel or await what uses it first")),
                    "IN_USE");
}

absl::Status State::DeleteResource(ResourceKind kind, const std::string& id) {
  const std::string name = ResourceName(kind, id);
  const auto found = resources_.find(name);
  if (found == resources_.end()) return DoesNotExist(name);
  if (absl::Status status = CheckUnused(name); !status.ok()) return status;
  const Stored stored = found->second;
  resources_.erase(found);
  undo_.push_back([this, name, stored] { resources_[name] = stored; });
  if (kind == ResourceKind::kBaseModel) ChangeSpeeds(id).SetModel(id, {});  // the name may come to mean another one
  CountStored(stored.tenant, -stored.bytes);
  writes_.resources.push_back({kind, id, std::nullopt});
  return absl::OkStatus();
}

absl::Status State::SetAlias(Alias alias) {
  const auto model = models_.find(alias.model);
  const std::string name = NameOfVersion(alias.model, alias.version);
  if (model == models_.end() || alias.version > model->second.latest || !Exists(name)) return DoesNotExist(name);
  writes_.aliases.push_back(std::move(alias));
  return absl::OkStatus();
}

absl::Status State::DeleteVersion(const std::string& model, int version, const std::vector<Alias>& aliases,
                                  int64_t bytes) {
  const std::string name = NameOfVersion(model, version);
  const auto found = models_.find(model);
  if (found == models_.end() || version > found->second.latest || !Exists(name)) return DoesNotExist(name);
  for (const std::vector<Alias>& list : {aliases, writes_.aliases}) {
    for (const Alias& alias : list) {
      if (alias.model != model || alias.version != version) continue;
      return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is what the alias ", alias.name,
                                                                   " points to; point it to another version, or delete "
                                                                   "it first")),
                        "IN_USE");
    }
  }
  if (absl::Status status = CheckUnused(name); !status.ok()) return status;
  deleted_versions_.insert(name);
  undo_.push_back([this, name] { deleted_versions_.erase(name); });
  CountStored(found->second.tenant, -bytes);
  writes_.deleted_versions.emplace_back(model, version);
  return absl::OkStatus();
}

void State::Publish(const Job& job, Report report, absl::Time now) {
  Model& model = models_[job.model];
  undo_.push_back([this, name = job.model, before = model] { models_[name] = before; });
  model = {job.tenant, std::max(model.latest, epoch_ * kVersionsPerEpoch) + 1};
  ModelVersion version{.model = job.model,
                       .version = model.latest,
                       .job = job.id,
                       .tenant = job.tenant,
                       .attempt = job.attempt,
                       .base_model = job.base_model,
                       .create_time = now,
                       .payload = std::move(report.version_payload),
                       .bytes = report.version_bytes};
  const std::string name = NameOfVersion(version.model, version.version);
  CountStored(version.tenant, version.bytes);
  writes_.versions.push_back(std::move(version));
  jobs_.Update(job, [&](Job& j) { j.model_version = name; });
  AddEvent(job, Event{.attempt = job.attempt, .type = "published", .message = name}, now);
  Apply(job, JobInput::kArtifactStored, "published " + name, now);
}

}  // namespace luthier
