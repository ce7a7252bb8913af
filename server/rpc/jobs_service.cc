#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "google/protobuf/util/field_mask_util.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/plan/job_spec.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "server/core/reason.h"
#include "server/loop/recorded_jobs.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/job_streams.h"
#include "server/rpc/services.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

using google::protobuf::util::FieldMaskUtil;

// A client may not make the server prepare a statement for every list it thinks of.
constexpr int kMaxEventTypes = 16;
constexpr size_t kMaxRequestId = 64;
// Jobs that a forecast looks at. It grows with their square: some 50 ms for these.
constexpr size_t kForecastCandidates = 300;

void CheckPriority(int priority, std::vector<std::string>& violations) {
  if (std::abs(priority) <= kMaxPriority) return;
  violations.push_back(
      absl::StrCat("priority: ", priority, " is out of range; give -", kMaxPriority, " to ", kMaxPriority));
}

void CheckLabels(const v1::FineTuningJob& job, std::vector<std::string>& violations) {
  const std::map<std::string, std::string> labels(job.labels().begin(), job.labels().end());
  for (std::string& violation : LabelViolations(labels)) violations.push_back(std::move(violation));
}

absl::Status CheckRequest(const v1::CreateFineTuningJobRequest& request) {
  std::vector<std::string> violations;
  if (!request.job_id().empty()) {
    if (absl::Status status = CheckId("job_id", request.job_id()); !status.ok())
      violations.emplace_back(status.message());
  }
  if (request.request_id().size() > kMaxRequestId) {
    violations.push_back(absl::StrCat("request_id: has ", request.request_id().size(), " characters; give a UUID"));
  }
  if (!request.job().tenant().empty()) {
    if (absl::Status status = CheckId("tenant", request.job().tenant()); !status.ok())
      violations.emplace_back(status.message());
  }
  if (!v1::ServiceClass_IsValid(request.job().service_class()))
    violations.push_back("service_class: is unknown to this server");
  CheckPriority(request.job().priority(), violations);
  CheckLabels(request.job(), violations);
  return violations.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

// Streams use the callback API, since thousands of them mostly wait; the other calls take a thread for a moment.
using JobsBase = v1::FineTuningService::WithCallbackMethod_WatchFineTuningJob<
    v1::FineTuningService::WithCallbackMethod_StreamJobMetrics<
        v1::FineTuningService::WithCallbackMethod_TailJobLogs<v1::FineTuningService::Service>>>;

class JobsService final : public JobsBase {
 public:
  explicit JobsService(Backend& backend) : backend_(backend) {}

  grpc::Status CreateFineTuningJob(grpc::ServerContext* context, const v1::CreateFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "CreateFineTuningJob",
                  [&](Call& call) { return Create(call, *request, *response); });
  }
  grpc::Status GetFineTuningJob(grpc::ServerContext* context, const v1::GetFineTuningJobRequest* request,
                                v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "GetFineTuningJob",
                  [&](Call& call) { return Get(call, request->name(), *response); });
  }
  grpc::Status ListFineTuningJobs(grpc::ServerContext* context, const v1::ListFineTuningJobsRequest* request,
                                  v1::ListFineTuningJobsResponse* response) override {
    return Handle(backend_, *context, "ListFineTuningJobs",
                  [&](Call& call) { return List(call, *request, *response); });
  }
  grpc::Status CancelFineTuningJob(grpc::ServerContext* context, const v1::CancelFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "CancelFineTuningJob",
                  [&](Call& call) { return Step(call, request->name(), &State::Cancel, *response); });
  }
  grpc::Status PauseFineTuningJob(grpc::ServerContext* context, const v1::PauseFineTuningJobRequest* request,
                                  v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "PauseFineTuningJob",
                  [&](Call& call) { return Step(call, request->name(), &State::Pause, *response); });
  }
  grpc::Status ResumeFineTuningJob(grpc::ServerContext* context, const v1::ResumeFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "ResumeFineTuningJob",
                  [&](Call& call) { return Step(call, request->name(), &State::Resume, *response); });
  }
  grpc::Status StartFineTuningJob(grpc::ServerContext* context, const v1::StartFineTuningJobRequest* request,
                                  v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "StartFineTuningJob",
                  [&](Call& call) { return Step(call, request->name(), &State::StartHeld, *response); });
  }
  grpc::Status RetryFineTuningJob(grpc::ServerContext* context, const v1::RetryFineTuningJobRequest* request,
                                  v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "RetryFineTuningJob",
                  [&](Call& call) { return Step(call, request->name(), &State::Retry, *response); });
  }
  grpc::Status UpdateFineTuningJob(grpc::ServerContext* context, const v1::UpdateFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "UpdateFineTuningJob",
                  [&](Call& call) { return Update(call, *request, *response); });
  }
  grpc::Status CloneFineTuningJob(grpc::ServerContext* context, const v1::CloneFineTuningJobRequest* request,
                                  v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "CloneFineTuningJob",
                  [&](Call& call) { return Clone(call, *request, *response); });
  }
  grpc::Status EstimateFineTuningJob(grpc::ServerContext* context, const v1::EstimateFineTuningJobRequest* request,
                                     v1::EstimateFineTuningJobResponse* response) override {
    return Handle(backend_, *context, "EstimateFineTuningJob",
                  [&](Call& call) { return Estimate(call, *request, *response); });
  }
  grpc::Status ExplainFineTuningJob(grpc::ServerContext* context, const v1::ExplainFineTuningJobRequest* request,
                                    v1::ExplainFineTuningJobResponse* response) override {
    return Handle(backend_, *context, "ExplainFineTuningJob",
                  [&](Call& call) { return Explain(call, *request, *response); });
  }
  grpc::Status CreateJobCheckpoint(grpc::ServerContext* context, const v1::CreateJobCheckpointRequest* request,
                                   v1::CreateJobCheckpointResponse*) override {
    return Handle(backend_, *context, "CreateJobCheckpoint", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("parent", "jobs", request->parent()));
      return Change(call, id, [&](State& state, absl::Time) { return state.Checkpoint(id); });
    });
  }
  grpc::ServerWriteReactor<v1::StreamJobMetricsResponse>* StreamJobMetrics(
      grpc::CallbackServerContext* context, const v1::StreamJobMetricsRequest* request) override {
    return StartJobMetrics(backend_, *context, *request);
  }
  grpc::ServerWriteReactor<v1::TailJobLogsResponse>* TailJobLogs(grpc::CallbackServerContext* context,
                                                                 const v1::TailJobLogsRequest* request) override {
    return StartJobLogs(backend_, *context, *request);
  }
  grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* WatchFineTuningJob(
      grpc::CallbackServerContext* context, const v1::WatchFineTuningJobRequest* request) override {
    return StartJobWatch(backend_, *context, *request);
  }
  grpc::Status ListJobEvents(grpc::ServerContext* context, const v1::ListJobEventsRequest* request,
                             v1::ListJobEventsResponse* response) override {
    return Handle(backend_, *context, "ListJobEvents",
                  [&](Call& call) { return ListEvents(call, *request, *response); });
  }
  grpc::Status ListJobCheckpoints(grpc::ServerContext* context, const v1::ListJobCheckpointsRequest* request,
                                  v1::ListJobCheckpointsResponse* response) override {
    return Handle(backend_, *context, "ListJobCheckpoints",
                  [&](Call& call) { return ListCheckpoints(call, *request, *response); });
  }

 private:
  // Whether the request is a repeated one is known to the state loop, and asked only there: here every call would wait
  // for a reader.
  absl::Status Create(Call& call, const v1::CreateFineTuningJobRequest& request, v1::FineTuningJob& response) {
    call.subject = "jobs/" + request.job_id();
    const JobRequest identity{request.request_id(),
                              Sha256Hex(absl::StrCat(request.job_id(), request.hold() ? "\nheld\n" : "\n",
                                                     DeterministicBytes(request.job()), call.tenant))};
    LUTHIER_RETURN_IF_ERROR(CheckRequest(request));
    if (!request.job().tenant().empty() && !call.Sees(request.job().tenant())) {
      return absl::PermissionDeniedError(
          absl::StrCat("tenant: the token is one of tenant ", call.tenant, "; leave the field out"));
    }
    const absl::StatusOr<std::shared_ptr<const Plan>> planned = PlanOf(call, request.job().spec());
    if (!planned.ok())
      return request.validate_only() ? planned.status() : Replay(call, identity, planned.status(), response);
    const std::shared_ptr<const Plan>& plan = *planned;
    v1::FineTuningJob own;  // what the job has beside the plan
    own.set_uid(RandomUuid());
    *own.mutable_labels() = request.job().labels();
    Job job;
    job.id = request.job_id().empty() ? NewJobId(absl::Now()) : request.job_id();
    job.base_model = plan->base_model;
    job.datasets = plan->datasets;
    job.model = plan->model;
    LUTHIER_RETURN_IF_ERROR(CheckModel(call, job.model.empty() ? job.id : job.model));
    job.devices = plan->devices;
    job.priority = request.job().priority();
    if (!request.job().tenant().empty()) job.tenant = request.job().tenant();
    if (!call.tenant.empty()) job.tenant = call.tenant;
    if (request.job().service_class() != v1::SERVICE_CLASS_UNSPECIFIED) {
      job.service_class = static_cast<ServiceClass>(request.job().service_class());
    }
    job.estimate = backend_.planner.DurationOf(*plan).value_or(absl::ZeroDuration());
    if (request.hold()) job.state = JobState::kHeld;
    if (request.validate_only()) {
      job.create_time = absl::Now();
      response = ToProto(job, plan->job);
      response.MergeFrom(own);
      return absl::OkStatus();
    }
    int64_t newest = 0;
    LUTHIER_RETURN_IF_ERROR(
        backend_.loop.Run([&, bytes = JoinStoredSpec(plan->job_bytes + own.SerializeAsString(), plan->start_bytes)](
                              State& state, absl::Time now) mutable {
          newest = state.last_number();
          return WithoutOthers(call, CreateJob(state, backend_.store, job, identity, std::move(bytes), now));
        }));
    // A request with the same id was first: the job is that one's.
    if (job.number <= newest) return Get(call, "jobs/" + job.id, response);
    call.subject = "jobs/" + job.id;
    response = ToProto(job, plan->job);
    response.MergeFrom(own);
    return absl::OkStatus();
  }

  // A repeated request is answered with what it created, also if dataset or base model are gone by now. `refusal`: what
  // it would get else.
  absl::Status Replay(const Call& call, const JobRequest& identity, absl::Status refusal, v1::FineTuningJob& response) {
    if (identity.id.empty()) return refusal;
    LUTHIER_ASSIGN_OR_RETURN(const auto earlier, backend_.store.ReplayedRequest(identity.id));
    if (!earlier || !call.Sees(earlier->second.job.tenant)) return refusal;
    LUTHIER_RETURN_IF_ERROR(CheckReplay(identity, earlier->first, earlier->second.job.id));
    return Answer(earlier->second, response);
  }

  // The words of another tenant's job are not for the caller.
  static absl::Status WithoutOthers(const Call& call, absl::Status status) {
    if (call.tenant.empty() || ReasonOf(status) != "REQUEST_ID_REUSED") return status;
    return WithReason(absl::AlreadyExistsError("request_id: was used for another job; choose a new one"),
                      "REQUEST_ID_REUSED");
  }

  absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const Call& call, const v1::FineTuningSpec& spec) {
    LUTHIER_RETURN_IF_ERROR(CheckVisible(call, spec));
    return backend_.planner.PlanOf(spec);
  }

  // What a spec names must be the caller's own; base models are everybody's.
  absl::Status CheckVisible(const Call& call, const v1::FineTuningSpec& spec) {
    if (call.tenant.empty()) return absl::OkStatus();
    const v1::DatasetSelection& selection = spec.dataset();
    std::vector<absl::string_view> references = {selection.dataset(), selection.train(), selection.validation(),
                                                 selection.test()};
    for (const v1::WeightedDataset& weighted : selection.mixture()) references.push_back(weighted.dataset());
    for (absl::string_view reference : references) {
      if (reference.empty()) continue;
      absl::ConsumePrefix(&reference, "datasets/");
      const std::string id(reference.substr(0, reference.find('/')));
      const absl::StatusOr<Resource> dataset = backend_.store.GetResource(ResourceKind::kDataset, id);
      if (!dataset.ok() || !call.Sees(TenantOf(*dataset))) return DoesNotExist("datasets/" + id);
    }
    return absl::OkStatus();
  }

  // A model has one tenant: nobody publishes beside another's versions.
  absl::Status CheckModel(const Call& call, const std::string& model) {
    if (call.tenant.empty()) return absl::OkStatus();
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, backend_.store.Versions(model));
    for (const ModelVersion& version : versions) {
      LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, backend_.store.GetJob(version.job));
      if (!call.Sees(job.job.tenant)) {
        return absl::AlreadyExistsError(absl::StrCat("output_model: '", model, "' is taken; choose another one"));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<RecordedJob> Find(Call& call, const std::string& name) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    LUTHIER_ASSIGN_OR_RETURN(RecordedJob job, backend_.store.GetJob(id));
    if (!call.Sees(job.job.tenant)) return DoesNotExist("jobs/" + id);
    return job;
  }

  absl::Status Answer(const RecordedJob& job, v1::FineTuningJob& response) {
    response = ToProto(job);
    return AddPendingReasons({&response});
  }

  absl::Status Get(Call& call, const std::string& name, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(call, name));
    return Answer(job, response);
  }

  // Only the state knows why a job waits: it follows from all the others and the nodes.
  absl::Status AddPendingReasons(const std::vector<v1::FineTuningJob*>& jobs) {
    const bool any = std::any_of(jobs.begin(), jobs.end(), [](const v1::FineTuningJob* job) {
      const auto state = static_cast<JobState>(job->state());
      return IsWaiting(state) || state == JobState::kHeld || state == JobState::kPaused;
    });
    if (!any) return absl::OkStatus();
    return backend_.loop.Run([&](State& state, absl::Time now) {
      for (v1::FineTuningJob* job : jobs) {
        const Job* live = state.Find(absl::string_view(job->name()).substr(5));  // after "jobs/"
        if (live == nullptr || live->state != static_cast<JobState>(job->state())) continue;
        const WaitReason reason = state.WhyItWaits(*live, now);
        job->set_pending_code(static_cast<v1::PendingReason>(reason.code));
        job->set_pending_reason(reason.message);
      }
      return absl::OkStatus();
    });
  }

  absl::Status List(const Call& call, const v1::ListFineTuningJobsRequest& request,
                    v1::ListFineTuningJobsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    JobQuery query{.tenant = call.tenant, .before = page.first, .limit = page.second + 1};
    for (const int state : request.states()) query.states.insert(static_cast<JobState>(state));
    LUTHIER_ASSIGN_OR_RETURN(std::vector<RecordedJob> jobs, backend_.store.ListJobs(query));
    if (static_cast<int>(jobs.size()) > page.second) {
      jobs.pop_back();
      response.set_next_page_token(absl::StrCat(jobs.back().job.number));
    }
    std::vector<v1::FineTuningJob*> messages;
    for (const RecordedJob& job : jobs) {
      messages.push_back(response.add_jobs());
      *messages.back() = ToProto(job);
    }
    return AddPendingReasons(messages);
  }

  // Runs a command on a job that may be over, and then is only in the store.
  absl::Status Change(Call& call, const std::string& id, const Command& command) {
    call.subject = "jobs/" + id;
    return backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      LUTHIER_RETURN_IF_ERROR(BringIn(state, backend_.store, id));
      if (!call.Sees(state.Find(id)->tenant)) return DoesNotExist("jobs/" + id);
      return command(state, now);
    });
  }

  // What a user asks of a job, over or not: the state knows which steps it has.
  absl::Status Step(Call& call, const std::string& name, absl::Status (State::*step)(const std::string&, absl::Time),
                    v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    LUTHIER_RETURN_IF_ERROR(Change(call, id, [&](State& state, absl::Time now) { return (state.*step)(id, now); }));
    return Get(call, name, response);
  }

  absl::Status Update(Call& call, const v1::UpdateFineTuningJobRequest& request, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("job.name", "jobs", request.job().name()));
    std::vector<std::string> violations;
    JobUpdate update;
    for (const std::string& path : request.update_mask().paths()) {
      if (path == "priority") {
        CheckPriority(request.job().priority(), violations);
        update.priority = request.job().priority();
      } else if (path == "labels") {
        CheckLabels(request.job(), violations);
        v1::FineTuningJob labels;
        *labels.mutable_labels() = request.job().labels();
        update.labels = labels.SerializeAsString();
      } else {
        violations.push_back(absl::StrCat("update_mask: '", path, "' cannot be changed; give priority or labels"));
      }
    }
    if (request.update_mask().paths().empty())
      violations.push_back("update_mask: is missing; give priority, labels, or both");
    if (!request.job().etag().empty() && !ParseEtag(request.job().etag(), update.revision)) {
      violations.push_back("job.etag: is none of this server; give that of the job as it was read");
    }
    if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
    LUTHIER_RETURN_IF_ERROR(
        Change(call, id, [&](State& state, absl::Time now) { return state.Update(id, update, now); }));
    return Get(call, request.job().name(), response);
  }

  absl::Status Clone(Call& call, const v1::CloneFineTuningJobRequest& request, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob source, Find(call, request.name()));
    const v1::FineTuningJob original = ToProto(source);
    v1::CreateFineTuningJobRequest creation;
    v1::FineTuningJob& job = *creation.mutable_job();
    *job.mutable_spec() = original.spec();
    *job.mutable_labels() = original.labels();
    job.set_tenant(original.tenant());
    job.set_service_class(original.service_class());
    job.set_priority(original.priority());
    for (const std::string& path : request.update_mask().paths()) {
      const std::string root = path.substr(0, path.find('.'));
      const bool settable =
          root == "spec" || path == "labels" || path == "tenant" || path == "service_class" || path == "priority";
      if (!settable || !FieldMaskUtil::IsValidPath<v1::FineTuningJob>(path)) {
        return absl::InvalidArgumentError(
            absl::StrCat("update_mask: '", path,
                         "' is no field that a clone can have of its own; give "
                         "spec or a field of it, labels, tenant, service_class or priority"));
      }
    }
    FieldMaskUtil::MergeOptions replace;
    replace.set_replace_message_fields(true);
    replace.set_replace_repeated_fields(true);
    if (absl::c_linear_search(request.update_mask().paths(), "labels"))
      job.clear_labels();  // maps are merged whatever the options
    FieldMaskUtil::MergeMessageTo(request.job(), request.update_mask(), replace, &job);
    creation.set_job_id(request.job_id());
    creation.set_request_id(request.request_id());
    creation.set_validate_only(request.validate_only());
    creation.set_hold(request.hold());
    return Create(call, creation, response);
  }

  absl::Status Estimate(const Call& call, const v1::EstimateFineTuningJobRequest& request,
                        v1::EstimateFineTuningJobResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan, PlanOf(call, request.spec()));
    response = plan->estimate;
    *response.mutable_resolved() = plan->job.resolved();
    *response.mutable_warnings() = plan->job.warnings();
    if (const std::optional<absl::Duration> duration = backend_.planner.DurationOf(*plan)) {
      *response.mutable_duration() = ToProto(*duration);
      response.set_duration_reason(absl::StrCat("from the speed of other ", plan->kind, " jobs"));
    } else {
      response.set_duration_reason(
          absl::StrCat("no ", plan->kind, " job has reported its speed to this server since it started"));
    }
    return backend_.loop.Run([&](State& state, absl::Time) {
      for (const auto& [id, node] : state.nodes()) {
        if (node.ready && node.devices >= plan->devices && FitsInto(node, plan->estimate.memory().total_bytes())) {
          response.add_fitting_nodes("nodes/" + id);
        }
      }
      return absl::OkStatus();
    });
  }

  absl::Status Explain(Call& call, const v1::ExplainFineTuningJobRequest& request,
                       v1::ExplainFineTuningJobResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(call, request.name()));
    response.set_state(static_cast<v1::FineTuningJob::State>(job.job.state));
    std::unique_ptr<DetachedSnapshot> detached;
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) {
      const Job* live = state.Find(job.job.id);
      if (live == nullptr) return absl::OkStatus();
      const WaitReason reason = state.WhyItWaits(*live, now);
      response.set_state(static_cast<v1::FineTuningJob::State>(live->state));
      response.set_pending_code(static_cast<v1::PendingReason>(reason.code));
      response.set_pending_reason(reason.message);
      response.set_tenant_summary(state.SummaryOf(live->tenant, now));
      // Played forward outside of the loop, where nothing waits for it.
      if (IsWaiting(live->state)) detached = Detach(state.TakeSnapshot(now, kForecastCandidates));
      return absl::OkStatus();
    }));
    if (detached == nullptr) return absl::OkStatus();
    const Forecast forecast = ForecastOf(job.job.number, detached->snapshot);
    response.set_jobs_ahead(forecast.ahead);
    if (forecast.start != absl::InfiniteFuture()) *response.mutable_expected_start_time() = ToProto(forecast.start);
    if (forecast.late_start != absl::InfiniteFuture())
      *response.mutable_late_start_time() = ToProto(forecast.late_start);
    return absl::OkStatus();
  }

  absl::Status ListEvents(Call& call, const v1::ListJobEventsRequest& request, v1::ListJobEventsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(call, request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    if (request.types_size() > kMaxEventTypes) {
      return absl::InvalidArgumentError(
          absl::StrCat("types: ", request.types_size(), " given; give at most ", kMaxEventTypes));
    }
    const std::vector<std::string> types(request.types().begin(), request.types().end());
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job.job.number, page.first, page.second, types));
    for (const Event& event : events) *response.add_events() = ToProto(event);
    // The token is the last sequence sent.
    if (static_cast<int>(events.size()) == page.second)
      response.set_next_page_token(absl::StrCat(events.back().sequence));
    return absl::OkStatus();
  }

  absl::Status ListCheckpoints(Call& call, const v1::ListJobCheckpointsRequest& request,
                               v1::ListJobCheckpointsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(call, request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job.job.number, 0, 1000000, {"checkpoint"}));
    for (const Event& event : events) {
      const v1::JobEvent message = ToProto(event);
      const auto& fields = message.data().fields();
      const auto number = [&](const char* field) {
        return fields.count(field) ? fields.at(field).number_value() : 0.0;
      };
      v1::Checkpoint& checkpoint = *response.add_checkpoints();
      checkpoint.set_step(static_cast<int64_t>(number("step")));
      checkpoint.set_name(absl::StrCat("jobs/", job.job.id, "/checkpoints/", checkpoint.step()));
      checkpoint.set_attempt(event.attempt);
      checkpoint.set_size_bytes(static_cast<int64_t>(number("bytes")));
      checkpoint.set_loss(number("loss"));
      *checkpoint.mutable_create_time() = message.create_time();
    }
    return absl::OkStatus();
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFineTuningService(Backend& backend) {
  return std::make_unique<JobsService>(backend);
}

}  // namespace luthier
