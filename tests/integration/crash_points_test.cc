// luthierd killed in place of one write, flush or rename after the other: what it acknowledged is there, and it goes
// on. Once with all that was written, as a kill leaves it, and once with what was flushed, as a power loss leaves it.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "SQLiteCpp/Database.h"
#include "absl/strings/str_cat.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "tests/support/captured_program.h"
#include "tests/support/crash_points.h"
#include "tests/support/luthierd.h"
#include "tests/support/power_loss.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::UnorderedElementsAre;
using JobState = v1::FineTuningJob;

constexpr char kWeights[] = "adapter_model.safetensors";

// What was asked of a server and acknowledged.
struct Acknowledged {
  bool registered = false, uploaded = false, checkpointed = false, published = false;
  std::string job, backup;
  HeldAttempt attempt;  // by its agent, once it was taken
};

class CrashPointsTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(WriteTinyModel(inputs_.path() + "/model").ok()); }

  // `point`: of the call that it does not survive; 0: none. `kept`: where what was flushed is kept.
  static std::unique_ptr<Luthierd> Start(const std::string& data, int point = 0, const std::string& kept = "",
                                         const std::vector<std::string>& more = {}) {
    std::vector<std::string> environment;
    if (point > 0) environment = {"LD_PRELOAD=" LUTHIER_FAULTY_DISK, absl::StrCat("FAULTY_DISK_KILLS_AT=", point)};
    if (!kept.empty()) environment.push_back("FAULTY_DISK_KEEPS=" + kept);
    std::vector<std::string> arguments = {"--listen",    "127.0.0.1:0", "--metrics-listen",
                                          "127.0.0.1:0", "--data-dir",  data};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<Luthierd>(LUTHIERD_PROGRAM, arguments, environment);
  }

  bool Register(Luthierd& server) {
    grpc::ClientContext context;
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(inputs_.path() + "/model");
    v1::BaseModel model;
    return v1::ModelService::NewStub(server.channel())->RegisterBaseModel(&context, request, &model).ok();
  }
  static bool Upload(Luthierd& server) {
    grpc::ClientContext context;
    v1::Dataset dataset;
    const std::string rows = ChatLine("a", "b") + ChatLine("c", "d");
    return UploadRows(*v1::DatasetService::NewStub(server.channel()), context, "rows", rows, dataset).ok();
  }
  static bool Submit(Luthierd& server, std::string& job) {
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
  // An agent trains the job, stores its checkpoint and uploads its result. What it has reported before it may report
  // again.
  static bool Train(Luthierd& server, Acknowledged& done) {
    if (Get(server, done.job).state() == JobState::SUCCEEDED) return true;
    HeldAttempt& attempt = done.attempt;
    ScriptedAgent agent(server.channel(), attempt);
    if (attempt.name.empty()) {
      attempt.name = agent.TakeAttempt();
      attempt.credential = agent.credential();
    }
    if (attempt.name.empty() ||
        !agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}}) ||
        !agent.Log(std::vector<std::string>{"a line", "another line"}) ||
        !agent.StoreCheckpoint(1, {{"step-1/state.json", std::string(1000, 'c')}})) {
      return false;
    }
    done.checkpointed = true;
    return agent.Report({{"event", "finished"}, {"stop_reason", "COMPLETED"}}) &&
           agent.Publish({{kWeights, std::string(1000, 'w')}});
  }
  static bool BackUp(Luthierd& server, const std::string& path, std::string& backup) {
    grpc::ClientContext context;
    v1::CreateBackupRequest request;
    request.set_path(path);
    v1::Backup made;
    const bool done = v1::AdminService::NewStub(server.channel())->CreateBackup(&context, request, &made).ok();
    if (done) backup = path;
    return done;
  }
  // Asks for what is not acknowledged yet: true if now all of it is.
  bool Ask(Luthierd& server, const std::string& backup, Acknowledged& done) {
    return (done.registered || (done.registered = Register(server))) &&
           (done.uploaded || (done.uploaded = Upload(server))) && (!done.job.empty() || Submit(server, done.job)) &&
           (done.published || (done.published = Train(server, done))) &&
           (!done.backup.empty() || BackUp(server, backup, done.backup));
  }

  static v1::FineTuningJob Get(Luthierd& server, const std::string& name) {
    grpc::ClientContext context;
    v1::GetFineTuningJobRequest request;
    request.set_name(name);
    v1::FineTuningJob job;
    v1::FineTuningService::NewStub(server.channel())->GetFineTuningJob(&context, request, &job);
    return job;
  }
  static std::vector<std::string> Jobs(Luthierd& server) {
    grpc::ClientContext context;
    v1::ListFineTuningJobsResponse page;
    EXPECT_TRUE(v1::FineTuningService::NewStub(server.channel())->ListFineTuningJobs(&context, {}, &page).ok());
    std::vector<std::string> jobs;
    for (const v1::FineTuningJob& job : page.jobs()) jobs.push_back(job.name());
    return jobs;
  }
  // Contents of the file that each version of the job's model has.
  static std::vector<std::string> Published(Luthierd& server, const std::string& job) {
    const auto models = v1::ModelService::NewStub(server.channel());
    v1::ListModelVersionsRequest request;
    request.set_parent("models/" + job.substr(job.find('/') + 1));
    grpc::ClientContext context;
    v1::ListModelVersionsResponse versions;
    models->ListModelVersions(&context, request, &versions);
    std::vector<std::string> contents;
    for (const v1::ModelVersion& version : versions.model_versions()) {
      v1::DownloadModelVersionRequest wanted;
      wanted.set_name(version.name());
      grpc::ClientContext download;
      const auto reader = models->DownloadModelVersion(&download, wanted);
      std::string content;
      for (v1::DownloadModelVersionResponse message; reader->Read(&message);) content += message.chunk().data();
      EXPECT_TRUE(reader->Finish().ok());
      contents.push_back(content);
    }
    return contents;
  }
  static void ExpectWhole(const std::string& backup) {
    const CapturedResult check = RunCaptured({LUTHIERD_PROGRAM, "check", "--data-dir", backup});
    EXPECT_EQ(check.exit_code, 0) << check.err;
  }
  // Number of the job's events of a type; -1 if the server is gone.
  static int Events(Luthierd& server, const std::string& job, const char* type) {
    grpc::ClientContext context;
    v1::ListJobEventsRequest request;
    request.set_parent(job);
    request.add_types(type);
    v1::ListJobEventsResponse page;
    const grpc::Status status =
        v1::FineTuningService::NewStub(server.channel())->ListJobEvents(&context, request, &page);
    return status.ok() ? page.events_size() : -1;
  }
  static void ExpectThere(Luthierd& server, const Acknowledged& done) {
    EXPECT_LE(Jobs(server).size(), done.uploaded ? 1u : 0u);
    if (!done.job.empty()) {
      EXPECT_THAT(Jobs(server), UnorderedElementsAre(done.job));
    }
    if (done.checkpointed) {
      EXPECT_EQ(Events(server, done.job, "checkpoint_stored"), 1);
    }
    if (done.published) {
      EXPECT_EQ(Get(server, done.job).state(), JobState::SUCCEEDED);
      EXPECT_THAT(Published(server, done.job), UnorderedElementsAre(std::string(1000, 'w')));
    }
    if (!done.backup.empty()) ExpectWhole(done.backup);
  }
  // Kills servers at the points until one survives what is asked of it.
  void TryPoints(CrashPoints& points, bool loses_power) {
    for (bool survived = false; !survived;) {
      const int point = points.Next();
      SCOPED_TRACE(points.Trace(point));
      const TempFolder folder;
      const std::string disk = folder.path() + "/disk", kept = folder.path() + "/kept";
      fs::create_directory(disk);
      fs::create_directory(kept);
      Acknowledged done;
      {
        const auto server = Start(disk + "/data", point, loses_power ? kept : "");
        survived = server->Serves() && Ask(*server, disk + "/backup", done);
        if (!survived) {
          ASSERT_EQ(server->Wait(), -SIGKILL) << "it refused something: " << server->log();
        }
      }
      if (loses_power) PowerLoss(kept, static_cast<unsigned>(point) * 37 % 256).LeaveOf(disk);
      const auto again = Start(disk + "/data");
      ASSERT_TRUE(again->Serves()) << again->log();
      ExpectThere(*again, done);
      if (fs::exists(disk + "/backup/backup.json")) ExpectWhole(disk + "/backup");
      // What was not acknowledged is done now, and nothing twice.
      EXPECT_TRUE(Ask(*again, disk + "/another-backup", done)) << again->log();
      ExpectThere(*again, done);
      if (HasFailure()) return;
    }
    EXPECT_GT(points.all(), 100);
  }

  TempFolder inputs_;
};

TEST_F(CrashPointsTest, AMigrationThatIsKilledAtAnyWriteIsDoneByTheNextStart) {
  std::ifstream stream("tests/unit/store/version1.sql");
  const std::string version1(std::istreambuf_iterator<char>(stream), {});
  ASSERT_FALSE(version1.empty());
  CrashPoints points;
  while (true) {
    const int point = points.Next();
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
  EXPECT_GT(points.all(), 20);
}

TEST_F(CrashPointsTest, WhatWasAcknowledgedIsThereWhicheverWriteWasTheLast) {
  CrashPoints points;
  TryPoints(points, /*loses_power=*/false);
}

TEST_F(CrashPointsTest, WhatWasAcknowledgedSurvivesAPowerLossAtAnyWrite) {
  CrashPoints points;
  TryPoints(points, /*loses_power=*/true);
}

TEST_F(CrashPointsTest, ARetentionThatIsKilledAtAnyWriteIsDoneByTheNextStart) {
  const TempFolder before;
  Acknowledged done;
  {
    const auto server = Start(before.path() + "/data");
    ASSERT_TRUE(Ask(*server, before.path() + "/backup", done)) << server->log();
    ASSERT_EQ(server->End(SIGTERM), 0);
  }
  done.checkpointed = false;  // what says so is among what the retention takes
  CrashPoints points;
  for (bool survived = false; !survived;) {
    const int point = points.Next();
    SCOPED_TRACE(points.Trace(point));
    const TempFolder folder;
    const std::string data = folder.path() + "/data";
    fs::copy(before.path() + "/data", data, fs::copy_options::recursive);
    int lines = -1;
    {
      const auto server = Start(data, point, "", {"--retention", "0s"});
      if (server->Serves()) WaitFor([&] { return (lines = Events(*server, done.job, "log")) <= 0; });
      survived = lines == 0;
    }
    const auto again = Start(data, 0, "", {"--retention", "0s"});
    ASSERT_TRUE(again->Serves()) << again->log();
    EXPECT_TRUE(WaitFor([&] { return Events(*again, done.job, "log") == 0; })) << again->log();
    ExpectThere(*again, done);
  }
  EXPECT_GT(points.all(), 3);
}

}  // namespace
}  // namespace luthier
