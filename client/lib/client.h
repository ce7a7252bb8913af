// The API as functions. Reads, and writes that the API makes safe to repeat, are tried again while the server is
// unavailable.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/lib/retry.h"
#include "grpcpp/channel.h"
#include "lib/channel/channel.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "luthier/v1/sweeps.grpc.pb.h"

namespace luthier {

// A connection to one server. Every function may be called from several threads. Errors are the server's;
// UNAVAILABLE for which IsUnreachable() holds if nothing answers; DEADLINE_EXCEEDED after the timeout.
class Client {
 public:
  struct Options {
    std::string server = "127.0.0.1:7070";
    std::string token;  // empty: none
    TlsFiles tls;
    RetryPolicy retry;
    absl::Duration timeout = absl::Seconds(30);  // of a call that only reads, its retries included
    // Of a call that reads or hashes files before it answers: a submit encodes every row, an import copies a model.
    absl::Duration long_timeout = absl::Hours(1);
  };
  // Dials when the first call needs it.
  explicit Client(Options options);

  // The same `request_id` in every try, so that one submit is one job; filled in if empty.
  absl::StatusOr<v1::FineTuningJob> CreateJob(v1::CreateFineTuningJobRequest request);
  absl::StatusOr<v1::FineTuningJob> GetJob(const std::string& name);
  // At most `limit`.
  absl::StatusOr<std::vector<v1::FineTuningJob>> ListJobs(const v1::ListFineTuningJobsRequest& request, int limit);
  absl::StatusOr<v1::FineTuningJob> CancelJob(const std::string& name);
  absl::StatusOr<v1::FineTuningJob> PauseJob(const std::string& name);
  absl::StatusOr<v1::FineTuningJob> ResumeJob(const std::string& name);
  absl::StatusOr<v1::FineTuningJob> StartJob(const std::string& name);
  // One retry, however often its answer is lost.
  absl::StatusOr<v1::FineTuningJob> RetryJob(const std::string& name);
  // As CreateJob.
  absl::StatusOr<v1::FineTuningJob> UpdateJob(v1::UpdateFineTuningJobRequest request);
  // As CreateJob.
  absl::StatusOr<v1::FineTuningJob> CloneJob(v1::CloneFineTuningJobRequest request);
  // As CreateJob.
  absl::StatusOr<v1::FineTuningJob> ExportModelVersion(v1::ExportModelVersionRequest request);
  absl::StatusOr<v1::ExplainFineTuningJobResponse> ExplainJob(const std::string& name);
  absl::StatusOr<v1::EstimateFineTuningJobResponse> EstimateJob(const v1::FineTuningSpec& spec);
  absl::Status CreateCheckpoint(const std::string& job);
  // Oldest first.
  absl::StatusOr<std::vector<v1::Checkpoint>> ListCheckpoints(const std::string& job);

  absl::StatusOr<v1::Queue> GetQueue(int limit);
  absl::StatusOr<std::vector<v1::Tenant>> ListTenants(int limit);
  absl::StatusOr<v1::Tenant> UpdateTenant(const v1::UpdateTenantRequest& request);
  // As CreateJob.
  absl::StatusOr<v1::Sweep> CreateSweep(v1::CreateSweepRequest request);
  absl::StatusOr<v1::Sweep> GetSweep(const std::string& name);
  absl::StatusOr<std::vector<v1::Sweep>> ListSweeps(int limit);
  absl::StatusOr<v1::Sweep> StartSweep(const std::string& name);
  absl::StatusOr<v1::Sweep> CancelSweep(const std::string& name);
  // Oldest first, of the types given (all if none), after `after_sequence`.
  absl::StatusOr<std::vector<v1::JobEvent>> ListEvents(const std::string& job, const std::vector<std::string>& types);

  absl::StatusOr<v1::Dataset> GetDataset(const std::string& name);
  absl::StatusOr<std::vector<v1::Dataset>> ListDatasets(int limit);
  absl::Status DeleteDataset(const std::string& name);
  absl::Status DeleteModelVersion(const std::string& name);
  absl::Status DeleteBaseModel(const std::string& name);

  absl::StatusOr<v1::BaseModel> RegisterBaseModel(const v1::RegisterBaseModelRequest& request);
  absl::StatusOr<v1::BaseModel> GetBaseModel(const std::string& name);
  absl::StatusOr<std::vector<v1::BaseModel>> ListBaseModels(int limit);
  absl::StatusOr<std::vector<v1::Model>> ListModels(int limit);
  absl::StatusOr<std::vector<v1::ModelVersion>> ListModelVersions(const std::string& model, int limit);
  absl::StatusOr<v1::ModelVersion> GetModelVersion(const std::string& name);
  absl::StatusOr<v1::SignModelVersionUrlsResponse> SignModelVersionUrls(const std::string& name,
                                                                        absl::Duration lifetime);
  absl::StatusOr<v1::ModelVersion> PromoteModelVersion(const v1::PromoteModelVersionRequest& request);
  absl::Status DeleteModelAlias(const std::string& name);

  absl::StatusOr<std::vector<v1::Node>> ListNodes(int limit);
  absl::StatusOr<v1::Node> DrainNode(const std::string& name, bool requeue);
  absl::StatusOr<v1::Node> UndrainNode(const std::string& name);

  // Into a new folder on the server's machine.
  absl::StatusOr<v1::Backup> CreateBackup(const std::string& path);
  absl::StatusOr<v1::CheckDataResponse> CheckData();
  // The secret is in this answer only.
  absl::StatusOr<v1::CreateTokenResponse> CreateToken(const v1::CreateTokenRequest& request);
  absl::StatusOr<std::vector<v1::Token>> ListTokens();
  absl::StatusOr<v1::Token> RevokeToken(const std::string& name);

  // For streams: JobWatch, UploadDataset, DownloadFolder.
  v1::FineTuningService::Stub& jobs() { return *jobs_; }
  v1::DatasetService::Stub& datasets() { return *datasets_; }
  v1::ModelService::Stub& models() { return *models_; }
  const Options& options() const { return options_; }
  grpc::Channel& channel() const { return *channel_; }
  // Between two tries. Ends early when a connection that was gone is there again. Somebody has to wait for it: only
  // those who do read what a server says in a TLS handshake, so that it gets nowhere while all threads sleep.
  void PauseWhileDialling(absl::Duration pause) const;

 private:
  Client(Options options, std::shared_ptr<grpc::Channel> channel);

  Options options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::FineTuningService::Stub> jobs_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::NodeService::Stub> nodes_;
  std::unique_ptr<v1::QueueService::Stub> queue_;
  std::unique_ptr<v1::SweepService::Stub> sweeps_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

// A UUID for `request_id`, of version 7 (RFC 9562): it begins with the time, so that the server's index of requests
// grows at its end.
std::string RandomRequestId();

}  // namespace luthier
