#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/plan/job_spec.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "server/core/reason.h"
#include "server/loop/create_job.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/job_watch.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// A client may not make the server prepare a statement for every list it thinks of.
constexpr int kMaxEventTypes = 16;
constexpr size_t kMaxRequestId = 64;

absl::Status CheckRequest(const v1::CreateFineTuningJobRequest& request) {
  std::vector<std::string> violations;
  if (!request.job_id().empty()) {
    if (absl::Status status = CheckId("job_id", request.job_id()); !status.ok()) violations.emplace_back(status.message());
  }
  if (request.request_id().size() > kMaxRequestId) {
    violations.push_back(absl::StrCat("request_id: has ", request.request_id().size(), " characters; give a UUID"));
  }
  const std::map<std::string, std::string> labels(request.job().labels().begin(), request.job().labels().end());
  for (std::string& violation : LabelViolations(labels)) violations.push_back(std::move(violation));
  return violations.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

// Watches are callback streams, since thousands of them mostly wait; the other calls take a thread for a moment.
class JobsService final : public v1::FineTuningService::WithCallbackMethod_WatchFineTuningJob<v1::FineTuningService::Service> {
 public:
  explicit JobsService(Backend& backend) : backend_(backend) {}

  grpc::Status CreateFineTuningJob(grpc::ServerContext*, const v1::CreateFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, "CreateFineTuningJob", [&] { return Create(*request, *response); });
  }
  grpc::Status GetFineTuningJob(grpc::ServerContext*, const v1::GetFineTuningJobRequest* request,
                                v1::FineTuningJob* response) override {
    return Handle(backend_, "GetFineTuningJob", [&] { return Get(request->name(), *response); });
  }
  grpc::Status ListFineTuningJobs(grpc::ServerContext*, const v1::ListFineTuningJobsRequest* request,
                                  v1::ListFineTuningJobsResponse* response) override {
    return Handle(backend_, "ListFineTuningJobs", [&] { return List(*request, *response); });
  }
  grpc::Status CancelFineTuningJob(grpc::ServerContext*, const v1::CancelFineTuningJobRequest* request,
                                   v1::FineTuningJob* response) override {
    return Handle(backend_, "CancelFineTuningJob", [&] { return Cancel(request->name(), *response); });
  }
  grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* WatchFineTuningJob(
      grpc::CallbackServerContext*, const v1::WatchFineTuningJobRequest* request) override {
    return StartJobWatch(backend_, request->name(), request->after_sequence());
  }
  grpc::Status ListJobEvents(grpc::ServerContext*, const v1::ListJobEventsRequest* request,
                             v1::ListJobEventsResponse* response) override {
    return Handle(backend_, "ListJobEvents", [&] { return ListEvents(*request, *response); });
  }
  grpc::Status ListJobCheckpoints(grpc::ServerContext*, const v1::ListJobCheckpointsRequest* request,
                                  v1::ListJobCheckpointsResponse* response) override {
    return Handle(backend_, "ListJobCheckpoints", [&] { return ListCheckpoints(*request, *response); });
  }

 private:
  // A repeated request is answered with what it created, whatever has become of dataset and base model since.
  absl::Status Create(const v1::CreateFineTuningJobRequest& request, v1::FineTuningJob& response) {
    const JobRequest identity{request.request_id(), Sha256Hex(absl::StrCat(request.job_id(), "\n", DeterministicBytes(request.job())))};
    if (!identity.id.empty() && !request.validate_only()) {
      LUTHIER_ASSIGN_OR_RETURN(const auto earlier, backend_.store.ReplayedRequest(identity.id));
      if (earlier) {
        LUTHIER_RETURN_IF_ERROR(CheckReplay(identity, earlier->first, earlier->second.job.id));
        return Answer(earlier->second, response);
      }
    }
    LUTHIER_RETURN_IF_ERROR(CheckRequest(request));
    LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan, backend_.planner.PlanOf(request.job().spec()));
    StoredSpec spec{plan->job, plan->start};
    spec.job.set_uid(RandomUuid());
    *spec.job.mutable_labels() = request.job().labels();
    Job job;
    job.id = request.job_id().empty() ? NewJobId(absl::Now()) : request.job_id();
    job.base_model = plan->base_model;
    job.datasets = plan->datasets;
    job.model = plan->model;
    job.devices = plan->devices;
    if (request.validate_only()) {
      job.create_time = absl::Now();
      response = ToProto(job, spec.job);
      return absl::OkStatus();
    }
    const std::string id = job.id;
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&, bytes = Serialize(spec)](State& state, absl::Time now) mutable {
      return CreateJob(state, backend_.store, job, identity, std::move(bytes), now);
    }));
    // Another request with the same id was first: the job is that one's.
    if (job.id != id) return Get("jobs/" + job.id, response);
    response = ToProto(job, spec.job);
    return absl::OkStatus();
  }

  absl::StatusOr<RecordedJob> Find(const std::string& name) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    return backend_.store.GetJob(id);
  }

  absl::Status Answer(const RecordedJob& job, v1::FineTuningJob& response) {
    response = ToProto(job);
    return AddPendingReasons({&response});
  }

  absl::Status Get(const std::string& name, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(name));
    return Answer(job, response);
  }

  // Only the state knows why a job waits: it follows from all the others and the nodes.
  absl::Status AddPendingReasons(const std::vector<v1::FineTuningJob*>& jobs) {
    const bool any = std::any_of(jobs.begin(), jobs.end(), [](const v1::FineTuningJob* job) {
      return IsWaiting(static_cast<JobState>(job->state()));
    });
    if (!any) return absl::OkStatus();
    return backend_.loop.Run([&](State& state, absl::Time now) {
      for (v1::FineTuningJob* job : jobs) {
        const Job* live = state.Find(absl::string_view(job->name()).substr(5));  // after "jobs/"
        if (live != nullptr && live->state == static_cast<JobState>(job->state())) {
          job->set_pending_reason(state.WhyItWaits(*live, now));
        }
      }
      return absl::OkStatus();
    });
  }

  absl::Status List(const v1::ListFineTuningJobsRequest& request, v1::ListFineTuningJobsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    JobQuery query{.before = page.first, .limit = page.second + 1};
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

  // Cancelling what is cancelled already succeeds, so that a client may try again.
  absl::Status Cancel(const std::string& name, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    const absl::Status cancelled =
        backend_.loop.Run([&](State& state, absl::Time now) { return state.Cancel(id, now); });
    if (!cancelled.ok() && !absl::IsNotFound(cancelled)) return cancelled;
    LUTHIER_RETURN_IF_ERROR(Get(name, response));
    if (cancelled.ok() || response.state() == v1::FineTuningJob::CANCELLED) return absl::OkStatus();
    return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is ", v1::FineTuningJob::State_Name(response.state()),
                                                                 "; only a job that is not over can be cancelled")),
                      "JOB_IS_OVER");
  }

  absl::Status ListEvents(const v1::ListJobEventsRequest& request, v1::ListJobEventsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    if (request.types_size() > kMaxEventTypes) {
      return absl::InvalidArgumentError(absl::StrCat("types: ", request.types_size(), " given; give at most ", kMaxEventTypes));
    }
    const std::vector<std::string> types(request.types().begin(), request.types().end());
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job.job.number, page.first, page.second, types));
    for (const Event& event : events) *response.add_events() = ToProto(event);
    // The token is the last sequence sent.
    if (static_cast<int>(events.size()) == page.second) response.set_next_page_token(absl::StrCat(events.back().sequence));
    return absl::OkStatus();
  }

  absl::Status ListCheckpoints(const v1::ListJobCheckpointsRequest& request, v1::ListJobCheckpointsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, Find(request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events, backend_.store.Events(job.job.number, 0, 1000000, {"checkpoint"}));
    for (const Event& event : events) {
      const v1::JobEvent message = ToProto(event);
      const auto& fields = message.data().fields();
      const auto number = [&](const char* field) { return fields.count(field) ? fields.at(field).number_value() : 0.0; };
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

std::unique_ptr<grpc::Service> MakeFineTuningService(Backend& backend) { return std::make_unique<JobsService>(backend); }

}  // namespace luthier
