// What jobs name besides a node: the tenant whose share they use, the datasets and base models that they are made from,
// and the versions of models that they publish.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/core/reason.h"
#include "server/core/state.h"

namespace luthier {

std::string NameOfVersion(const std::string& model, int version) {
  return absl::StrCat("models/", model, "/versions/", version);
}

std::string ResourceName(ResourceKind kind, const std::string& id) {
  return absl::StrCat(kind == ResourceKind::kDataset ? "datasets/" : "baseModels/", id);
}

void State::SetTenant(const Tenant& tenant, absl::Time now) {
  Tenant& mine = ChangeTenant(tenant.id);
  Tenant changed = tenant;
  changed.usage = mine.UsageAt(now);
  changed.usage_time = now;
  mine = changed;
  unsettled_ = true;
}

void State::Charge(const std::string& tenant, double device_seconds, absl::Time now) {
  ChangeTenant(tenant).Charge(device_seconds, now);
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
  std::string text = absl::StrCat("tenant ", id, " uses ", load.running_devices,
                                  tenant.max_devices > 0 ? absl::StrCat(" of ", tenant.max_devices) : "",
                                  " devices and has ", load.waiting, " jobs waiting; ");
  absl::StrAppend(&text, "it used ", static_cast<int64_t>(tenant.UsageAt(now) / 3600),
                  " device-hours lately, with weight ", tenant.weight);
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

absl::Status State::AddResource(ResourceKind kind, Resource resource) {
  const std::string name = ResourceName(kind, resource.id);
  if (!resources_.insert(name).second) return absl::AlreadyExistsError(name + " exists");
  undo_.push_back([this, name] { resources_.erase(name); });
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
  if (resources_.count(name) == 0) return DoesNotExist(name);
  if (absl::Status status = CheckUnused(name); !status.ok()) return status;
  resources_.erase(name);
  undo_.push_back([this, name] { resources_.insert(name); });
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

absl::Status State::DeleteVersion(const std::string& model, int version, const std::vector<Alias>& aliases) {
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
  writes_.deleted_versions.emplace_back(model, version);
  return absl::OkStatus();
}

void State::Publish(const Job& job, std::string payload, absl::Time now) {
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
                       .payload = std::move(payload)};
  const std::string name = NameOfVersion(version.model, version.version);
  writes_.versions.push_back(std::move(version));
  jobs_.Update(job, [&](Job& j) { j.model_version = name; });
  AddEvent(job, Event{.attempt = job.attempt, .type = "published", .message = name}, now);
  Apply(job, JobInput::kArtifactStored, "published " + name, now);
}

}  // namespace luthier
