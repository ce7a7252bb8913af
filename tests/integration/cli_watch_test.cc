// Commands that stay until something happens: what they say meanwhile, how they end, and that they survive the server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "grpcpp/grpcpp.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/worker.pb.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/scripted_agent.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// An upload that does not end: a server that is stopped waits for it, and ends calls that come meanwhile.
class EndlessUpload {
 public:
  explicit EndlessUpload(const std::string& server)
      : stub_(v1::DatasetService::NewStub(grpc::CreateChannel(server, grpc::InsecureChannelCredentials()))),
        writer_(stub_->UploadDataset(&context_, &dataset_)) {
    v1::UploadDatasetRequest request;
    request.mutable_header()->set_dataset_id("endless");
    v1::DatasetPart& part = *request.mutable_header()->add_parts();
    part.set_part("train");
    part.set_size_bytes(1000);
    part.set_sha256(std::string(64, '0'));
    writer_->Write(request);
  }
  EndlessUpload(const EndlessUpload&) = delete;
  ~EndlessUpload() {
    context_.TryCancel();
    (void)writer_->Finish();
  }

 private:
  const std::unique_ptr<v1::DatasetService::Stub> stub_;
  grpc::ClientContext context_;
  v1::Dataset dataset_;
  const std::unique_ptr<grpc::ClientWriter<v1::UploadDatasetRequest>> writer_;
};

TEST_F(CliTest, AWatchSurvivesAKilledServerAndMissesNoEvent) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  auto agent = std::make_unique<ScriptedAgent>(server_->address());
  agent->TakeAttempt();
  agent->Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 4}, {"resumed_step", 0}});
  bool killed = false;
  std::thread training;
  CaptureOptions options;
  options.on_output = [&](const CapturedResult& result, pid_t) {
    if (killed || !absl::StrContains(result.out, "\"started\"")) return;
    killed = true;
    agent.reset();
    server_->Kill();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // an outage that a watcher notices
    server_->Start();
    training = std::thread([&] {
      ScriptedAgent again(server_->address());  // comes back without the attempt: it is lost, and tried again
      Train(again);
    });
  };
  const CapturedResult watch = Cli({"job", "watch", "j", "-o", "json"}, options);
  training.join();
  EXPECT_EQ(watch.exit_code, 0) << watch.err;
  EXPECT_THAT(watch.err, HasSubstr("no server answers"));
  int64_t last = 0;
  for (const auto& line : absl::StrSplit(watch.out, '\n', absl::SkipEmpty())) {
    EXPECT_EQ(json::parse(line)["sequence"], std::to_string(++last)) << "events come once and in order";
  }
  EXPECT_EQ(std::to_string(last), json::parse(Ok({"job", "get", "j", "-o", "json"}))["last_event_sequence"]);
}

TEST_F(CliTest, CtrlCLeavesTheJobRunningAndSaysHowToComeBack) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  CaptureOptions options;
  options.on_output = [](const CapturedResult& result, pid_t pid) {
    if (absl::StrContains(result.out, "QUEUED")) kill(pid, SIGINT);
  };
  const CapturedResult watch = Cli({"job", "watch", "j"}, options);
  EXPECT_EQ(watch.exit_code, 2);
  EXPECT_THAT(watch.err, AllOf(HasSubstr("goes on without you"), HasSubstr("luthier job watch j")));
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "QUEUED");
  const CapturedResult logs = Cli({"job", "logs", "j", "--follow"}, options);
  EXPECT_EQ(logs.exit_code, 2);
  EXPECT_THAT(logs.err, AllOf(HasSubstr("goes on without you"), HasSubstr("luthier job logs j --follow")));
}

TEST_F(CliTest, AWatchEndsWithTheReaderOfItsOutput) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  bool seen = false;
  CaptureOptions options;
  options.folder = folder_.path();
  options.environment = {{"LUTHIER_SERVER", server_->address()}, {"XDG_CONFIG_HOME", folder_.path() + "/config"}};
  options.on_output = [&](const CapturedResult&, pid_t) {
    if (std::exchange(seen, true)) return;
    for (const char* step : {"pause", "resume", "pause"}) Ok({"job", step, "j"});  // events that nobody reads
  };
  const CapturedResult watch = RunCaptured(
      {"/bin/bash", "-c", LUTHIER_BIN "/luthier job watch j -o json | head -1; echo ${PIPESTATUS[0]}"}, options);
  EXPECT_THAT(watch.out, testing::EndsWith("\n141\n")) << "ended by SIGPIPE";
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "PAUSED");
}

TEST_F(CliTest, ATimeoutLeavesTheJobAndSaysSo) {
  AddInputs();
  const CapturedResult result = Cli({"job", "submit", "-f", "job.yaml", "--id", "j", "--wait", "--timeout", "300ms"});
  EXPECT_EQ(result.exit_code, 8);
  EXPECT_THAT(result.err, HasSubstr("luthier job watch j"));
  EXPECT_THAT(Ok({"job", "get", "j"}), AllOf(HasSubstr("QUEUED"), HasSubstr("Waits because")));
}

// A day of the wall clock is no time that anybody waited.
TEST_F(CliTest, AWatchEndsInTimeThoughTheClockIsSetBackMeanwhile) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "training.seed=1"});
  for (const std::vector<std::string>& watch :
       {std::vector<std::string>{"job", "watch", "j", "--timeout", "2s"}, {"sweep", "watch", "s", "--timeout", "2s"}}) {
    const std::string now = absl::StrCat(folder_.path(), "/set-back-", watch[0]);
    CaptureOptions options;
    options.environment = {{"LD_PRELOAD", LUTHIER_STEPPED_CLOCK}, {"STEPPED_CLOCK_IF", now}};
    options.on_output = [&](const CapturedResult&, pid_t) { WriteText(now, ""); };
    const auto begin = std::chrono::steady_clock::now();
    const CapturedResult result = Cli(watch, options);
    EXPECT_EQ(result.exit_code, 8) << result.err;
    EXPECT_TRUE(std::filesystem::exists(now)) << "it was set while the command ran";
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
  }
}

TEST_F(CliTest, ExitCodesSayHowAJobEnded) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "bad"});
  agent.TakeAttempt();
  agent.End(v1::AttemptEnded::FAILED, "OOM", "12 GB were needed, 8 GB are there");
  const CapturedResult failed = Cli({"job", "watch", "bad"});
  EXPECT_EQ(failed.exit_code, 7);
  EXPECT_THAT(failed.err, HasSubstr("jobs/bad failed: 12 GB were needed"));
  EXPECT_THAT(Ok({"job", "get", "bad"}),
              AllOf(HasSubstr("cause   OOM"), HasSubstr("remedy  lower training.micro_batch_tokens")));
  EXPECT_EQ(Cli({"job", "cancel", "bad"}).exit_code, 1);
}

TEST_F(CliTest, CtrlCWhileACancelledJobEndsIsNoSuccess) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  agent.TakeAttempt();
  CaptureOptions options;
  options.on_output = [](const CapturedResult& result, pid_t pid) {
    if (absl::StrContains(result.err, "CANCELLING")) kill(pid, SIGINT);
  };
  EXPECT_EQ(Cli({"job", "cancel", "j", "--wait"}, options).exit_code, 2);
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "CANCELLING");
}

TEST_F(CliTest, ProgramsGetANewJobThatIsWaitedForAsItWasAtItsEnd) {
  AddInputs();
  std::thread training([&] {
    {
      ScriptedAgent agent(server_->address());
      Train(agent);
    }
    ScriptedAgent agent(server_->address());
    agent.TakeAttempt();
    agent.End(v1::AttemptEnded::FAILED, "OOM", "12 GB were needed, 8 GB are there");
  });
  const CapturedResult submitted = Cli({"job", "submit", "-f", "job.yaml", "--id", "good", "--watch", "-o", "json"});
  const CapturedResult cloned = Cli({"job", "clone", "good", "--id", "bad", "--wait", "-o", "json"});
  training.join();
  EXPECT_EQ(submitted.exit_code, 0) << submitted.err;
  EXPECT_EQ(json::parse(submitted.out)["state"], "SUCCEEDED");
  EXPECT_EQ(cloned.exit_code, 7) << cloned.err;
  EXPECT_EQ(json::parse(cloned.out)["state"], "FAILED");
  EXPECT_THAT(cloned.err, HasSubstr("jobs/bad\n")) << "before the wait, which may be interrupted";
  EXPECT_EQ(Ok({"job", "clone", "good", "--id", "held", "--hold", "-o", "name"}), "jobs/held\n");
}

TEST_F(CliTest, AWatchedSweepGoesOnAfterARestartOfTheServer) {
  AddInputs();
  for (const int end : {SIGKILL, SIGTERM}) {
    const std::string id = absl::StrCat("ended-by-", end);
    Ok({"sweep", "create", "-f", "job.yaml", "--id", id, "--grid", "training.seed=1"});
    EXPECT_EQ(Cli({"sweep", "watch", id, "--timeout", "100ms"}).exit_code, 8);
    const EndlessUpload upload(server_->address());
    enum { kRuns, kGone, kIsBack } stage = kRuns;
    CaptureOptions options;
    options.on_output = [&](const CapturedResult& result, pid_t) {
      if (stage == kRuns && absl::StrContains(result.err, "1 QUEUED")) {
        stage = kGone;
        server_->End(end);
      } else if (stage == kGone && absl::StrContains(result.err, "waiting for it")) {
        stage = kIsBack;
        server_->Start();
        Ok({"sweep", "cancel", id});
      }
    };
    const CapturedResult watch = Cli({"sweep", "watch", id}, options);
    EXPECT_EQ(watch.exit_code, 2) << watch.err;
    EXPECT_THAT(watch.err, HasSubstr(absl::StrCat("sweeps/", id, " was cancelled")));
  }
}

TEST_F(CliTest, AWatchedListSaysWhatChangesUntilCtrlC) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--hold"});
  for (const std::string format : {"table", "json", "name"}) {
    bool changed = false, interrupted = false;
    const std::string id = "of-" + format;
    CaptureOptions options;
    options.on_output = [&](const CapturedResult& result, pid_t pid) {
      if (!changed && absl::StrContains(result.out, "j")) {
        changed = true;
        Ok({"job", "submit", "-f", "job.yaml", "--id", id, "--hold"});
      } else if (!interrupted && absl::StrContains(result.out, id)) {
        interrupted = kill(pid, SIGINT) == 0;
      }
    };
    const CapturedResult watch = Cli({"job", "list", "--state", "held", "--watch", "-o", format}, options);
    EXPECT_EQ(watch.exit_code, 0) << watch.err;
    const std::vector<std::string> lines = absl::StrSplit(watch.out, '\n', absl::SkipEmpty());
    const auto of_j = std::count_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return format == "json" ? json::parse(line)["name"] == "jobs/j"
                              : absl::StartsWith(line, format == "name" ? "jobs/j" : "j ");
    });
    EXPECT_EQ(of_j, 1) << "nothing but its age has changed:\n" << watch.out;
    if (format == "table") {
      const std::vector<std::string> headings = absl::StrSplit(watch.out, "NAME");
      EXPECT_EQ(headings.size(), 2u);
    }
    Ok({"job", "cancel", id});
  }
}

// Why one node is out is nothing new of the others.
TEST_F(CliTest, AWatchedNodeListSaysInAFileOnlyWhichNodeIsGone) {
  const ScriptedAgent stays(server_->address(), "n1");
  auto goes = std::make_unique<ScriptedAgent>(server_->address(), "n2");
  bool interrupted = false;
  CaptureOptions options;
  options.on_output = [&](const CapturedResult& result, pid_t pid) {
    if (goes != nullptr && absl::StrContains(result.out, "n1 ") && absl::StrContains(result.out, "n2 ")) {
      goes.reset();
    } else if (!interrupted && absl::StrContains(result.out, "DISCONNECTED")) {
      interrupted = kill(pid, SIGINT) == 0;
    }
  };
  const CapturedResult watch = Cli({"node", "list", "--watch"}, options);
  EXPECT_EQ(watch.exit_code, 0) << watch.err;
  const std::vector<std::string> lines = absl::StrSplit(watch.out, '\n', absl::SkipEmpty());
  const auto lines_of = [&](const std::string& node) {
    return std::count_if(lines.begin(), lines.end(),
                         [&](const std::string& line) { return absl::StartsWith(line, node + " "); });
  };
  EXPECT_EQ(lines_of("n1"), 1) << watch.out;
  EXPECT_EQ(lines_of("n2"), 2) << watch.out;
  EXPECT_THAT(lines.front(), HasSubstr("BECAUSE")) << "headings are there once, for all lines";
}

TEST_F(CliTest, AWatchedListSaysInAFileWhatIsNotThereAnyMore) {
  AddInputs();
  for (const std::string format : {"table", "json"}) {
    const std::string id = "of-" + format;
    const std::string gone = format == "json" ? absl::StrCat(R"({"no_longer_listed":"jobs/)", id, "\"}\n")
                                              : absl::StrCat(id, "  is no longer listed\n");
    Ok({"job", "submit", "-f", "job.yaml", "--id", id});
    bool cancelled = false, interrupted = false;
    CaptureOptions options;
    options.on_output = [&](const CapturedResult& result, pid_t pid) {
      if (!cancelled && absl::StrContains(result.out, id)) {
        cancelled = true;
        Ok({"job", "cancel", id});
      } else if (!interrupted && absl::StrContains(result.out, gone)) {
        interrupted = kill(pid, SIGINT) == 0;
      }
    };
    const CapturedResult watch = Cli({"queue", "show", "--watch", "-o", format}, options);
    EXPECT_EQ(watch.exit_code, 0) << watch.err;
    EXPECT_THAT(watch.out, testing::EndsWith(gone));
  }
}

TEST_F(CliTest, AWatchedListGoesOnAfterARestartOfTheServer) {
  AddInputs();
  for (const int end : {SIGKILL, SIGTERM}) {
    const std::string later = absl::StrCat("after-", end);
    const EndlessUpload upload(server_->address());
    enum { kRuns, kGone, kIsBack, kInterrupted } stage = kRuns;
    CaptureOptions options;
    options.on_output = [&](const CapturedResult& result, pid_t pid) {
      if (stage == kRuns && absl::StrContains(result.out, "words")) {
        stage = kGone;
        server_->End(end);
      } else if (stage == kGone && absl::StrContains(result.err, "waiting for it")) {
        stage = kIsBack;
        server_->Start();
        Ok({"dataset", "upload", later, "rows"});
      } else if (stage == kIsBack && absl::StrContains(result.out, later)) {
        stage = kInterrupted;
        kill(pid, SIGINT);
      }
    };
    const CapturedResult watch = Cli({"dataset", "list", "--watch"}, options);
    EXPECT_EQ(watch.exit_code, 0) << watch.err;
    EXPECT_THAT(watch.out, testing::ContainsRegex(absl::StrCat("\nwords .*\n", later, " ")));
  }
}

}  // namespace
}  // namespace luthier
