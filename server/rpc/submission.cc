#include "server/rpc/submission.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/plan/job_spec.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/dataset_use.h"
#include "server/rpc/model_versions.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr size_t kMaxRequestId = 64;

// Those that a spec names must be the caller's own.
absl::Status CheckDatasets(Backend& backend, const Call& call, const v1::DatasetSelection& selection) {
  const auto sees = [&](const v1::Dataset& dataset) { return call.Sees(TenantOf(dataset)); };
  return FindParts(backend.store, selection, sees).status();
}

absl::Status CheckBaseModel(Backend& backend, const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  const std::string id(absl::StripPrefix(name, "baseModels/"));
  const absl::Status found = backend.store.GetResource(ResourceKind::kBaseModel, id).status();
  if (!absl::IsNotFound(found)) return found;
  return InField("base_model", DoesNotExist(NameShown("baseModels/", id)));
}

// The version that a field names. Errors: those of FindVersion, about the field.
absl::StatusOr<v1::ModelVersion> VersionIn(absl::string_view field, Backend& backend, const Call& call,
                                           const std::string& name) {
  absl::StatusOr<v1::ModelVersion> version = FindVersion(backend.store, call, name);
  if (version.ok()) return version;
  return InField(field, version.status());
}

// Puts the number of a version in the place of an alias, which may point to another one tomorrow.
absl::Status SettleStart(Backend& backend, const Call& call, v1::LoraTuning& lora) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version,
                           VersionIn("lora.start_from", backend, call, lora.start_from()));
  lora.set_start_from(version.name());
  return absl::OkStatus();
}

// The same for an export, whose base model and output follow from its version.
absl::Status SettleExport(Backend& backend, const Call& call, v1::FineTuningSpec& spec) {
  v1::ModelExport& wanted = *spec.mutable_model_export();
  LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version,
                           VersionIn("model_export.model_version", backend, call, wanted.model_version()));
  wanted.set_model_version(version.name());
  if (spec.base_model().empty()) spec.set_base_model(version.base_model());
  if (!spec.output_model().empty()) return absl::OkStatus();
  LUTHIER_ASSIGN_OR_RETURN(const VersionName name, ParseVersionName(version.name()));
  const char* suffix = wanted.format() == v1::ModelExport::GGUF_ADAPTER ? "-gguf" : "-merged";
  spec.set_output_model(absl::StrCat(name.model, suffix));
  return absl::OkStatus();
}

// The plan of a spec, as PlanFor() has it, but for its errors: whatever is noticed first.
absl::StatusOr<std::shared_ptr<const Plan>> FindPlan(Backend& backend, const Call& call, const std::string& tenant,
                                                     const v1::FineTuningSpec& spec,
                                                     std::shared_ptr<const Plan> known) {
  if (!call.tenant.empty()) LUTHIER_RETURN_IF_ERROR(CheckDatasets(backend, call, spec.dataset()));
  const Planner::Asker asker = {tenant, [&call] { return call.IsAbandoned(); }};
  if (!NamesVersion(spec)) return known != nullptr ? known : backend.planner.PlanOf(spec, asker);
  v1::FineTuningSpec settled = spec;
  LUTHIER_RETURN_IF_ERROR(spec.has_model_export() ? SettleExport(backend, call, settled)
                                                  : SettleStart(backend, call, *settled.mutable_lora()));
  return backend.planner.PlanOf(settled, asker);
}

}  // namespace

SpecBytes Submission::Spec() const { return {plan->record, own.SerializeAsString()}; }

// Messages that lie one behind the other are read as one: the plan's part was serialized when it was made.
std::string Submission::Bytes() const { return ToProto(job, own).SerializeAsString() + plan->job_bytes; }

void CheckPriority(int priority, std::vector<std::string>& violations) {
  if (priority >= -kMaxPriority && priority <= kMaxPriority) return;
  violations.push_back(
      absl::StrCat("priority: ", priority, " is out of range; give -", kMaxPriority, " to ", kMaxPriority));
}

void CheckLabels(const v1::FineTuningJob& job, std::vector<std::string>& violations) {
  const std::map<std::string, std::string> labels(job.labels().begin(), job.labels().end());
  for (std::string& violation : LabelViolations(labels)) violations.push_back(std::move(violation));
}

void CheckJob(const v1::FineTuningJob& job, std::vector<std::string>& violations) {
  if (!job.tenant().empty()) {
    if (absl::Status status = CheckId("tenant", job.tenant()); !status.ok()) violations.emplace_back(status.message());
  }
  if (!v1::ServiceClass_IsValid(job.service_class())) {
    violations.push_back(
        absl::StrCat("service_class: ", static_cast<int>(job.service_class()),
                     " is unknown to this server; give SERVICE_CLASS_INTERACTIVE, _STANDARD or _BACKGROUND"));
  }
  CheckPriority(job.priority(), violations);
  CheckLabels(job, violations);
  CheckRetention(job, violations);
  CheckDeadline(job, absl::Now(), violations);
}

void CheckRetention(const v1::FineTuningJob& job, std::vector<std::string>& violations) {
  const google::protobuf::Duration& retention = job.retention();
  const char* wrong = nullptr;
  if (retention.seconds() < 0 || retention.nanos() < 0) {
    wrong = " is negative; give 0 or more";
  } else if (retention.nanos() > 999'999'999) {
    wrong = " has more than 999,999,999 nanos; give less";
  } else if (FromProto(retention) > kLongestDuration) {
    wrong = " is beyond 10,000 years; give less";
  }
  if (wrong == nullptr) return;
  violations.push_back(absl::StrCat("retention: ", absl::FormatDuration(FromProto(retention)), wrong,
                                    ", or leave it out for the server's"));
}

std::optional<absl::Duration> RetentionOf(const v1::FineTuningJob& job) {
  if (!job.has_retention()) return std::nullopt;
  return FromProto(job.retention());
}

void CheckDeadline(const v1::FineTuningJob& job, absl::Time now, std::vector<std::string>& violations) {
  if (!job.has_deadline()) return;
  const absl::Time deadline = DeadlineOf(job);
  if (deadline > now && deadline <= kLatestTime) return;
  violations.push_back(absl::StrCat("deadline: ", absl::FormatTime(absl::RFC3339_sec, deadline, absl::UTCTimeZone()),
                                    deadline > now ? " is beyond the year 9999" : " is over",
                                    "; give a time to come, or leave it out"));
}

absl::Time DeadlineOf(const v1::FineTuningJob& job) {
  if (!job.has_deadline()) return absl::InfiniteFuture();
  return absl::FromUnixSeconds(job.deadline().seconds()) + absl::Nanoseconds(job.deadline().nanos());
}

void CheckRequestId(const std::string& id, std::vector<std::string>& violations) {
  if (id.size() <= kMaxRequestId) return;
  violations.push_back(absl::StrCat("request_id: has ", id.size(), " characters; give a UUID"));
}

absl::Status WithoutOthers(const Call& call, absl::Status status) {
  if (call.tenant.empty() || ReasonOf(status) != "REQUEST_ID_REUSED") return status;
  return WithReason(absl::AlreadyExistsError("request_id: was used for another job; choose a new one"),
                    "REQUEST_ID_REUSED");
}

absl::Status CheckNames(Backend& backend, const Call& call, const v1::FineTuningSpec& spec) {
  absl::Status version;
  if (spec.has_model_export()) {
    version = VersionIn("model_export.model_version", backend, call, spec.model_export().model_version()).status();
  } else if (!spec.lora().start_from().empty()) {
    version = VersionIn("lora.start_from", backend, call, spec.lora().start_from()).status();
  }
  return AllOf({CheckBaseModel(backend, spec.base_model()), version, CheckDatasets(backend, call, spec.dataset())});
}

bool NamesVersion(const v1::FineTuningSpec& spec) {
  return spec.has_model_export() || !spec.lora().start_from().empty();
}

std::string TenantOf(const Call& call, const std::string& wanted) {
  if (!call.tenant.empty()) return call.tenant;
  return wanted.empty() ? Job().tenant : wanted;
}

absl::StatusOr<std::shared_ptr<const Plan>> PlanFor(Backend& backend, const Call& call, const std::string& tenant,
                                                    const v1::FineTuningSpec& spec, std::shared_ptr<const Plan> known) {
  absl::StatusOr<std::shared_ptr<const Plan>> plan = FindPlan(backend, call, tenant, spec, std::move(known));
  if (!absl::IsInvalidArgument(plan.status()) && !absl::IsNotFound(plan.status())) return plan;
  // It says the first that was noticed.
  LUTHIER_RETURN_IF_ERROR(AllOf({CheckSpec(spec), CheckNames(backend, call, spec)}));
  return plan;
}

absl::StatusOr<Submission> Prepare(Backend& backend, const Call& call, const v1::FineTuningJob& wanted,
                                   const std::string& id, std::shared_ptr<const Plan> known) {
  if (!wanted.tenant().empty() && !call.Sees(wanted.tenant())) {
    return absl::PermissionDeniedError(
        absl::StrCat("tenant: ", wanted.tenant(), " is not that of the token, ", call.tenant, "; leave the field out"));
  }
  Submission made;
  made.job.tenant = TenantOf(call, wanted.tenant());
  LUTHIER_ASSIGN_OR_RETURN(made.plan, PlanFor(backend, call, made.job.tenant, wanted.spec(), std::move(known)));
  made.own.set_uid(RandomUuid());
  *made.own.mutable_labels() = wanted.labels();
  Job& job = made.job;
  job.id = id;
  job.datasets = made.plan->datasets;
  job.model = made.plan->model;
  SetNeeds(*made.plan, job);
  job.priority = wanted.priority();
  job.retention = RetentionOf(wanted);
  job.deadline = DeadlineOf(wanted);
  if (wanted.service_class() != v1::SERVICE_CLASS_UNSPECIFIED) {
    job.service_class = static_cast<ServiceClass>(wanted.service_class());
  }
  return made;
}

absl::StatusOr<RecordedJob> EarlierOf(Backend& backend, const Call& call, const JobRequest& request,
                                      const absl::Status& refusal) {
  if (request.id.empty()) return refusal;
  LUTHIER_ASSIGN_OR_RETURN(auto earlier, backend.store.ReplayedRequest(request.id));
  if (!earlier || !call.Sees(earlier->second.job.tenant)) return refusal;
  LUTHIER_RETURN_IF_ERROR(CheckReplay(request, earlier->first, earlier->second.job.id));
  return std::move(earlier->second);
}

}  // namespace luthier
