#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "google/protobuf/util/field_mask_util.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "server/core/forecast.h"
#include "server/core/placement.h"
#include "server/core/reason.h"
#include "server/loop/recorded_jobs.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/job_answers.h"
#include "server/rpc/job_creation.h"
#include "server/rpc/job_filter.h"
#include "server/rpc/job_streams.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/submission.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

using google::protobuf::util::FieldMaskUtil;

constexpr const char* kChangeable = "priority, labels, retention or deadline";
// A client may not make the server prepare a statement for every list it thinks of.
constexpr int kMaxEventTypes = 16;
// Jobs that a forecast looks at, and as many that wait for others of their sweep: up to 600. It grows with their
// square: some 50 ms for 300.
constexpr size_t kForecastCandidates = 300;
// Jobs whose labels a call looks at, which takes some 30 ms: the record does not know labels.
constexpr int kLabelCandidates = 1000;

absl::Status CheckStates(const google::protobuf::RepeatedField<int>& asked) {
  for (const int state : asked) {
    if (state == v1::FineTuningJob::STATE_UNSPECIFIED || !v1::FineTuningJob::State_IsValid(state))
      return absl::InvalidArgumentError(absl::StrCat("states: ", state, " is no state; give QUEUED, RUNNING, …"));
  }
  return absl::OkStatus();
}

absl::Status CheckTypes(int given) {
  if (given <= kMaxEventTypes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("types: ", given, " given; give at most ", kMaxEventTypes));
}

// Leaves of `states` (empty: all) those that are asked for (none: all). False if none is left.
bool Narrow(const google::protobuf::RepeatedField<int>& asked, std::set<JobState>& states) {
  std::set<JobState> both;
  for (const int state : asked) {
    if (const auto each = static_cast<JobState>(state); states.empty() || states.count(each) > 0) both.insert(each);
  }
  if (!asked.empty()) states = both;
  return asked.empty() || !both.empty();
}

// By name. None where those of one kind are too few: CPUs and GPUs do not train together.
std::set<std::string> FittingNodes(const Job& job, const std::map<std::string, Node>& nodes) {
  std::set<std::string> with_gpus, without;
  for (const auto& [id, node] : nodes) {
    if (node.ready && CouldRun(job, node)) (node.gpus ? with_gpus : without).insert(id);
  }
  std::set<std::string> fitting;
  for (const std::set<std::string>& kind : {with_gpus, without}) {
    if (static_cast<int>(kind.size()) >= job.nodes) fitting.insert(kind.begin(), kind.end());
  }
  return fitting;
}

// Streams use the callback API, since thousands of them mostly wait, and so do submissions, of which many wait for one
// commit: a thread to wake for each cost more than the rest of its work. The other calls take a thread for a moment.
using JobsBase = v1::FineTuningService::WithRawCallbackMethod_CreateFineTuningJob<
    v1::FineTuningService::WithCallbackMethod_WatchFineTuningJob<
        v1::FineTuningService::WithCallbackMethod_StreamJobMetrics<
            v1::FineTuningService::WithCallbackMethod_TailJobLogs<v1::FineTuningService::Service>>>>;

// Of the paths that name nothing changeable, the first few. Returns how many more there are: a mask has room for a
// million.
int64_t RefuseOtherPaths(const google::protobuf::FieldMask& mask, std::vector<std::string>& violations) {
  int64_t more = 0;
  for (const std::string& path : mask.paths()) {
    if (path == "priority" || path == "labels" || path == "retention" || path == "deadline") continue;
    if (violations.size() < kMostViolations) {
      violations.push_back(absl::StrCat("update_mask: ", Shown(path), " cannot be changed; give ", kChangeable));
    } else {
      ++more;
    }
  }
  return more;
}

Position PositionOf(const Event& event) { return {event.sequence, ""}; }

// What an event of the type `checkpoint` tells of one.
v1::Checkpoint CheckpointOf(const Job& job, const Event& event) {
  const v1::JobEvent message = ToProto(event);
  const auto& fields = message.data().fields();
  const auto number = [&](const char* field) { return fields.count(field) ? fields.at(field).number_value() : 0.0; };
  v1::Checkpoint checkpoint;
  checkpoint.set_step(CountOf(number("step")));
  checkpoint.set_name(absl::StrCat("jobs/", job.id, "/checkpoints/", checkpoint.step()));
  checkpoint.set_attempt(event.attempt);
  checkpoint.set_size_bytes(CountOf(number("bytes")));
  checkpoint.set_loss(number("loss"));
  *checkpoint.mutable_create_time() = message.create_time();
  if (event.attempt == job.attempt && !job.node.empty()) checkpoint.set_node("nodes/" + job.node);
  return checkpoint;
}

// What every request says that creates a job, but for the job.
template <typename Request>
v1::CreateFineTuningJobRequest CreationAskedBy(const Request& request) {
  v1::CreateFineTuningJobRequest creation;
  creation.set_job_id(request.job_id());
  creation.set_request_id(request.request_id());
  creation.set_validate_only(request.validate_only());
  creation.set_hold(request.hold());
  return creation;
}

class JobsService final : public JobsBase {
 public:
  explicit JobsService(Backend& backend) : backend_(backend) {}

  grpc::ServerUnaryReactor* CreateFineTuningJob(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) override {
    return StartJobCreation(backend_, *context, *request, *response);
  }
  grpc::Status GetFineTuningJob(grpc::ServerContext* context, const v1::GetFineTuningJobRequest* request,
                                v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "GetFineTuningJob",
                  [&](Call& call) { return GetJob(backend_, call, request->name(), *response); });
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
                  [&](Call& call) { return Retry(call, *request, *response); });
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
  grpc::Status ExportModelVersion(grpc::ServerContext* context, const v1::ExportModelVersionRequest* request,
                                  v1::FineTuningJob* response) override {
    return Handle(backend_, *context, "ExportModelVersion",
                  [&](Call& call) { return Export(call, *request, *response); });
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
      LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, FindJob(backend_, call, request->parent()));
      if (ParseStoredSpec(job.spec).job.spec().has_model_export()) {
        return WithReason(
            absl::FailedPreconditionError(absl::StrCat(
                "jobs/", id, " is an export, which writes no checkpoints; wait for its end, or cancel it")),
            "NO_CHECKPOINTS");
      }
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
  absl::Status List(const Call& call, const v1::ListFineTuningJobsRequest& request,
                    v1::ListFineTuningJobsResponse& response) {
    absl::StatusOr<JobFilter> parsed = ParseJobFilter(request.filter(), request.order_by());
    // A token is of one list: with another filter or order it would lead somewhere else.
    const std::string list =
        absl::StrCat("jobs\n", request.filter(), "\n", request.order_by(), "\n", absl::StrJoin(request.states(), ","));
    const absl::StatusOr<PageRequest> page = ParsePage(list, request.page_size(), request.page_token());
    LUTHIER_RETURN_IF_ERROR(AllOf({parsed.status(), CheckStates(request.states()), page.status()}));
    JobFilter& filter = *parsed;
    const int size = page->size;
    JobQuery& query = filter.query;
    if (!Narrow(request.states(), query.states)) return absl::OkStatus();
    query.tenant = call.tenant;
    query.cursor = page->after_number();
    query.limit = filter.labels.empty() ? size : std::max(size, kLabelCandidates);
    LUTHIER_ASSIGN_OR_RETURN(const JobPage found, backend_.store.ListJobs(query));
    int64_t next = found.next, looked_at = 0;
    PageRoom room(size);
    std::vector<v1::FineTuningJob*> messages;
    for (const RecordedJob& job : found.jobs) {
      if (room.IsFull()) {
        next = looked_at;
        break;
      }
      looked_at = job.job.number;
      v1::FineTuningJob message = ToProto(job);
      if (!filter.MatchesLabels(message)) continue;
      room.Take(message);
      messages.push_back(response.add_jobs());
      *messages.back() = std::move(message);
    }
    if (next != 0) response.set_next_page_token(PageToken(list, {next, ""}));
    LUTHIER_RETURN_IF_ERROR(AddPendingReasons(backend_, messages));
    // What has moved on meanwhile may be in none of the states that were asked for.
    const auto moved_out = [&](const v1::FineTuningJob& job) {
      return !query.states.empty() && query.states.count(static_cast<JobState>(job.state())) == 0;
    };
    auto& jobs = *response.mutable_jobs();
    jobs.erase(std::remove_if(jobs.begin(), jobs.end(), moved_out), jobs.end());
    return absl::OkStatus();
  }

  // Runs a command on a job that may be over, and then is only in the store; not again if the same request did.
  absl::Status Change(Call& call, const std::string& id, const Command& command, const JobRequest& request = {}) {
    call.subject = "jobs/" + id;
    return backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      LUTHIER_RETURN_IF_ERROR(BringIn(state, backend_.store, id));
      if (!call.Sees(state.Find(id)->tenant)) return DoesNotExist("jobs/" + id);
      const absl::StatusOr<bool> repeated = WasAnswered(state, backend_.store, request);
      if (!repeated.ok()) return WithoutOthers(call, repeated.status());
      if (*repeated) return absl::OkStatus();
      LUTHIER_RETURN_IF_ERROR(command(state, now));
      state.Remember(request, *state.Find(id));
      return absl::OkStatus();
    });
  }

  // What a user asks of a job, over or not: the state knows which steps it has.
  absl::Status Step(Call& call, const std::string& name, absl::Status (State::*step)(const std::string&, absl::Time),
                    v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    LUTHIER_RETURN_IF_ERROR(Change(call, id, [&](State& state, absl::Time now) { return (state.*step)(id, now); }));
    return GetJob(backend_, call, name, response);
  }

  // By which a change of a job is known again.
  template <typename Request>
  static JobRequest IdentityOf(const Call& call, const Request& request) {
    return {request.request_id(), Sha256Hex(absl::StrCat(std::string(request.GetDescriptor()->name()), "\n",
                                                         DeterministicBytes(request), call.tenant))};
  }

  absl::Status Retry(Call& call, const v1::RetryFineTuningJobRequest& request, v1::FineTuningJob& response) {
    std::vector<std::string> violations;
    CheckRequestId(request.request_id(), violations);
    LUTHIER_RETURN_IF_ERROR(Refusal(violations));
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, FindJob(backend_, call, request.name()));
    LUTHIER_ASSIGN_OR_RETURN(const bool inputs_remain, HasItsInputs(backend_.store, job));
    LUTHIER_RETURN_IF_ERROR(Change(
        call, job.job.id, [&](State& state, absl::Time now) { return state.Retry(job.job.id, now, inputs_remain); },
        IdentityOf(call, request)));
    return GetJob(backend_, call, request.name(), response);
  }

  absl::Status Update(Call& call, const v1::UpdateFineTuningJobRequest& request, v1::FineTuningJob& response) {
    const absl::StatusOr<std::string> id = ParseName("job.name", "jobs", request.job().name());
    call.subject = request.job().name();
    std::vector<std::string> violations;
    CheckRequestId(request.request_id(), violations);
    JobUpdate update;
    const auto& paths = request.update_mask().paths();
    const auto changes = [&](const char* field) { return absl::c_linear_search(paths, field); };
    if (changes("priority")) {
      CheckPriority(request.job().priority(), violations);
      update.priority = request.job().priority();
    }
    if (changes("labels")) {
      CheckLabels(request.job(), violations);
      v1::FineTuningJob labels;
      *labels.mutable_labels() = request.job().labels();
      update.labels = labels.SerializeAsString();
    }
    if (changes("retention")) {
      CheckRetention(request.job(), violations);
      update.retention = RetentionOf(request.job());
    }
    if (changes("deadline")) {
      CheckDeadline(request.job(), absl::Now(), violations);
      update.deadline = DeadlineOf(request.job());
    }
    const int64_t more = RefuseOtherPaths(request.update_mask(), violations);
    if (request.update_mask().paths().empty())
      violations.push_back(absl::StrCat("update_mask: is missing; give ", kChangeable));
    if (!request.job().etag().empty() && !ParseEtag(request.job().etag(), update.revision)) {
      violations.push_back(absl::StrCat("job.etag: ", Shown(request.job().etag()),
                                        " is none of this server; give that of the job as it was read"));
    }
    const JobRequest identity = IdentityOf(call, request);
    if (const absl::Status refusal = AllOf({id.status(), Refusal(violations, more)}); !refusal.ok()) {
      // What was right when the request came first, such as a deadline, may be wrong when it is repeated.
      LUTHIER_RETURN_IF_ERROR(EarlierOf(backend_, call, identity, refusal).status());
      return GetJob(backend_, call, request.job().name(), response);
    }
    LUTHIER_RETURN_IF_ERROR(
        Change(call, *id, [&](State& state, absl::Time now) { return state.Update(*id, update, now); }, identity));
    return GetJob(backend_, call, request.job().name(), response);
  }

  absl::Status Clone(Call& call, const v1::CloneFineTuningJobRequest& request, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob source, FindJob(backend_, call, request.name()));
    const v1::FineTuningJob original = ToProto(source);
    v1::CreateFineTuningJobRequest creation = CreationAskedBy(request);
    v1::FineTuningJob& job = *creation.mutable_job();
    *job.mutable_spec() = original.spec();
    *job.mutable_labels() = original.labels();
    job.set_tenant(original.tenant());
    job.set_service_class(original.service_class());
    job.set_priority(original.priority());
    if (original.has_retention()) *job.mutable_retention() = original.retention();
    // Not the deadline: that of a job which is over mostly is, too.
    google::protobuf::FieldMask mask;
    std::vector<std::string> violations;
    for (const std::string& path : request.update_mask().paths()) {
      const std::string root = path.substr(0, path.find('.'));
      const bool settable = root == "spec" || path == "labels" || path == "tenant" || path == "service_class" ||
                            path == "priority" || path == "retention" || path == "deadline";
      if (settable && FieldMaskUtil::IsValidPath<v1::FineTuningJob>(path)) {
        mask.add_paths(path);
        continue;
      }
      violations.push_back(absl::StrCat("update_mask: ", Shown(path),
                                        " is no field that a clone can have of its own; give "
                                        "spec or a field of it, labels, tenant, service_class, priority, retention or "
                                        "deadline"));
    }
    FieldMaskUtil::MergeOptions replace;
    replace.set_replace_message_fields(true);
    replace.set_replace_repeated_fields(true);
    if (absl::c_linear_search(mask.paths(), "labels")) job.clear_labels();  // maps are merged whatever the options
    FieldMaskUtil::MergeMessageTo(request.job(), mask, replace, &job);
    // Of the request: repeated, it is the same one whatever the other job has become by then.
    return SubmitJob(backend_, call, creation, response, absl::StrCat("clone\n", DeterministicBytes(request)),
                     Refusal(violations));
  }

  // What the request names stays as it is in the job that is asked for: repeated, it is the same one whatever an alias
  // points to by then.
  absl::Status Export(Call& call, const v1::ExportModelVersionRequest& request, v1::FineTuningJob& response) {
    v1::CreateFineTuningJobRequest creation = CreationAskedBy(request);
    *creation.mutable_job() = request.job();
    v1::FineTuningSpec& spec = *creation.mutable_job()->mutable_spec();
    spec.mutable_model_export()->set_model_version(request.name());
    spec.mutable_model_export()->set_format(request.format());
    if (!request.output_model().empty()) spec.set_output_model(request.output_model());
    return SubmitJob(backend_, call, creation, response);
  }

  absl::Status Estimate(const Call& call, const v1::EstimateFineTuningJobRequest& request,
                        v1::EstimateFineTuningJobResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan,
                             PlanFor(backend_, call, TenantOf(call), request.spec()));
    response = plan->estimate;
    *response.mutable_resolved() = plan->job.resolved();
    *response.mutable_warnings() = plan->job.warnings();
    Job job;
    SetNeeds(*plan, job);
    return backend_.loop.Run([&](State& state, absl::Time) {
      if (const auto duration = KnownDuration(job, state.speeds())) *response.mutable_duration() = ToProto(*duration);
      response.set_duration_reason(DurationReason(job, state.speeds()));
      for (const std::string& id : FittingNodes(job, state.nodes())) response.add_fitting_nodes("nodes/" + id);
      return absl::OkStatus();
    });
  }

  absl::Status Explain(Call& call, const v1::ExplainFineTuningJobRequest& request,
                       v1::ExplainFineTuningJobResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, FindJob(backend_, call, request.name()));
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
      if (IsWaiting(live->state))
        detached = Detach(state.TakeSnapshot(now, kForecastCandidates, /*for_forecast=*/true));
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
    const absl::StatusOr<RecordedJob> job = FindJob(backend_, call, request.parent(), "parent");
    const std::string list = absl::StrCat(request.parent(), "/events\n", absl::StrJoin(request.types(), ","));
    const absl::StatusOr<PageRequest> page = ParsePage(list, request.page_size(), request.page_token());
    LUTHIER_RETURN_IF_ERROR(AllOf({job.status(), page.status(), CheckTypes(request.types_size())}));
    const std::vector<std::string> types(request.types().begin(), request.types().end());
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job->job.number, page->after_number(), page->size + 1, types));
    FillPage(list, page->size, events, response, PositionOf,
             [&](const Event& event) -> auto& { return *response.add_events() = ToProto(event); });
    return absl::OkStatus();
  }

  absl::Status ListCheckpoints(Call& call, const v1::ListJobCheckpointsRequest& request,
                               v1::ListJobCheckpointsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, FindJob(backend_, call, request.parent(), "parent"));
    const std::string list = absl::StrCat(request.parent(), "/checkpoints");
    LUTHIER_ASSIGN_OR_RETURN(const PageRequest page, ParsePage(list, request.page_size(), request.page_token()));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job.job.number, page.after_number(), page.size + 1, {"checkpoint"}));
    FillPage(list, page.size, events, response, PositionOf,
             [&](const Event& event) -> auto& { return *response.add_checkpoints() = CheckpointOf(job.job, event); });
    return absl::OkStatus();
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFineTuningService(Backend& backend) {
  return std::make_unique<JobsService>(backend);
}

}  // namespace luthier
