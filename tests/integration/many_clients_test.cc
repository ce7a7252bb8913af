// Far more calls and watchers than a service should have: its memory stays bounded, and it serves others meanwhile.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

using Jobs = v1::FineTuningService;

class ManyClientsTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Serves()) << server_.log();
    ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(folder_.path() + "/model");
    v1::BaseModel model;
    grpc::ClientContext registration, upload;
    ASSERT_TRUE(v1::ModelService::NewStub(server_.channel())->RegisterBaseModel(&registration, request, &model).ok());
    v1::Dataset dataset;
    const std::string rows = ChatLine("a", "b") + ChatLine("c", "d");
    ASSERT_TRUE(UploadRows(*v1::DatasetService::NewStub(server_.channel()), upload, "rows", rows, dataset).ok());
  }
  static v1::CreateFineTuningJobRequest JobRequest() {
    v1::CreateFineTuningJobRequest request;
    request.mutable_job()->mutable_spec()->set_base_model("base");
    request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
    return request;
  }
  // On a connection of its own.
  std::unique_ptr<Jobs::Stub> Connect() const {
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return Jobs::NewStub(grpc::CreateCustomChannel(server_address_, grpc::InsecureChannelCredentials(), own));
  }

  TempFolder folder_;
  Luthierd server_{
      LUTHIERD_PROGRAM,
      {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder_.path() + "/data"}};
  const std::string server_address_ = server_.address();
};

// One client sends as fast as it can, without waiting for answers; its tenant may have a hundred jobs in the queue.
TEST_F(ManyClientsTest, AFloodOfSubmissionsIsRefusedInBoundedMemory) {
  constexpr int kCalls = 10'000, kLimit = 100;
  v1::UpdateTenantRequest limit;
  limit.mutable_tenant()->set_name("tenants/default");
  limit.mutable_tenant()->set_max_queued_jobs(kLimit);
  limit.mutable_update_mask()->add_paths("max_queued_jobs");
  grpc::ClientContext context;
  v1::Tenant tenant;
  ASSERT_TRUE(v1::QueueService::NewStub(server_.channel())->UpdateTenant(&context, limit, &tenant).ok());

  struct Flood {
    grpc::ClientContext context;
    v1::FineTuningJob job;
  };
  const int64_t before = server_.PeakBytes();
  const v1::CreateFineTuningJobRequest request = JobRequest();
  const auto flooding = Connect();
  std::deque<Flood> calls(kCalls);
  std::mutex mutex;
  std::condition_variable changed;
  int answered = 0;
  std::map<grpc::StatusCode, int> codes;
  for (Flood& call : calls) {
    flooding->async()->CreateFineTuningJob(&call.context, &request, &call.job, [&](const grpc::Status& status) {
      const std::lock_guard lock(mutex);
      ++codes[status.error_code()];
      if (++answered == kCalls) changed.notify_all();
    });
  }
  // Somebody else, meanwhile.
  grpc::ClientContext other;
  other.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::ListFineTuningJobsResponse page;
  EXPECT_TRUE(Jobs::NewStub(server_.channel())->ListFineTuningJobs(&other, {}, &page).ok());
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return answered == kCalls; });
  EXPECT_EQ(codes[grpc::StatusCode::OK], kLimit);
  EXPECT_EQ(codes[grpc::StatusCode::RESOURCE_EXHAUSTED], kCalls - kLimit);
  const int64_t grown = server_.PeakBytes() - before;
  std::printf("%d submissions at once: %.1f MB\n", kCalls, static_cast<double>(grown) / 1e6);
  EXPECT_LT(grown, 100 << 20);
}

// Three hundred watchers that never read, beside thirty that do, of a job that says 4 MB: what waits for the silent
// ones would be more than a gigabyte.
TEST_F(ManyClientsTest, WatchersThatNeverReadCostLittleAndHinderNobody) {
  constexpr int kSilent = 300, kReading = 30, kReports = 40, kLines = 100;
  v1::FineTuningJob job;
  grpc::ClientContext context;
  ASSERT_TRUE(Jobs::NewStub(server_.channel())->CreateFineTuningJob(&context, JobRequest(), &job).ok());
  ScriptedAgent agent(server_.address());
  ASSERT_NE(agent.TakeAttempt(), "");
  ASSERT_TRUE(agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}}));

  v1::WatchFineTuningJobRequest request;
  request.set_name(job.name());
  struct Watch {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::WatchFineTuningJobResponse>> reader;
    // Everything until the job is over: the number of log lines, -1 if an event is missing.
    int ReadAll() {
      int lines = 0;
      int64_t sequence = 0;
      for (v1::WatchFineTuningJobResponse message; reader->Read(&message);) {
        if (!message.has_event()) continue;
        if (message.event().sequence() != ++sequence) return -1;
        lines += message.event().type() == "log" ? 1 : 0;
      }
      return reader->Finish().ok() ? lines : -1;
    }
  };
  const int64_t before = server_.PeakBytes();
  const auto silent_stub = Connect(), reading_stub = Connect();
  std::deque<Watch> silent(kSilent), reading(kReading);
  for (Watch& watch : silent) watch.reader = silent_stub->WatchFineTuningJob(&watch.context, request);
  for (Watch& watch : reading) watch.reader = reading_stub->WatchFineTuningJob(&watch.context, request);
  std::vector<int> read(kReading);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kReading; ++i) threads.emplace_back([&, i] { read[i] = reading[i].ReadAll(); });

  const std::vector<std::string> lines(kLines, std::string(1000, 'x'));
  for (int i = 0; i < kReports; ++i) ASSERT_TRUE(agent.Log(lines));
  ASSERT_TRUE(agent.End(v1::AttemptEnded::FAILED, "USER_DATA", "that was all"));
  for (std::thread& thread : threads) thread.join();
  for (const int count : read) EXPECT_EQ(count, kReports * kLines);
  const int64_t grown = server_.PeakBytes() - before;
  std::printf("%d silent watchers: %.1f MB\n", kSilent, static_cast<double>(grown) / 1e6);
  EXPECT_LT(grown, 100 << 20);
  EXPECT_EQ(silent.front().ReadAll(), kReports * kLines) << "it catches up from the record";
  for (Watch& watch : silent) watch.context.TryCancel();
}

}  // namespace
}  // namespace luthier
