#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/prepare.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr absl::Duration kWatchHeartbeat = absl::Seconds(15);
// A watcher looks at least this often whether its client is still there.
constexpr absl::Duration kWatchPoll = absl::Seconds(1);

class JobsService final : public v1::FineTuningService::Service {
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
    return Handle(backend_, "CancelFineTuningJob", [&]() -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", request->name()));
      LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) { return state.Cancel(id, now); }));
      return Get(request->name(), *response);
    });
  }
  grpc::Status WatchFineTuningJob(grpc::ServerContext* context, const v1::WatchFineTuningJobRequest* request,
                                  grpc::ServerWriter<v1::WatchFineTuningJobResponse>* writer) override {
    return Handle(backend_, "WatchFineTuningJob", [&] { return Watch(*context, *request, *writer); });
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
  absl::Status Create(const v1::CreateFineTuningJobRequest& request, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(PreparedJob prepared, PrepareJob(backend_, request));
    Job& job = prepared.job;
    job.body_sha256 = Sha256Hex(absl::StrCat(request.job_id(), "\n", request.job().ShortDebugString()));
    std::string spec = Serialize(prepared.spec);
    if (request.validate_only()) {
      job.create_time = absl::Now();
      response = ToProto(job, spec);
      return absl::OkStatus();
    }
    LUTHIER_RETURN_IF_ERROR(
        backend_.loop.Run([&](State& state, absl::Time now) { return state.Create(job, std::move(spec), now); }));
    return Get("jobs/" + job.id, response);
  }

  absl::StatusOr<Job> Find(const std::string& name) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "jobs", name));
    Job job;
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time) {
      const Job* found = state.Find(id);
      if (found == nullptr) return absl::NotFoundError(absl::StrCat(name, " does not exist"));
      job = *found;
      return absl::OkStatus();
    }));
    return job;
  }

  absl::Status Get(const std::string& name, v1::FineTuningJob& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Job job, Find(name));
    LUTHIER_ASSIGN_OR_RETURN(const std::string spec, backend_.store.Spec(job.id));
    response = ToProto(job, spec);
    return absl::OkStatus();
  }

  absl::Status List(const v1::ListFineTuningJobsRequest& request, v1::ListFineTuningJobsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    const auto& states = request.states();
    std::vector<Job> jobs;
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time) {
      for (const auto& [id, job] : state.jobs()) {
        const bool wanted = states.empty() || std::count(states.begin(), states.end(), static_cast<int>(job.state)) > 0;
        if (wanted) jobs.push_back(job);
      }
      return absl::OkStatus();
    }));
    std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.create_time > b.create_time; });
    const auto size = static_cast<int64_t>(jobs.size());
    const int64_t end = std::min(size, page.first + page.second);
    for (int64_t i = page.first; i < end; ++i) {
      LUTHIER_ASSIGN_OR_RETURN(const std::string spec, backend_.store.Spec(jobs[i].id));
      *response.add_jobs() = ToProto(jobs[i], spec);
    }
    if (end < size) response.set_next_page_token(absl::StrCat(end));
    return absl::OkStatus();
  }

  // Events first, then whether the job is over: an event recorded in between is found by the next round.
  absl::Status Watch(const grpc::ServerContext& context, const v1::WatchFineTuningJobRequest& request,
                     grpc::ServerWriter<v1::WatchFineTuningJobResponse>& writer) {
    v1::WatchFineTuningJobResponse snapshot;
    LUTHIER_RETURN_IF_ERROR(Get(request.name(), *snapshot.mutable_job()));
    writer.Write(snapshot);
    int64_t cursor = request.after_sequence();
    uint64_t commits = 0;
    absl::Time last_write = absl::Now();
    while (!context.IsCancelled()) {
      LUTHIER_ASSIGN_OR_RETURN(const Job job, Find(request.name()));
      while (cursor < job.last_event) {
        LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events, backend_.store.Events(job.id, cursor, 1000));
        for (const Event& event : events) {
          v1::WatchFineTuningJobResponse message;
          *message.mutable_event() = ToProto(event);
          if (!writer.Write(message)) return absl::CancelledError("the client went away");
          cursor = event.sequence;
          last_write = absl::Now();
        }
        if (events.empty()) break;
      }
      if (IsTerminal(job.state)) {
        LUTHIER_RETURN_IF_ERROR(Get(request.name(), *snapshot.mutable_job()));
        writer.Write(snapshot);
        return absl::OkStatus();
      }
      if (absl::Now() - last_write >= kWatchHeartbeat) {
        if (!writer.Write({})) return absl::CancelledError("the client went away");
        last_write = absl::Now();
      }
      commits = backend_.loop.WaitForCommit(commits, absl::Now() + kWatchPoll);
      if (backend_.loop.stopping()) return absl::UnavailableError("the server is shutting down; watch again");
    }
    return absl::CancelledError("the client went away");
  }

  absl::Status ListEvents(const v1::ListJobEventsRequest& request, v1::ListJobEventsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Job job, Find(request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const auto page, ParsePage(request.page_size(), request.page_token()));
    const std::vector<std::string> types(request.types().begin(), request.types().end());
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events,
                             backend_.store.Events(job.id, page.first, page.second, types));
    for (const Event& event : events) *response.add_events() = ToProto(event);
    // The token is the last sequence sent.
    if (static_cast<int>(events.size()) == page.second) response.set_next_page_token(absl::StrCat(events.back().sequence));
    return absl::OkStatus();
  }

  absl::Status ListCheckpoints(const v1::ListJobCheckpointsRequest& request, v1::ListJobCheckpointsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Job job, Find(request.parent()));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Event> events, backend_.store.Events(job.id, 0, 1000000, {"checkpoint"}));
    for (const Event& event : events) {
      const v1::JobEvent message = ToProto(event);
      const auto& fields = message.data().fields();
      const auto number = [&](const char* field) { return fields.count(field) ? fields.at(field).number_value() : 0.0; };
      v1::Checkpoint& checkpoint = *response.add_checkpoints();
      checkpoint.set_step(static_cast<int64_t>(number("step")));
      checkpoint.set_name(absl::StrCat("jobs/", job.id, "/checkpoints/", checkpoint.step()));
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
