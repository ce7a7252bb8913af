// luthierd killed with SIGKILL at random moments while callers submit: whatever it acknowledged is there afterwards,
// once. LUTHIER_KILL_CYCLES: how often (200); LUTHIER_KILL_SEED: of the moments.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

constexpr int kCallers = 4;

unsigned FromEnvironment(const char* name, unsigned otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

v1::CreateFineTuningJobRequest Request(const std::string& id) {
  v1::CreateFineTuningJobRequest request;
  request.set_request_id(id);
  request.mutable_job()->mutable_spec()->set_base_model("base");
  request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
  request.mutable_job()->mutable_spec()->set_task(v1::TASK_CLASSIFICATION);
  return request;
}

class ServerKillTest : public testing::Test {
 protected:
  std::unique_ptr<Luthierd> Start() {
    auto server = std::make_unique<Luthierd>(
        LUTHIERD_PROGRAM, std::vector<std::string>{"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                                                   "--data-dir", folder_.path() + "/data"});
    EXPECT_TRUE(server->Serves()) << server->log();
    return server;
  }
  void AddInputs(Luthierd& server) {
    ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
    grpc::ClientContext register_context, upload_context;
    v1::RegisterBaseModelRequest registration;
    registration.set_base_model_id("base");
    registration.set_source_path(folder_.path() + "/model");
    v1::BaseModel model;
    ASSERT_TRUE(
        v1::ModelService::NewStub(server.channel())->RegisterBaseModel(&register_context, registration, &model).ok());
    v1::Dataset dataset;
    ASSERT_TRUE(UploadRows(*v1::DatasetService::NewStub(server.channel()), upload_context, "rows",
                           ChatLine("a", "b") + ChatLine("c", "d"), dataset)
                    .ok());
  }
  // Submits until the server is gone; a request that was not answered is repeated after the next start.
  void Submit(const std::shared_ptr<grpc::Channel>& channel, std::vector<std::string>& open, int caller) {
    const auto stub = v1::FineTuningService::NewStub(channel);
    while (true) {
      if (open.empty()) open.push_back(absl::StrCat("caller-", caller, "-", ++last_request_));
      grpc::ClientContext context;
      v1::FineTuningJob job;
      const grpc::Status status = stub->CreateFineTuningJob(&context, Request(open.back()), &job);
      if (!status.ok()) {
        EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
        return;
      }
      const std::lock_guard lock(mutex_);
      const auto [acknowledged, first] = acknowledged_.emplace(open.back(), job.name());
      EXPECT_EQ(acknowledged->second, job.name()) << "one request made two jobs";
      open.pop_back();
    }
  }

  TempFolder folder_;
  std::atomic<int> last_request_ = 0;
  std::mutex mutex_;
  std::map<std::string, std::string> acknowledged_;  // request → job
};

TEST_F(ServerKillTest, WhatWasAcknowledgedIsThereAfterKill9) {
  const unsigned cycles = FromEnvironment("LUTHIER_KILL_CYCLES", 200);
  const unsigned seed = FromEnvironment("LUTHIER_KILL_SEED", std::random_device()());
  std::printf("%u cycles, LUTHIER_KILL_SEED=%u\n", cycles, seed);
  std::mt19937 random(seed);
  std::vector<std::vector<std::string>> open(kCallers);
  for (unsigned cycle = 0; cycle < cycles && !HasFailure(); ++cycle) {
    const std::unique_ptr<Luthierd> server = Start();
    if (cycle == 0) AddInputs(*server);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&, caller] { Submit(server->channel(), open[static_cast<size_t>(caller)], caller); });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution<int>(1, 150)(random)));
    server->End(SIGKILL);
    for (std::thread& caller : callers) caller.join();
  }
  const std::unique_ptr<Luthierd> server = Start();
  const auto stub = v1::FineTuningService::NewStub(server->channel());
  std::map<std::string, int> jobs;
  v1::ListFineTuningJobsRequest list;
  list.set_page_size(1000);
  do {
    grpc::ClientContext context;
    v1::ListFineTuningJobsResponse page;
    ASSERT_TRUE(stub->ListFineTuningJobs(&context, list, &page).ok());
    for (const v1::FineTuningJob& job : page.jobs()) ++jobs[job.name()];
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  for (const auto& [request, job] : acknowledged_) EXPECT_EQ(jobs[job], 1) << job << " of " << request;
  // What was not answered was done or not, but never twice.
  EXPECT_LE(jobs.size(), acknowledged_.size() + kCallers);
  EXPECT_GT(acknowledged_.size(), cycles / 2) << "too few jobs to say anything";
  std::printf("%zu jobs acknowledged, %zu on record\n", acknowledged_.size(), jobs.size());
}

}  // namespace
}  // namespace luthier
