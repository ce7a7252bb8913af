// The services over an in-process channel, with the real loop, store and artifact folder; the test plays the agent.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "lib/artifact/file_artifact_store.h"
#include "lib/wire/error_details.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "luthier/v1/sweeps.grpc.pb.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/services.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {

// What a program reads of a refusal, and the fields that it names.
inline std::string ReasonOf(const grpc::Status& status) { return ParseErrorDetails(status.error_details()).reason; }
inline std::vector<std::string> FieldsOf(const grpc::Status& status) {
  std::vector<std::string> fields;
  for (const FieldViolation& violation : ParseErrorDetails(status.error_details()).violations)
    fields.push_back(violation.field);
  return fields;
}

class ServicesTest : public testing::Test {
 protected:
  explicit ServicesTest(Transfers::Options transfers = {}, const ProtocolRange& protocol = kAgentProtocol)
      : store_(*Store::Open(folder_.path())),
        artifacts_(*FileArtifactStore::Open(folder_.path() + "/artifacts")),
        metrics_(registry_, "test"),
        transfers_(access_, transfers),
        sessions_(protocol),
        loop_(*store_, State(), LoopOptions()),
        planner_(*store_, *artifacts_, planning_, folder_.path(), LUTHIERD_PROGRAM),
        housekeeping_(loop_, *store_, *artifacts_, {}),
        backend_{loop_,    *store_,       *artifacts_, planner_, watches_,   tasks_,        planning_,
                 storing_, housekeeping_, metrics_,    access_,  transfers_, folder_.path()},
        services_(MakeServices(backend_, sessions_)) {
    grpc::ServerBuilder builder;
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    channel_ = server_->InProcessChannel({});
    jobs_ = v1::FineTuningService::NewStub(channel_);
    datasets_ = v1::DatasetService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
    nodes_ = v1::NodeService::NewStub(channel_);
    queue_ = v1::QueueService::NewStub(channel_);
    sweeps_ = v1::SweepService::NewStub(channel_);
    admin_ = v1::AdminService::NewStub(channel_);
    workers_ = v1::WorkerService::NewStub(channel_);
  }
  ~ServicesTest() override {
    watches_.Close();
    sessions_.Close();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  }
  StateLoop::Options LoopOptions() {
    StateLoop::Options options;
    options.on_batch = [this](const State&, const Writes& writes, absl::Time) { watches_.Publish(writes.events); };
    options.send = [this](const std::vector<Effect>& effects) { sessions_.Send(loop_, *store_, access_, effects); };
    return options;
  }

  grpc::Status Upload(const std::string& id, const std::string& rows, v1::Dataset& dataset, uint32_t crc_error = 0) {
    grpc::ClientContext context;
    return UploadRows(*datasets_, context, id, rows, dataset, crc_error);
  }
  grpc::Status RegisterBase(const std::string& id) {
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id(id);
    request.set_source_path(folder_.path() + "/model");
    v1::BaseModel model;
    return Call(*models_, &v1::ModelService::Stub::RegisterBaseModel, request, model);
  }
  // A base model and a dataset that jobs can be planned with.
  void AddInputs() {
    ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
    ASSERT_TRUE(RegisterBase("base").ok());
    std::string rows;
    for (int i = 0; i < 24; ++i) rows += ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
    v1::Dataset dataset;
    ASSERT_TRUE(Upload("rows", rows, dataset).ok());
  }
  // A request that AddInputs() makes good.
  static v1::CreateFineTuningJobRequest RequestFor(const std::string& id) {
    v1::CreateFineTuningJobRequest request;
    request.set_job_id(id);
    request.mutable_job()->mutable_spec()->set_base_model("base");
    request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
    request.mutable_job()->mutable_spec()->set_task(v1::TASK_CLASSIFICATION);
    return request;
  }
  v1::FineTuningJob Create(const v1::CreateFineTuningJobRequest& request) {
    v1::FineTuningJob job;
    const grpc::Status status = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  v1::FineTuningJob GetJob(const std::string& id) {
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    v1::FineTuningJob job;
    const grpc::Status status = Call(*jobs_, &v1::FineTuningService::Stub::GetFineTuningJob, request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  template <typename Stub, typename Request, typename Response>
  static grpc::Status Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                           const Request& request, Response& response) {
    grpc::ClientContext context;
    return (stub.*method)(&context, request, &response);
  }
  // Whether a call of the method has ended with such a code.
  bool HasAnswered(const std::string& method, const std::string& code) {
    const std::string labels = absl::StrCat("{code=\"", code, "\",method=\"", method, "\"}");
    return absl::StrContains(prometheus::TextSerializer().Serialize(registry_.Collect()), labels);
  }
  // No rows are read from now on until it is notified.
  std::shared_ptr<absl::Notification> KeepPlanningBusy() {
    auto end = std::make_shared<absl::Notification>();
    absl::BlockingCounter busy(kPlanningThreads);
    for (int thread = 0; thread < kPlanningThreads; ++thread) {
      EXPECT_TRUE(planning_.Post("others", [end, &busy] {
        busy.DecrementCount();
        end->WaitForNotification();
      }));
    }
    busy.Wait();
    return end;
  }
  // Runs a step of the state, as an agent would cause it.
  void Do(const std::function<void(State&, absl::Time)>& step) {
    ASSERT_TRUE(loop_
                    .Run([&](State& state, absl::Time now) {
                      step(state, now);
                      return absl::OkStatus();
                    })
                    .ok());
  }
  // An agent that is known to the state only.
  void Connect(const std::string& node, int devices = 1) {
    Do([&](State& state, absl::Time now) { state.Register(Node{.id = node, .devices = devices}, {}, now); });
  }
  bool Report(const std::string& job, int attempt, int64_t sequence, JobInput input, std::string version_payload = "") {
    bool current = false;
    Do([&](State& state, absl::Time now) {
      luthier::Report report;
      report.attempt = {job, attempt};
      report.sequence = sequence;
      report.input = input;
      report.version_payload = std::move(version_payload);
      current = state.Record(std::move(report), now);
    });
    return current;
  }
  // A job without a plan, for tests of what comes after it.
  void Submit(const std::string& id) {
    ASSERT_TRUE(loop_
                    .Run([&](State& state, absl::Time now) {
                      (void)state.AddResource(ResourceKind::kBaseModel, {.id = "base", .create_time = now});
                      Job job{.id = id, .base_model = "base"};
                      return state.Create(job, {}, {.own = JoinStoredSpec("", "")}, now);
                    })
                    .ok());
  }

  // Takes a job through its first attempt, which publishes.
  void Publish(const std::string& job, const std::string& version_payload) {
    Connect("n1");
    Do([](State& state, absl::Time now) { state.Tick(now); });
    ASSERT_TRUE(Report(job, 1, 1, JobInput::kTrainerStarted));
    ASSERT_TRUE(Report(job, 1, 2, JobInput::kTrainerFinished));
    ASSERT_TRUE(Report(job, 1, 3, JobInput::kArtifactStored, version_payload));
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<FileArtifactStore> artifacts_;
  prometheus::Registry registry_;
  ServerMetrics metrics_;
  Access access_{{}, {.trust_network = true, .audit = {.path = folder_.path() + "/audit.log"}}};
  Transfers transfers_;
  Sessions sessions_;
  static constexpr size_t kWatchersOfTenant = 8;
  WatchHub watches_{kWatchersOfTenant};
  static constexpr int kPlanningThreads = 2;
  static constexpr size_t kPlansOfTenant = 100;
  TaskPool tasks_{2}, planning_{kPlanningThreads, {.waiting = kPlansOfTenant}}, storing_{2};
  StateLoop loop_;
  Planner planner_;
  Housekeeping housekeeping_;
  Backend backend_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::FineTuningService::Stub> jobs_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::NodeService::Stub> nodes_;
  std::unique_ptr<v1::QueueService::Stub> queue_;
  std::unique_ptr<v1::SweepService::Stub> sweeps_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  std::unique_ptr<v1::WorkerService::Stub> workers_;
};

}  // namespace luthier
