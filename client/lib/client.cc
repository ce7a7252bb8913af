#include "client/lib/client.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/lib/call_deadline.h"
#include "client/lib/grpc_status.h"
#include "lib/base/steady_now.h"
#include "lib/channel/channel.h"

namespace luthier {
namespace {

// A list asks for pages of this size; the server gives no larger ones.
constexpr int kPageSize = 1000;

std::shared_ptr<grpc::Channel> Dial(const Client::Options& options) {
  grpc::ChannelArguments arguments;
  // A dead connection is noticed within a minute, also while a watch is silent.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // gRPC's own pauses between dials (1 s to 2 min) would hide that a server is back. A dial itself may take longer than
  // the pause between two looks of a watch, during which nobody reads what the server says in a TLS handshake.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // An error that lists twenty violations is longer than the 8 KiB that gRPC takes as a status.
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 256 << 10);
  // A page of a thousand jobs is longer than the 4 MiB that gRPC takes as a message.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return DialWithToken(options.server, options.token, arguments, options.tls);
}

template <typename Stub, typename Request, typename Response>
using Method = grpc::Status (Stub::*)(grpc::ClientContext*, const Request&, Response*);

// Who calls, and how often it tries.
struct Caller {
  Caller(const Client& of) : client(of), attempts(of.options().retry.attempts) {}
  const Client& client;
  int attempts;
};

// For a call that must not be made twice: a second try would take the first one's success for an error.
Caller Once(const Client& client) {
  Caller caller = client;
  caller.attempts = 1;
  return caller;
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(const Caller& caller, absl::Duration timeout, Stub& stub,
                              Method<Stub, Request, Response> method, const Request& request) {
  const Client::Options& options = caller.client.options();
  const absl::Time deadline = SteadyNow() + timeout;
  for (int failures = 1;; ++failures) {
    grpc::ClientContext context;
    SetCallDeadline(context, deadline);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (status.ok()) return response;
    const absl::Status error = FromGrpc(status, options.server);
    const absl::Duration pause = RetryPause(options.retry, failures, RandomFraction());
    if (!absl::IsUnavailable(error) || failures >= caller.attempts || SteadyNow() + pause >= deadline) return error;
    caller.client.PauseWhileDialling(pause);
  }
}

// Of a call that takes a name and nothing else.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> CallOf(const std::string& name, const Caller& caller, Stub& stub,
                                Method<Stub, Request, Response> method) {
  Request request;
  request.set_name(name);
  return Call(caller, caller.client.options().timeout, stub, method, request);
}

// Every page of a list, up to `limit` items. `items` names the repeated field of the response.
template <typename Stub, typename Request, typename Response, typename Items>
auto List(const Caller& caller, Stub& stub, Method<Stub, Request, Response> method, Request request, int limit,
          Items items)
    -> absl::StatusOr<std::vector<std::decay_t<decltype(*items(std::declval<Response&>())->begin())>>> {
  std::vector<std::decay_t<decltype(*items(std::declval<Response&>())->begin())>> all;
  while (true) {
    request.set_page_size(std::min(kPageSize, limit - static_cast<int>(all.size())));
    absl::StatusOr<Response> response = Call(caller, caller.client.options().timeout, stub, method, request);
    if (!response.ok()) return response.status();
    for (auto& item : *items(*response)) all.push_back(std::move(item));
    if (response->next_page_token().empty() || static_cast<int>(all.size()) >= limit) return all;
    request.set_page_token(response->next_page_token());
  }
}

}  // namespace

Client::Client(Options options) : Client(options, Dial(options)) {}

Client::Client(Options options, std::shared_ptr<grpc::Channel> channel)
    : options_(std::move(options)),
      channel_(std::move(channel)),
      jobs_(v1::FineTuningService::NewStub(channel_)),
      datasets_(v1::DatasetService::NewStub(channel_)),
      models_(v1::ModelService::NewStub(channel_)),
      nodes_(v1::NodeService::NewStub(channel_)),
      queue_(v1::QueueService::NewStub(channel_)),
      sweeps_(v1::SweepService::NewStub(channel_)),
      admin_(v1::AdminService::NewStub(channel_)) {}

void Client::PauseWhileDialling(absl::Duration pause) const {
  if (channel_->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY) return absl::SleepFor(pause);
  const absl::Time end = SteadyNow() + pause;
  AwaitConnection(*channel_, [end] { return SteadyNow() >= end; });
}

absl::StatusOr<v1::FineTuningJob> Client::CreateJob(v1::CreateFineTuningJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomRequestId());
  return Call(*this, options_.long_timeout, *jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request);
}

absl::StatusOr<v1::FineTuningJob> Client::GetJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::GetFineTuningJob);
}

absl::StatusOr<std::vector<v1::FineTuningJob>> Client::ListJobs(const v1::ListFineTuningJobsRequest& request,
                                                                int limit) {
  return List(*this, *jobs_, &v1::FineTuningService::Stub::ListFineTuningJobs, request, limit,
              [](v1::ListFineTuningJobsResponse& response) { return response.mutable_jobs(); });
}

absl::StatusOr<v1::FineTuningJob> Client::CancelJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob);
}

absl::StatusOr<v1::FineTuningJob> Client::PauseJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::PauseFineTuningJob);
}

absl::StatusOr<v1::FineTuningJob> Client::ResumeJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::ResumeFineTuningJob);
}

absl::StatusOr<v1::FineTuningJob> Client::StartJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::StartFineTuningJob);
}

absl::StatusOr<v1::FineTuningJob> Client::RetryJob(const std::string& name) {
  v1::RetryFineTuningJobRequest request;
  request.set_name(name);
  request.set_request_id(RandomRequestId());
  return Call(*this, options_.timeout, *jobs_, &v1::FineTuningService::Stub::RetryFineTuningJob, request);
}

absl::StatusOr<v1::FineTuningJob> Client::UpdateJob(v1::UpdateFineTuningJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomRequestId());
  return Call(*this, options_.timeout, *jobs_, &v1::FineTuningService::Stub::UpdateFineTuningJob, request);
}

absl::StatusOr<v1::FineTuningJob> Client::CloneJob(v1::CloneFineTuningJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomRequestId());
  return Call(*this, options_.long_timeout, *jobs_, &v1::FineTuningService::Stub::CloneFineTuningJob, request);
}

absl::StatusOr<v1::FineTuningJob> Client::ExportModelVersion(v1::ExportModelVersionRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomRequestId());
  return Call(*this, options_.long_timeout, *jobs_, &v1::FineTuningService::Stub::ExportModelVersion, request);
}

absl::StatusOr<v1::ExplainFineTuningJobResponse> Client::ExplainJob(const std::string& name) {
  return CallOf(name, *this, *jobs_, &v1::FineTuningService::Stub::ExplainFineTuningJob);
}

absl::StatusOr<v1::EstimateFineTuningJobResponse> Client::EstimateJob(const v1::FineTuningSpec& spec) {
  v1::EstimateFineTuningJobRequest request;
  *request.mutable_spec() = spec;
  return Call(*this, options_.long_timeout, *jobs_, &v1::FineTuningService::Stub::EstimateFineTuningJob, request);
}

absl::Status Client::CreateCheckpoint(const std::string& job) {
  v1::CreateJobCheckpointRequest request;
  request.set_parent(job);
  return Call(*this, options_.timeout, *jobs_, &v1::FineTuningService::Stub::CreateJobCheckpoint, request).status();
}

absl::StatusOr<std::vector<v1::Checkpoint>> Client::ListCheckpoints(const std::string& job) {
  v1::ListJobCheckpointsRequest request;
  request.set_parent(job);
  return List(*this, *jobs_, &v1::FineTuningService::Stub::ListJobCheckpoints, request, INT32_MAX,
              [](v1::ListJobCheckpointsResponse& response) { return response.mutable_checkpoints(); });
}

absl::StatusOr<v1::Queue> Client::GetQueue(int limit) {
  v1::GetQueueRequest request;
  request.set_limit(limit);
  return Call(*this, options_.timeout, *queue_, &v1::QueueService::Stub::GetQueue, request);
}

absl::StatusOr<std::vector<v1::Tenant>> Client::ListTenants(int limit) {
  return List(*this, *queue_, &v1::QueueService::Stub::ListTenants, v1::ListTenantsRequest(), limit,
              [](v1::ListTenantsResponse& response) { return response.mutable_tenants(); });
}

absl::StatusOr<v1::Tenant> Client::UpdateTenant(const v1::UpdateTenantRequest& request) {
  return Call(*this, options_.timeout, *queue_, &v1::QueueService::Stub::UpdateTenant, request);
}

absl::StatusOr<v1::Sweep> Client::CreateSweep(v1::CreateSweepRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomRequestId());
  return Call(*this, options_.long_timeout, *sweeps_, &v1::SweepService::Stub::CreateSweep, request);
}

absl::StatusOr<v1::Sweep> Client::GetSweep(const std::string& name) {
  return CallOf(name, *this, *sweeps_, &v1::SweepService::Stub::GetSweep);
}

absl::StatusOr<std::vector<v1::Sweep>> Client::ListSweeps(int limit) {
  return List(*this, *sweeps_, &v1::SweepService::Stub::ListSweeps, v1::ListSweepsRequest(), limit,
              [](v1::ListSweepsResponse& response) { return response.mutable_sweeps(); });
}

absl::StatusOr<v1::Sweep> Client::StartSweep(const std::string& name) {
  return CallOf(name, *this, *sweeps_, &v1::SweepService::Stub::StartSweep);
}

absl::StatusOr<v1::Sweep> Client::CancelSweep(const std::string& name) {
  return CallOf(name, *this, *sweeps_, &v1::SweepService::Stub::CancelSweep);
}

absl::StatusOr<std::vector<v1::JobEvent>> Client::ListEvents(const std::string& job,
                                                             const std::vector<std::string>& types) {
  v1::ListJobEventsRequest request;
  request.set_parent(job);
  for (const std::string& type : types) request.add_types(type);
  return List(*this, *jobs_, &v1::FineTuningService::Stub::ListJobEvents, request, INT32_MAX,
              [](v1::ListJobEventsResponse& response) { return response.mutable_events(); });
}

absl::StatusOr<v1::Dataset> Client::GetDataset(const std::string& name) {
  return CallOf(name, *this, *datasets_, &v1::DatasetService::Stub::GetDataset);
}

absl::StatusOr<std::vector<v1::Dataset>> Client::ListDatasets(int limit) {
  return List(*this, *datasets_, &v1::DatasetService::Stub::ListDatasets, v1::ListDatasetsRequest(), limit,
              [](v1::ListDatasetsResponse& response) { return response.mutable_datasets(); });
}

absl::Status Client::DeleteDataset(const std::string& name) {
  return CallOf(name, Once(*this), *datasets_, &v1::DatasetService::Stub::DeleteDataset).status();
}

absl::Status Client::DeleteModelVersion(const std::string& name) {
  return CallOf(name, Once(*this), *models_, &v1::ModelService::Stub::DeleteModelVersion).status();
}

absl::Status Client::DeleteBaseModel(const std::string& name) {
  return CallOf(name, Once(*this), *models_, &v1::ModelService::Stub::DeleteBaseModel).status();
}

absl::StatusOr<v1::BaseModel> Client::RegisterBaseModel(const v1::RegisterBaseModelRequest& request) {
  return Call(*this, options_.long_timeout, *models_, &v1::ModelService::Stub::RegisterBaseModel, request);
}

absl::StatusOr<v1::BaseModel> Client::GetBaseModel(const std::string& name) {
  return CallOf(name, *this, *models_, &v1::ModelService::Stub::GetBaseModel);
}

absl::StatusOr<std::vector<v1::BaseModel>> Client::ListBaseModels(int limit) {
  return List(*this, *models_, &v1::ModelService::Stub::ListBaseModels, v1::ListBaseModelsRequest(), limit,
              [](v1::ListBaseModelsResponse& response) { return response.mutable_base_models(); });
}

absl::StatusOr<std::vector<v1::Model>> Client::ListModels(int limit) {
  return List(*this, *models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), limit,
              [](v1::ListModelsResponse& response) { return response.mutable_models(); });
}

absl::StatusOr<std::vector<v1::ModelVersion>> Client::ListModelVersions(const std::string& model, int limit) {
  v1::ListModelVersionsRequest request;
  request.set_parent(model);
  return List(*this, *models_, &v1::ModelService::Stub::ListModelVersions, request, limit,
              [](v1::ListModelVersionsResponse& response) { return response.mutable_model_versions(); });
}

absl::StatusOr<v1::ModelVersion> Client::GetModelVersion(const std::string& name) {
  return CallOf(name, *this, *models_, &v1::ModelService::Stub::GetModelVersion);
}

absl::StatusOr<v1::SignModelVersionUrlsResponse> Client::SignModelVersionUrls(const std::string& name,
                                                                              absl::Duration lifetime) {
  v1::SignModelVersionUrlsRequest request;
  request.set_name(name);
  request.mutable_lifetime()->set_seconds(absl::ToInt64Seconds(lifetime));
  return Call(*this, options_.timeout, *models_, &v1::ModelService::Stub::SignModelVersionUrls, request);
}

absl::StatusOr<v1::ModelVersion> Client::PromoteModelVersion(const v1::PromoteModelVersionRequest& request) {
  return Call(*this, options_.timeout, *models_, &v1::ModelService::Stub::PromoteModelVersion, request);
}

absl::Status Client::DeleteModelAlias(const std::string& name) {
  return CallOf(name, Once(*this), *models_, &v1::ModelService::Stub::DeleteModelAlias).status();
}

absl::StatusOr<std::vector<v1::Node>> Client::ListNodes(int limit) {
  return List(*this, *nodes_, &v1::NodeService::Stub::ListNodes, v1::ListNodesRequest(), limit,
              [](v1::ListNodesResponse& response) { return response.mutable_nodes(); });
}

absl::StatusOr<v1::Node> Client::DrainNode(const std::string& name, bool requeue) {
  v1::DrainNodeRequest request;
  request.set_name(name);
  request.set_requeue(requeue);
  return Call(*this, options_.timeout, *nodes_, &v1::NodeService::Stub::DrainNode, request);
}

absl::StatusOr<v1::Node> Client::UndrainNode(const std::string& name) {
  return CallOf(name, *this, *nodes_, &v1::NodeService::Stub::UndrainNode);
}

absl::StatusOr<v1::Backup> Client::CreateBackup(const std::string& path) {
  v1::CreateBackupRequest request;
  request.set_path(path);
  // A second try would find the first one's folder.
  return Call(Once(*this), options_.long_timeout, *admin_, &v1::AdminService::Stub::CreateBackup, request);
}

absl::StatusOr<v1::CheckDataResponse> Client::CheckData() {
  return Call(*this, options_.long_timeout, *admin_, &v1::AdminService::Stub::CheckData, v1::CheckDataRequest());
}

absl::StatusOr<v1::CreateTokenResponse> Client::CreateToken(const v1::CreateTokenRequest& request) {
  // A second try would find the first one's token, and not know its secret.
  return Call(Once(*this), options_.timeout, *admin_, &v1::AdminService::Stub::CreateToken, request);
}

absl::StatusOr<std::vector<v1::Token>> Client::ListTokens() {
  return List(*this, *admin_, &v1::AdminService::Stub::ListTokens, v1::ListTokensRequest(), INT32_MAX,
              [](v1::ListTokensResponse& response) { return response.mutable_tokens(); });
}

absl::StatusOr<v1::Token> Client::RevokeToken(const std::string& name) {
  return CallOf(name, *this, *admin_, &v1::AdminService::Stub::RevokeToken);
}

std::string RandomRequestId() {
  absl::BitGen random;
  const int64_t millis = absl::ToUnixMillis(absl::Now());
  const auto high = absl::Uniform<uint64_t>(random), low = absl::Uniform<uint64_t>(random);
  return absl::StrFormat("%08x-%04x-7%03x-%04x-%012x", millis >> 16, millis & 0xffff, high & 0xfff,
                         (low >> 48 & 0x3fff) | 0x8000, low & 0xffffffffffff);
}

}  // namespace luthier
