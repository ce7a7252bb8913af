// luthierd killed in place of one write, flush or rename after the other: what it acknowledged is there, and it goes
// on. LUTHIER_CRASH_POINTS=all: at every one; else every tenth is tried, where LUTHIER_CRASH_SEED says which.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "SQLiteCpp/Database.h"
#include "absl/strings/str_cat.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

using ::testing::UnorderedElementsAre;

class CrashPointsTest : public testing::Test {
 protected:
  // `point`: of the call that it does not survive; 0: none.
  static std::unique_ptr<Luthierd> Start(const std::string& folder, int point = 0) {
    std::vector<std::string> environment;
    if (point > 0) environment = {"LD_PRELOAD=" LUTHIER_FAULTY_DISK, absl::StrCat("FAULTY_DISK_KILLS_AT=", point)};
    return std::make_unique<Luthierd>(
        LUTHIERD_PROGRAM,
        std::vector<std::string>{"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder},
        environment);
  }
  static std::vector<std::string> Jobs(Luthierd& server) {
    grpc::ClientContext context;
    v1::ListFineTuningJobsResponse page;
    EXPECT_TRUE(v1::FineTuningService::NewStub(server.channel())->ListFineTuningJobs(&context, {}, &page).ok());
    std::vector<std::string> jobs;
    for (const v1::FineTuningJob& job : page.jobs()) jobs.push_back(job.name());
    return jobs;
  }

  // What users do first, one after the other: true if all of it was acknowledged. Each may be repeated.
  bool Register(Luthierd& server) {
    grpc::ClientContext context;
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(inputs_.path() + "/model");
    v1::BaseModel model;
    return v1::ModelService::NewStub(server.channel())->RegisterBaseModel(&context, request, &model).ok();
  }
  bool Upload(Luthierd& server) {
    grpc::ClientContext context;
    v1::Dataset dataset;
    const std::string rows = ChatLine("a", "b") + ChatLine("c", "d");
    return UploadRows(*v1::DatasetService::NewStub(server.channel()), context, "rows", rows, dataset).ok();
  }
  bool Submit(Luthierd& server, std::string& job) {
    grpc::ClientContext context;
    v1::CreateFineTuningJobRequest request;
    request.set_request_id("11111111-2222-4333-8444-555555555555");
    request.mutable_job()->mutable_spec()->set_base_model("base");
    request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
    v1::FineTuningJob created;
    const bool done =
        v1::FineTuningService::NewStub(server.channel())->CreateFineTuningJob(&context, request, &created).ok();
    if (done) job = created.name();
    return done;
  }
  bool BackUp(Luthierd& server, const std::string& path) {
    grpc::ClientContext context;
    v1::CreateBackupRequest request;
    request.set_path(path);
    v1::Backup backup;
    return v1::AdminService::NewStub(server.channel())->CreateBackup(&context, request, &backup).ok();
  }

  void SetUp() override { ASSERT_TRUE(WriteTinyModel(inputs_.path() + "/model").ok()); }
  TempFolder inputs_;
};

TEST_F(CrashPointsTest, AMigrationThatIsKilledAtAnyWriteIsDoneByTheNextStart) {
  std::ifstream stream("tests/unit/store/version1.sql");
  const std::string version1(std::istreambuf_iterator<char>(stream), {});
  ASSERT_FALSE(version1.empty());
  int point = 1;
  for (;; ++point) {
    const TempFolder folder;
    SQLite::Database(folder.path() + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE).exec(version1);
    if (Start(folder.path(), point)->Serves()) break;
    {
      const auto again = Start(folder.path());
      ASSERT_TRUE(again->Serves()) << "after call " << point << ": " << again->log();
    }
    // The rows of the file hold no real specs, so no call could show them.
    SQLite::Database record(folder.path() + "/luthier.db", SQLite::OPEN_READWRITE);
    const std::string jobs = record.execAndGet("SELECT group_concat(id) FROM (SELECT id FROM jobs ORDER BY id)");
    ASSERT_EQ(jobs, "done,running,waiting") << "after call " << point;
  }
  std::printf("killed at each of %d calls\n", point - 1);
  EXPECT_GT(point, 20);
}

TEST_F(CrashPointsTest, WhatWasAcknowledgedIsThereWhicheverWriteWasTheLast) {
  const char* const seed_text = std::getenv("LUTHIER_CRASH_SEED");
  const unsigned seed =
      seed_text == nullptr ? std::random_device()() : static_cast<unsigned>(std::strtoul(seed_text, nullptr, 10));
  const int stride = std::getenv("LUTHIER_CRASH_POINTS") == nullptr ? 10 : 1;
  int points = 0;
  bool survived = false;
  for (int point = 1 + static_cast<int>(seed % static_cast<unsigned>(stride)); !survived; point += stride) {
    SCOPED_TRACE(absl::StrCat("LUTHIER_CRASH_SEED=", seed, ", killed at call ", point));
    const TempFolder folder;
    const std::string data = folder.path() + "/data";
    std::string acknowledged, job;
    bool registered = false, uploaded = false;
    {
      const auto server = Start(data, point);
      registered = server->Serves() && Register(*server);
      uploaded = registered && Upload(*server);
      survived = uploaded && Submit(*server, acknowledged) && BackUp(*server, folder.path() + "/backup");
    }
    ++points;
    const auto again = Start(data);
    ASSERT_TRUE(again->Serves()) << again->log();
    const size_t jobs = Jobs(*again).size();
    EXPECT_LE(jobs, uploaded ? 1u : 0u);
    if (!acknowledged.empty()) {
      EXPECT_THAT(Jobs(*again), UnorderedElementsAre(acknowledged));
    }
    // The job can be made from what was acknowledged; what was not is done now, and no second time.
    if (!registered) {
      EXPECT_TRUE(Register(*again)) << again->log();
    }
    if (!uploaded) {
      EXPECT_TRUE(Upload(*again)) << again->log();
    }
    EXPECT_TRUE(Submit(*again, job)) << again->log();
    EXPECT_THAT(Jobs(*again), UnorderedElementsAre(job));
    if (!acknowledged.empty()) {
      EXPECT_EQ(job, acknowledged);
    }
    EXPECT_TRUE(BackUp(*again, folder.path() + "/another")) << again->log();
  }
  std::printf("LUTHIER_CRASH_SEED=%u, killed at %d calls, one in %d\n", seed, points - 1, stride);
  EXPECT_GT(points * stride, 50);
}

}  // namespace
}  // namespace luthier
