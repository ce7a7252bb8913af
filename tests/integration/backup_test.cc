// Backups of a server that works, and what restoring one does to jobs and attempts: real server, CLI, agent and
// trainer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "lib/text/json_file.h"
#include "server/rpc/attempt_key.h"
#include "tests/support/captured_program.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using State = v1::FineTuningJob;

class BackupTest : public testing::Test {
 protected:
  static nlohmann::json LongJob() {
    return {{"training", {{"max_steps", 1000000}, {"batch_tokens", 200}, {"epochs", 10000}}},
            {"resources", {{"threads", 1}}}};
  }
  static nlohmann::json ShortJob() { return {{"training", {{"max_steps", 3}}}, {"resources", {{"threads", 1}}}}; }

  void StartServer() {
    service_.StartServer();
    v1::ListNodesResponse nodes;
    service_.Call([&](grpc::ClientContext& context) {
      return service_.nodes->ListNodes(&context, v1::ListNodesRequest(), &nodes);
    });
  }
  CapturedResult BackUp(const std::string& name = "backup") {
    return RunCaptured(
        {LUTHIER_BIN_FOLDER "/luthier", "--server", service_.Address(), "admin", "backup", "--to", Path(name)});
  }
  CapturedResult Restore(const std::string& data_dir = "server", const std::string& name = "backup") {
    return RunCaptured({LUTHIER_BIN_FOLDER "/luthierd", "restore", "--from", Path(name), "--data-dir", Path(data_dir)});
  }
  CapturedResult Check(const std::string& folder) {
    return RunCaptured({LUTHIER_BIN_FOLDER "/luthierd", "check", "--data-dir", Path(folder)});
  }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  bool Is(const std::string& job, State::State state) { return service_.Job(job).state() == state; }
  // The server is gone with its disk; the backup takes its place at the same address.
  void LoseTheServerAndRestore() {
    service_.server.End(SIGKILL);
    fs::rename(Path("server"), Path("lost"));
    const CapturedResult restored = Restore();
    ASSERT_EQ(restored.exit_code, 0) << restored.err;
    StartServer();
  }
  // Changes one byte in the middle of a file.
  static void Damage(const std::string& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto middle = static_cast<std::streamoff>(fs::file_size(path) / 2);
    file.seekg(middle);
    const auto byte = static_cast<char>(file.get() ^ 0x20);
    file.seekp(middle);
    file.put(byte);
  }
  // A stored file of some size: the weights of the base model.
  static std::string LargestBlob(const std::string& data_dir) {
    fs::path largest;
    for (const auto& entry : fs::recursive_directory_iterator(data_dir + "/artifacts/blobs")) {
      if (entry.is_regular_file() && (largest.empty() || entry.file_size() > fs::file_size(largest)))
        largest = entry.path();
    }
    return largest;
  }
  grpc::Status UploadFor(const std::string& attempt) {
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    const auto workers =
        v1::WorkerService::NewStub(grpc::CreateChannel(service_.Address(), grpc::InsecureChannelCredentials()));
    const auto writer = workers->UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt);
    request.mutable_header()->set_credential(AttemptCredential(*AttemptKeyOf(Path("server")), attempt));
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

// A backup is made while a job trains and four callers submit. The server is then lost, with an attempt running that
// began after the backup. After the restoration every job that was acknowledged before the backup is there, that
// attempt ends, and all of them can run.
TEST_F(BackupTest, BringsBackEveryAcknowledgedJobAndEndsAttemptsFromAfterTheBackup) {
  StartServer();
  service_.AddInputs();
  service_.StartAgent();
  service_.Submit("first", LongJob());
  service_.Submit("second", LongJob());
  service_.Submit("third", ShortJob());
  ASSERT_TRUE(WaitFor([&] { return Is("first", State::RUNNING); }, std::chrono::seconds(60)));

  std::mutex mutex;
  std::set<std::string> acknowledged;
  std::atomic<bool> over = false;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; !over; ++i) {
        const std::string id = absl::StrCat("many-", caller, "-", i);
        service_.Submit(id);
        const std::lock_guard lock(mutex);
        acknowledged.insert(id);
      }
    });
  }
  const auto count = [&] {
    const std::lock_guard lock(mutex);
    return acknowledged.size();
  };
  ASSERT_TRUE(WaitFor([&] { return count() >= 40; }));
  std::set<std::string> before;
  {
    const std::lock_guard lock(mutex);
    before = acknowledged;
  }
  const CapturedResult backup = BackUp();
  EXPECT_EQ(backup.exit_code, 0) << backup.err;
  EXPECT_EQ(backup.out, Path("backup") + "\n");
  const size_t at_end = count();
  EXPECT_TRUE(WaitFor([&] { return count() > at_end; })) << "submissions go on";
  over = true;
  for (std::thread& caller : callers) caller.join();

  service_.Cancel("first");
  ASSERT_TRUE(WaitFor([&] { return Is("second", State::RUNNING); }, std::chrono::seconds(60)));
  EXPECT_EQ(service_.Job("second").attempt(), 1);
  LoseTheServerAndRestore();

  for (const std::string& id : before) EXPECT_EQ(service_.Job(id).name(), "jobs/" + id);
  // `first` trained when the backup was made: it goes on with an attempt that no agent can have known.
  ASSERT_TRUE(WaitFor([&] { return Is("first", State::RUNNING); }, std::chrono::seconds(60)))
      << service_.Job("first").DebugString();
  EXPECT_EQ(service_.Job("first").attempt(), 10001);
  EXPECT_THAT(ProcessesWith("/jobs/second/"), IsEmpty()) << "an attempt from after the backup went on";
  EXPECT_EQ(UploadFor("jobs/second/attempts/1").error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(UploadFor("jobs/first/attempts/1").error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  int64_t sequence = 0;
  for (const v1::JobEvent& event : service_.Events("first")) EXPECT_EQ(event.sequence(), ++sequence);

  service_.Cancel("first");
  service_.Cancel("second");
  ASSERT_TRUE(WaitFor([&] { return Is("third", State::SUCCEEDED); }, std::chrono::seconds(120)))
      << service_.Job("third").DebugString();
  EXPECT_EQ(service_.Job("third").attempt(), 10001);
  EXPECT_EQ(service_.Versions("third"), 1);
}

TEST_F(BackupTest, HoldsTheFilesOfPublishedModelsAndInputs) {
  StartServer();
  service_.AddInputs();
  service_.Submit("j");
  {
    ScriptedAgent agent(service_.Address());
    agent.TakeAttempt();
    agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}});
    agent.Report({{"event", "finished"}, {"stop_reason", "COMPLETED"}});
    agent.Publish({{"adapter_model.safetensors", std::string(100000, 'w')}});
    agent.End(v1::AttemptEnded::FINISHED);
  }
  ASSERT_EQ(BackUp().exit_code, 0);
  fs::remove_all(Path("made"));
  service_.server.End(SIGKILL);
  fs::remove_all(Path("server"));  // links or not, the backup keeps its files
  ASSERT_EQ(Restore().exit_code, 0);
  StartServer();
  const CapturedResult download = RunCaptured({LUTHIER_BIN_FOLDER "/luthier", "--server", service_.Address(), "model",
                                               "download", "j", "--to", Path("downloaded")});
  EXPECT_EQ(download.exit_code, 0) << download.err;
  EXPECT_EQ(*ReadTextFile(Path("downloaded/adapter_model.safetensors")), std::string(100000, 'w'));
  service_.Submit("again");  // reads rows and base model
}

TEST_F(BackupTest, ABackupAndWhatIsRestoredAreTheirUsersAlone) {
  StartServer();
  service_.AddInputs();
  ASSERT_EQ(BackUp().exit_code, 0);
  ASSERT_EQ(Restore("restored").exit_code, 0);
  for (const char* folder : {"backup", "restored"})
    EXPECT_EQ(fs::status(Path(folder)).permissions(), fs::perms::owner_all) << folder;
}

TEST_F(BackupTest, ASecondRestorationBeginsAnotherEpoch) {
  StartServer();
  service_.AddInputs();
  service_.Submit("j");
  ASSERT_EQ(BackUp().exit_code, 0);
  for (int epoch = 1; epoch <= 2; ++epoch) {
    service_.server.End(SIGKILL);
    fs::remove_all(Path("server"));
    const CapturedResult restored = Restore();
    ASSERT_EQ(restored.exit_code, 0) << restored.err;
    EXPECT_THAT(restored.out, HasSubstr(absl::StrCat("epoch ", epoch)));
    StartServer();
    ScriptedAgent agent(service_.Address());
    EXPECT_EQ(agent.TakeAttempt(), absl::StrCat("jobs/j/attempts/", epoch * 10000 + 1));
  }
}

TEST_F(BackupTest, RefusesWhatWouldOverwriteAndLeavesIt) {
  StartServer();
  service_.AddInputs();
  ASSERT_EQ(BackUp().exit_code, 0);
  const CapturedResult again = BackUp();
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr(Path("backup") + " exists"));
  fs::create_directory_symlink(Path("server"), Path("link"));
  for (const char* inside : {"server/backup", "link/artifacts/backup"}) {
    const CapturedResult lost_with_it = BackUp(inside);
    EXPECT_EQ(lost_with_it.exit_code, 3);
    EXPECT_THAT(lost_with_it.err, HasSubstr("is inside the data folder"));
  }
  service_.server.End(SIGTERM);
  const CapturedResult taken = Restore();
  EXPECT_EQ(taken.exit_code, 1);
  EXPECT_THAT(taken.err, HasSubstr("holds a database"));
  EXPECT_EQ(Check("server").exit_code, 0);
  EXPECT_EQ(Check("backup").exit_code, 0);
  // Of a server that was killed: somebody moved luthier.db away and left its log.
  fs::create_directory(Path("left"));
  WriteText(Path("left/luthier.db-wal"), "of another database");
  const CapturedResult mixed = Restore("left");
  EXPECT_EQ(mixed.exit_code, 1);
  EXPECT_THAT(mixed.err, HasSubstr("luthier.db-wal"));
}

TEST_F(BackupTest, FindsADamagedByteAndRefusesToRestoreIt) {
  StartServer();
  service_.AddInputs();
  ASSERT_EQ(BackUp().exit_code, 0);
  service_.server.End(SIGTERM);
  fs::copy(Path("backup"), Path("rotten"), fs::copy_options::recursive);
  Damage(Path("rotten/luthier.db"));
  EXPECT_THAT(Check("rotten").err,
              AllOf(HasSubstr("rotten/luthier.db: its content has another hash"), HasSubstr("luthierd restore")));
  const CapturedResult refused = Restore("new", "rotten");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("damaged"));
  EXPECT_FALSE(fs::exists(Path("new/luthier.db")));

  const std::string blob = LargestBlob(Path("server"));
  fs::copy(blob, Path("blob"));  // no longer a link to what the backup holds
  Damage(Path("blob"));
  fs::rename(Path("blob"), blob);
  const CapturedResult found = Check("server");
  EXPECT_EQ(found.exit_code, 1);
  EXPECT_THAT(found.err, AllOf(HasSubstr(blob), HasSubstr("luthierd restore")));
  // A restoration into the same folder replaces the damaged file.
  fs::remove(Path("server/luthier.db"));
  ASSERT_EQ(Restore().exit_code, 0);
  EXPECT_EQ(Check("server").exit_code, 0);
}

TEST_F(BackupTest, RemovesWhatAKilledServerLeftOfABackupAndNothingElse) {
  StartServer();
  service_.AddInputs();
  const auto put = [&](const std::string& folder, const std::string& file) {
    fs::create_directory(Path(folder));
    std::ofstream(Path(folder + "/" + file)) << "mine";
  };
  put("backup.partial", "luthier.db");  // as earlier versions called theirs
  put("backup.partial-abcdef", "luthier.db");
  put("backup.partial-killed", ".unfinished");
  put("backup-2.partial-killed", ".unfinished");
  const CapturedResult backup = BackUp();
  EXPECT_EQ(backup.exit_code, 0) << backup.err;
  EXPECT_TRUE(fs::exists(Path("backup.partial/luthier.db")));
  EXPECT_TRUE(fs::exists(Path("backup.partial-abcdef/luthier.db")));
  EXPECT_FALSE(fs::exists(Path("backup.partial-killed")));
  EXPECT_TRUE(fs::exists(Path("backup-2.partial-killed"))) << "of another backup";
  EXPECT_FALSE(fs::exists(Path("backup/.unfinished")));
  EXPECT_EQ(Check("backup").exit_code, 0);
}

// A version that somebody downloaded after the backup must stay the only one of its number.
TEST_F(BackupTest, AVersionFromAfterTheBackupDoesNotShareItsNumberWithALaterOne) {
  StartServer();
  service_.AddInputs();
  const auto publish = [&](const std::string& id, const std::string& weights) {
    service_.Submit(id, {{"output_model", "shared"}});
    ScriptedAgent agent(service_.Address());
    EXPECT_THAT(agent.TakeAttempt(), HasSubstr(id));
    agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}});
    agent.Report({{"event", "finished"}, {"stop_reason", "COMPLETED"}});
    agent.Publish({{"adapter_model.safetensors", weights}});
    agent.End(v1::AttemptEnded::FINISHED);
    return service_.Job(id).model_version();
  };
  EXPECT_EQ(publish("before", "1"), "models/shared/versions/1");
  ASSERT_EQ(BackUp().exit_code, 0);
  EXPECT_EQ(publish("after", "2"), "models/shared/versions/2");
  LoseTheServerAndRestore();
  EXPECT_EQ(publish("later", "3"), "models/shared/versions/10001");
  EXPECT_EQ(service_.Versions("shared"), 2);
}

// Whatever the moment: either there is a whole backup, or none, and the server goes on.
TEST_F(BackupTest, AServerThatIsKilledWhileItBacksUpLeavesAWholeBackupOrNone) {
  StartServer();
  service_.AddInputs();
  for (int i = 0; i < 20; ++i) service_.Submit(absl::StrCat("j", i));
  for (int cycle = 0; cycle < 20; ++cycle) {
    const std::string name = absl::StrCat("backup-", cycle);
    std::thread backup([&] { BackUp(name); });
    std::this_thread::sleep_for(std::chrono::milliseconds(5 * cycle));  // the moment is the point here
    service_.server.End(SIGKILL);
    backup.join();
    if (fs::exists(Path(name))) {
      const CapturedResult check = Check(name);
      EXPECT_EQ(check.exit_code, 0) << check.err;
    }
    StartServer();
    EXPECT_EQ(service_.Job("j19").name(), "jobs/j19");
  }
  ASSERT_EQ(BackUp("backup-19-again").exit_code, 0);
}

}  // namespace
}  // namespace luthier
