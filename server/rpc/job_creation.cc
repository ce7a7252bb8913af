#include "server/rpc/job_creation.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "server/loop/recorded_jobs.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/job_answers.h"
#include "server/rpc/submission.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// What it says beside the spec of the job.
absl::Status CheckRequest(const v1::CreateFineTuningJobRequest& request) {
  std::vector<std::string> violations;
  if (!request.job_id().empty()) {
    if (absl::Status status = CheckId("job_id", request.job_id()); !status.ok())
      violations.emplace_back(status.message());
  }
  CheckRequestId(request.request_id(), violations);
  CheckJob(request.job(), violations);
  return Refusal(violations);
}

// A job on its way.
struct Creation {
  Call& call;
  const v1::CreateFineTuningJobRequest& request;
  absl::Status checked;                    // CheckRequest() of it
  std::shared_ptr<const Plan> known_plan;  // null: it has to be made
  std::string body;                        // what the caller asked for; empty: that of the request
  JobRequest identity;
  Submission made;
  int64_t newest = 0;    // number of the last job before this one was recorded
  std::string response;  // bytes of a v1::FineTuningJob
};

// A call of CreateFineTuningJob. One thread has it at a time.
struct CreationCall {
  CreationCall(const Backend& backend, grpc::CallbackServerContext& context, grpc::ByteBuffer& response)
      : handling(backend, context, "CreateFineTuningJob"),
        reactor(*context.DefaultReactor()),
        response(response),
        creation{handling.call(), request} {}

  // Nothing of the call may be touched afterwards.
  void Finish(const absl::Status& status) {
    const grpc::Slice bytes(creation.response);
    response = grpc::ByteBuffer(&bytes, 1);
    reactor.Finish(handling.Finish(status));
  }

  v1::CreateFineTuningJobRequest request;
  Handling handling;
  grpc::ServerUnaryReactor& reactor;
  grpc::ByteBuffer& response;
  Creation creation;
};

// Of a request that is refused. One that would have to wait for its plan costs nothing more.
absl::Status AllThatIsWrong(Backend& backend, const Creation& creation) {
  if (!IsOfRequest(creation.checked)) return creation.checked;
  const v1::FineTuningSpec& spec = creation.request.job().spec();
  return AllOf({creation.checked, CheckSpec(spec), CheckNames(backend, creation.call, spec)});
}

// Returns whether a job has to be recorded; if not, the response is there.
absl::StatusOr<bool> PrepareCreation(Backend& backend, Creation& creation) {
  const v1::CreateFineTuningJobRequest& request = creation.request;
  Call& call = creation.call;
  call.subject = "jobs/" + request.job_id();
  if (creation.body.empty()) {
    creation.body =
        absl::StrCat(request.job_id(), request.hold() ? "\nheld\n" : "\n", DeterministicBytes(request.job()));
  }
  creation.identity = {request.request_id(), Sha256Hex(absl::StrCat(creation.body, call.tenant))};
  absl::StatusOr<Submission> made =
      !creation.checked.ok()
          ? AllThatIsWrong(backend, creation)
          : Prepare(backend, call, request.job(), request.job_id().empty() ? NewJobId(absl::Now()) : request.job_id(),
                    creation.known_plan);
  // What was right when the request came first, such as its deadline, may be wrong when it is repeated.
  if (!made.ok()) {
    if (request.validate_only()) return made.status();
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob earlier, EarlierOf(backend, call, creation.identity, made.status()));
    v1::FineTuningJob answer;
    LUTHIER_RETURN_IF_ERROR(AnswerJob(backend, earlier, answer));
    creation.response = answer.SerializeAsString();
    return false;
  }
  creation.made = *std::move(made);
  if (request.hold()) creation.made.job.state = JobState::kHeld;
  if (request.validate_only()) {
    LUTHIER_RETURN_IF_ERROR(backend.loop.Run(
        [&](State& state, absl::Time) { return CheckJobs(state, backend.store, {creation.made.job}); }));
    creation.made.job.create_time = absl::Now();
    creation.response = creation.made.Bytes();
  }
  return !request.validate_only();
}

// `creation` outlives the command.
Command RecordCreation(Backend& backend, Creation& creation) {
  return [&backend, &creation, bytes = creation.made.Spec()](State& state, absl::Time now) mutable {
    creation.newest = state.last_number();
    return WithoutOthers(creation.call,
                         CreateJob(state, backend.store, creation.made.job, creation.identity, std::move(bytes), now));
  };
}

// A request with the same id was first: the job is that one's.
bool IsRepeated(const Creation& creation) { return creation.made.job.number <= creation.newest; }

// Waits for the loop if the creation is a repeated one.
absl::Status AnswerCreation(Backend& backend, Creation& creation) {
  const Job& job = creation.made.job;
  if (IsRepeated(creation)) {
    v1::FineTuningJob earlier;
    LUTHIER_RETURN_IF_ERROR(GetJob(backend, creation.call, "jobs/" + job.id, earlier));
    creation.response = earlier.SerializeAsString();
    return absl::OkStatus();
  }
  creation.call.subject = "jobs/" + job.id;
  creation.response = creation.made.Bytes();
  return absl::OkStatus();
}

// Whether the request is a repeated one is known to the state loop, and asked only there: here every call would wait
// for a reader.
void Create(Backend& backend, const std::shared_ptr<CreationCall>& call) {
  const absl::StatusOr<bool> to_record = PrepareCreation(backend, call->creation);
  if (!to_record.ok() || !*to_record) {
    call->Finish(to_record.status());
    return;
  }
  backend.loop.Post(RecordCreation(backend, call->creation), [&backend, call](const absl::Status& recorded) {
    const auto answer = [&backend, call, recorded] {
      call->Finish(recorded.ok() ? AnswerCreation(backend, call->creation) : recorded);
    };
    const bool asks_the_record = recorded.ok() && IsRepeated(call->creation);
    const bool is_audited = !call->handling.call().token.empty();
    if (asks_the_record || is_audited) {
      backend.tasks.Post(answer);
    } else {
      answer();
    }
  });
}

}  // namespace

grpc::ServerUnaryReactor* StartJobCreation(Backend& backend, grpc::CallbackServerContext& context,
                                           const grpc::ByteBuffer& request, grpc::ByteBuffer& response) {
  const auto call = std::make_shared<CreationCall>(backend, context, response);
  if (!call->handling.admitted().ok()) {
    call->Finish(call->handling.admitted());
    return &call->reactor;
  }
  grpc::ByteBuffer bytes = request;  // shares its slices
  if (!grpc::SerializationTraits<v1::CreateFineTuningJobRequest>::Deserialize(&bytes, &call->request).ok()) {
    call->Finish(absl::InvalidArgumentError(
        "request: is no luthier.v1.CreateFineTuningJobRequest; send one, as proto/luthier/v1/jobs.proto has it"));
    return &call->reactor;
  }
  call->creation.checked = CheckRequest(call->request);
  call->creation.known_plan = backend.planner.KnownPlanOf(call->request.job().spec());
  if (call->creation.known_plan == nullptr && call->creation.checked.ok()) {
    const std::string tenant = TenantOf(call->handling.call(), call->request.job().tenant());
    const bool waits = backend.planning.Post(tenant, [&backend, call] { Create(backend, call); });  // reads the dataset
    if (waits) return &call->reactor;
    call->creation.checked = TooManyPlansOf(tenant);  // unless the request is a repeated one
    backend.tasks.Post([&backend, call] { Create(backend, call); });
  } else if (!call->handling.call().tenant.empty() || call->request.validate_only() ||
             NamesVersion(call->request.job().spec()) || !call->creation.checked.ok()) {
    // Looks up in the record what the tenant may name, a version or the same request, or waits for the loop.
    backend.tasks.Post([&backend, call] { Create(backend, call); });
  } else {
    Create(backend, call);
  }
  return &call->reactor;
}

absl::Status SubmitJob(Backend& backend, Call& call, const v1::CreateFineTuningJobRequest& request,
                       v1::FineTuningJob& response, std::string body, const absl::Status& refused) {
  Creation creation{call, request, AllOf({refused, CheckRequest(request)})};
  creation.body = std::move(body);
  LUTHIER_ASSIGN_OR_RETURN(const bool to_record, PrepareCreation(backend, creation));
  if (to_record) {
    LUTHIER_RETURN_IF_ERROR(backend.loop.Run(RecordCreation(backend, creation)));
    LUTHIER_RETURN_IF_ERROR(AnswerCreation(backend, creation));
  }
  response.ParseFromString(creation.response);
  return absl::OkStatus();
}

}  // namespace luthier
