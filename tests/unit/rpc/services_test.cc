// The services over an in-process channel, with the real loop, store and artifact folder; the test plays the agent.
#include "server/rpc/services.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "server/rpc/convert.h"
#include "tests/support/temp_folder.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

class ServicesTest : public testing::Test {
 protected:
  ServicesTest()
      : store_(*Store::Open(folder_.path())),
        artifacts_(*FileArtifactStore::Open(folder_.path() + "/artifacts")),
        loop_(*store_, State(), {.send = [this](const std::vector<Effect>& effects) { sessions_.Send(*store_, effects); }}),
        backend_{loop_, *store_, *artifacts_, folder_.path(), {}} {
    services_.push_back(MakeFineTuningService(backend_));
    services_.push_back(MakeDatasetService(backend_));
    services_.push_back(MakeWorkerService(backend_, sessions_));
    grpc::ServerBuilder builder;
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    channel_ = server_->InProcessChannel({});
    jobs_ = v1::FineTuningService::NewStub(channel_);
    datasets_ = v1::DatasetService::NewStub(channel_);
    workers_ = v1::WorkerService::NewStub(channel_);
  }
  ~ServicesTest() override {
    loop_.Stop();
    sessions_.CloseAll();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  }

  grpc::Status Upload(const std::string& id, const std::string& rows, v1::Dataset& dataset, uint32_t crc_error = 0) {
    grpc::ClientContext context;
    return UploadRows(*datasets_, context, id, rows, dataset, crc_error);
  }
  void Submit(const std::string& id) {
    ASSERT_TRUE(loop_.Run([&](State& state, absl::Time now) {
      Job job{.id = id, .base_model = "base"};
      return state.Create(job, Serialize(StoredSpec{}), now);
    }).ok());
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<FileArtifactStore> artifacts_;
  Sessions sessions_;
  StateLoop loop_;
  Backend backend_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::FineTuningService::Stub> jobs_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::WorkerService::Stub> workers_;
};

constexpr char kRow[] = R"({"prompt": "a", "completion": "b"})"
                        "\n";

TEST_F(ServicesTest, StoresADatasetOnceAndRefusesOtherContentUnderItsName) {
  v1::Dataset dataset;
  ASSERT_TRUE(Upload("d", kRow, dataset).ok());
  EXPECT_EQ(dataset.parts(0).rows(), 1);
  EXPECT_TRUE(Upload("d", kRow, dataset).ok());
  EXPECT_EQ(Upload("d", std::string(kRow) + kRow, dataset).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServicesTest, NamesPartAndLineOfMalformedRowsAndKeepsNothing) {
  v1::Dataset dataset;
  const grpc::Status status = Upload("d", std::string(kRow) + "{oops\n", dataset);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("train"));
  EXPECT_THAT(status.error_message(), HasSubstr("2"));
  EXPECT_TRUE(store_->List(ResourceKind::kDataset)->empty());
}

TEST_F(ServicesTest, RefusesAChunkThatWasDamagedOnTheWay) {
  v1::Dataset dataset;
  EXPECT_EQ(Upload("d", kRow, dataset, 1).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServicesTest, ListsEveryViolationOfASubmittedJob) {
  v1::CreateFineTuningJobRequest request;
  v1::FineTuningSpec& spec = *request.mutable_job()->mutable_spec();
  spec.set_base_model("b");
  spec.mutable_dataset()->set_dataset("d");
  spec.mutable_lora()->set_rank(0);
  spec.mutable_training()->set_epochs(-1);
  grpc::ClientContext context;
  v1::FineTuningJob job;
  const grpc::Status status = jobs_->CreateFineTuningJob(&context, request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("lora.rank"));
  EXPECT_THAT(status.error_message(), HasSubstr("training.epochs"));
  EXPECT_THAT(status.error_details(), HasSubstr("google.rpc.BadRequest"));
}

TEST_F(ServicesTest, AWatcherSeesEveryEventOfAJobUntilItIsOver) {
  Submit("j");
  grpc::ClientContext watch_context, agent_context;
  v1::WatchFineTuningJobRequest watch;
  watch.set_name("jobs/j");
  const auto watcher = jobs_->WatchFineTuningJob(&watch_context, watch);
  const auto session = workers_->Session(&agent_context);
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id("n1");
  session->Write(request);
  v1::SessionResponse response;
  ASSERT_TRUE(session->Read(&response));
  EXPECT_TRUE(response.has_registered());
  ASSERT_TRUE(session->Read(&response));
  ASSERT_TRUE(response.has_start_attempt());
  EXPECT_EQ(response.start_attempt().attempt(), "jobs/j/attempts/1");
  request.mutable_report()->set_attempt("jobs/j/attempts/1");
  request.mutable_report()->set_sequence(1);
  request.mutable_report()->mutable_ended()->set_outcome(v1::AttemptEnded::FAILED);
  request.mutable_report()->mutable_ended()->set_cause("USER_DATA");
  request.mutable_report()->mutable_ended()->set_message("row 3 is empty");
  session->Write(request);
  ASSERT_TRUE(session->Read(&response));
  EXPECT_EQ(response.report_ack().sequence(), 1);

  v1::WatchFineTuningJobResponse message;
  int64_t last = 0;
  v1::FineTuningJob job;
  while (watcher->Read(&message)) {
    if (message.has_job()) job = message.job();
    if (message.has_event()) {
      EXPECT_EQ(message.event().sequence(), ++last);
    }
  }
  EXPECT_TRUE(watcher->Finish().ok());
  EXPECT_EQ(job.state(), v1::FineTuningJob::FAILED);
  EXPECT_EQ(job.failure().cause(), v1::JobFailure::USER_DATA);
  EXPECT_EQ(job.failure().message(), "row 3 is empty");
  EXPECT_EQ(last, job.last_event_sequence());
  session->WritesDone();
}

}  // namespace
}  // namespace luthier
