// The whole service with real programs: luthierd, luthier-worker, luthier-trainer.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/text/json_file.h"
#include "tests/support/captured_program.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using State = v1::FineTuningJob;

class ServiceTest : public testing::Test {
 protected:
  // Short jobs, and jobs of some thousand steps that are killed or cancelled long before their end.
  static nlohmann::json Steps(int steps, int checkpoint_every = 10) {
    return {{"training", {{"max_steps", steps}, {"batch_tokens", 200}, {"epochs", 10000}}},
            {"checkpoint", {{"every", checkpoint_every}}},
            {"resources", {{"threads", 1}}}};  // two trainers' threads that wait for each other starve on two cores
  }
  bool WaitForState(const std::string& job, State::State state,
                    std::chrono::seconds deadline = std::chrono::seconds(120)) {
    return WaitFor([&] { return service_.Job(job).state() == state; }, deadline);
  }
  bool WaitForEvent(const std::string& job, const std::string& type) {
    return WaitFor([&] {
      for (const v1::JobEvent& event : service_.Events(job)) {
        if (event.type() == type) return true;
      }
      return false;
    });
  }
  // Of the newest attempt that started.
  int64_t ResumedStep(const std::string& job) {
    int64_t step = -1;
    for (const v1::JobEvent& event : service_.Events(job)) {
      if (event.type() == "started")
        step = static_cast<int64_t>(event.data().fields().at("resumed_step").number_value());
    }
    return step;
  }
  // Of the events of a type, in their order.
  std::vector<int64_t> StepsOf(const std::string& job, const std::string& type) {
    std::vector<int64_t> steps;
    for (const v1::JobEvent& event : service_.Events(job)) {
      if (event.type() == type) steps.push_back(static_cast<int64_t>(event.data().fields().at("step").number_value()));
    }
    return steps;
  }
  static std::string ReadText(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  // Of the trainers of this test.
  std::vector<pid_t> Trainers() const { return ProcessesWith(service_.AgentFolder() + "/jobs/"); }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

TEST_F(ServiceTest, ALocalWorkerRunsAJobToItsPublication) {
  service_.StartServer({"--with-local-worker"});
  service_.AddInputs();
  service_.Submit("j", Steps(20));
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  const v1::FineTuningJob job = service_.Job("j");
  EXPECT_EQ(job.model_version(), "models/j/versions/1");
  EXPECT_EQ(job.stop_reason(), "MAX_STEPS");
  EXPECT_EQ(job.progress().step(), 20);
  EXPECT_GT(job.summary().artifact_bytes(), 0);
}

TEST_F(ServiceTest, AJobGoesOnFromTheAdapterThatAnotherPublished) {
  service_.StartServer({"--with-local-worker"});
  service_.AddInputs();
  nlohmann::json spec = Steps(30);
  spec["training"]["learning_rate"] = 0.01;
  spec["training"]["batch_tokens"] = 100000;  // every step sees every row, so losses can be compared
  spec["lora"]["rank"] = 3;
  service_.Submit("first", spec);
  ASSERT_TRUE(WaitForState("first", State::SUCCEEDED)) << service_.Job("first").DebugString();
  spec["lora"] = {{"start_from", "models/first/versions/latest"}};
  service_.Submit("second", spec);
  ASSERT_TRUE(WaitForState("second", State::SUCCEEDED)) << service_.Job("second").DebugString();
  const auto losses = [&](const std::string& job) {
    std::vector<double> values;
    for (const v1::JobEvent& event : service_.Events(job)) {
      if (event.type() == "progress") values.push_back(event.data().fields().at("loss").number_value());
    }
    return values;
  };
  const std::vector<double> first = losses("first"), second = losses("second");
  EXPECT_LT(first.back(), first.front() - 0.05);
  EXPECT_LT(second.front(), first.back() + 0.01);
  EXPECT_EQ(service_.Job("second").spec().lora().start_from(), "models/first/versions/1");
}

TEST_F(ServiceTest, APublishedAdapterIsExportedOnANodeAndDownloaded) {
  const std::string bin = LUTHIER_BIN_FOLDER;
  service_.StartServer({"--with-local-worker"});
  service_.AddInputs();
  service_.Submit("tuned", Steps(5));
  ASSERT_TRUE(WaitForState("tuned", State::SUCCEEDED)) << service_.Job("tuned").DebugString();
  const auto luthier = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {bin + "/luthier", "--server", service_.Address()});
    return RunCaptured(arguments);
  };
  const auto text = [&](const std::string& file) { return *ReadTextFile(folder_.path() + "/" + file); };
  const std::string adapter = folder_.path() + "/adapter", merged = folder_.path() + "/merged",
                    gguf = folder_.path() + "/gguf";
  ASSERT_EQ(luthier({"model", "download", "tuned", "--to", adapter}).exit_code, 0);

  const CapturedResult whole =
      luthier({"model", "export", "tuned@1", "--format", "merged", "--id", "whole", "--to", merged});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  EXPECT_EQ(whole.out, merged + "\n");
  EXPECT_EQ(service_.Job("whole").model_version(), "models/tuned-merged/versions/1");
  EXPECT_EQ(service_.Job("whole").stop_reason(), "COMPLETED");
  EXPECT_GT(service_.Job("whole").summary().artifact_bytes(), 0);
  const CapturedResult part = luthier({"model", "export", "tuned", "--format", "gguf", "--id", "part", "--to", gguf});
  ASSERT_EQ(part.exit_code, 0) << part.err;
  EXPECT_EQ(text("gguf/adapter.gguf").substr(0, 4), "GGUF");

  // What the trainer writes where the files lie is the same.
  for (const auto& [form, place] : {std::pair("merged", "/here"), std::pair("gguf", "/here.gguf")}) {
    ASSERT_EQ(RunProgram({bin + "/luthier-trainer", "export", "--base", folder_.path() + "/made/model", "--adapter",
                          adapter, "--format", form, "--out", folder_.path() + place})
                  .exit_code,
              0);
  }
  for (const char* file : {"model.safetensors", "config.json", "tokenizer.json"})
    EXPECT_EQ(text(absl::StrCat("merged/", file)), text(absl::StrCat("here/", file))) << file;
  EXPECT_EQ(text("gguf/adapter.gguf"), text("here.gguf"));

  EXPECT_EQ(luthier({"model", "export", "tuned", "--format", "merged", "--wait"}).exit_code, 0);
  EXPECT_EQ(service_.Versions("tuned-merged"), 2);
  const CapturedResult again = luthier({"model", "export", "tuned-merged", "--format", "gguf"});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("is a whole model already"));
  EXPECT_THAT(luthier({"model", "list"}).out, HasSubstr("GGUF adapter"));
  EXPECT_THAT(luthier({"job", "get", "whole"}).out, HasSubstr("models/tuned/versions/1, merged into its base"));
  EXPECT_THAT(luthier({"job", "watch", "part"}).out + luthier({"job", "watch", "part"}).err,
              HasSubstr("exports the adapter as gguf"));
  const CapturedResult generated = luthier({"generate", "--model", "tuned-gguf", "--prompt", "row 1"});
  EXPECT_EQ(generated.exit_code, 3);
  EXPECT_THAT(generated.err, HasSubstr("is an adapter for llama.cpp"));
}

TEST_F(ServiceTest, AnExportThatWaitsCanBeCancelled) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("tuned", Steps(5));
  ASSERT_TRUE(WaitForState("tuned", State::SUCCEEDED)) << service_.Job("tuned").DebugString();
  service_.Submit("busy", Steps(100000));
  ASSERT_TRUE(WaitForState("busy", State::RUNNING));
  v1::ExportModelVersionRequest request;
  request.set_name("models/tuned/versions/latest");
  request.set_format(v1::ModelExport::MERGED);
  request.set_job_id("x");
  v1::FineTuningJob job;
  service_.Call(
      [&](grpc::ClientContext& context) { return service_.jobs->ExportModelVersion(&context, request, &job); });
  EXPECT_EQ(service_.Job("x").state(), State::QUEUED);
  service_.Cancel("x");
  EXPECT_EQ(service_.Job("x").state(), State::CANCELLED);
  service_.Cancel("busy");
}

TEST_F(ServiceTest, TwoJobsShareTheCpusOfANodeThatIsSaidToBeShared) {
  service_.StartServer();
  service_.StartAgent({"--shares", "2"});
  service_.AddInputs();
  for (const char* job : {"a", "b"}) service_.Submit(job, Steps(100000));
  ASSERT_TRUE(WaitForState("a", State::RUNNING));
  ASSERT_TRUE(WaitForState("b", State::RUNNING));
  EXPECT_THAT(Trainers(), SizeIs(2));
  service_.Submit("c", Steps(5));
  EXPECT_EQ(service_.Job("c").state(), State::QUEUED);
  for (const char* job : {"a", "b"}) service_.Cancel(job);
  ASSERT_TRUE(WaitForState("c", State::SUCCEEDED)) << service_.Job("c").DebugString();
}

TEST_F(ServiceTest, TheServersOwnAgentInheritsNothingOfItsRecord) {
  service_.StartServer({"--with-local-worker"});
  std::vector<pid_t> agents;
  ASSERT_TRUE(WaitFor([&] { return !(agents = ProcessesWith(folder_.path() + "/server/worker")).empty(); }));
  int descriptors = 0;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", agents[0], "/fd"))) {
    std::error_code closed;
    EXPECT_THAT(std::filesystem::read_symlink(entry, closed).string(), Not(HasSubstr("/luthier.db")));
    ++descriptors;
  }
  EXPECT_GE(descriptors, 3);
}

TEST_F(ServiceTest, AJobWithoutANodeSaysWhyItWaitsAndStartsWhenOneComes) {
  service_.StartServer();
  service_.AddInputs();
  service_.Submit("j", Steps(5));
  EXPECT_EQ(service_.Job("j").state(), State::QUEUED);
  EXPECT_THAT(service_.Job("j").pending_reason(), HasSubstr("no node is connected"));
  service_.StartAgent();
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  EXPECT_EQ(service_.Job("j").node(), "nodes/n1");
}

TEST_F(ServiceTest, ACancelledJobLeavesNoProcessAndNoFiles) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("j", Steps(100000));
  ASSERT_TRUE(WaitForEvent("j", "checkpoint"));
  EXPECT_THAT(Trainers(), SizeIs(1));
  service_.Cancel("j");
  ASSERT_TRUE(WaitForState("j", State::CANCELLED)) << service_.Job("j").DebugString();
  EXPECT_THAT(Trainers(), IsEmpty());
  EXPECT_TRUE(WaitFor([&] { return !std::filesystem::exists(service_.AgentFolder() + "/jobs/j"); }));
}

TEST_F(ServiceTest, AJobThatFinishesWhileTheServerIsAwayIsPublishedWhenItComesBack) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("j", Steps(400));
  ASSERT_TRUE(WaitForEvent("j", "checkpoint"));
  const size_t before = StepsOf("j", "checkpoint").size();
  service_.server.End(SIGKILL);
  ASSERT_TRUE(WaitFor([&] { return std::filesystem::exists(service_.AgentFolder() + "/jobs/j/run/report.json"); },
                      std::chrono::seconds(120)));
  ASSERT_TRUE(WaitFor([&] { return Trainers().empty(); }));
  service_.StartServer();
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  EXPECT_EQ(service_.Job("j").attempt(), 1);
  EXPECT_EQ(service_.Job("j").progress().step(), 400);
  EXPECT_EQ(service_.Versions("j"), 1);
  // What happened meanwhile is all there, once and in order.
  const std::vector<v1::JobEvent> events = service_.Events("j");
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence(), static_cast<int64_t>(i) + 1);
  const std::vector<int64_t> checkpoints = StepsOf("j", "checkpoint"), progress = StepsOf("j", "progress");
  EXPECT_GE(checkpoints.size(), 39u);
  EXPECT_GT(checkpoints.size(), before) << "none came while the server was away";
  for (size_t i = 0; i < checkpoints.size(); ++i) EXPECT_EQ(checkpoints[i], 10 * (static_cast<int64_t>(i) + 1));
  EXPECT_EQ(std::adjacent_find(progress.begin(), progress.end(), std::greater_equal<int64_t>()), progress.end());
}

// Of a token in the environment, as units and containers give it.
TEST_F(ServiceTest, TheTokenOfAnAgentIsInNoFileNoLogNoAnswerAndNoTrainer) {
  const std::string secret = "5ec2e7" + std::string(58, '7'), log = folder_.path() + "/log";
  ASSERT_EQ(setenv("LUTHIER_TOKEN", secret.c_str(), 1), 0);
  const int err = dup(STDERR_FILENO), to = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  dup2(to, STDERR_FILENO);
  service_.StartServer();
  service_.StartAgent();
  dup2(err, STDERR_FILENO);
  close(err);
  close(to);
  service_.AddInputs();
  service_.Submit("j", Steps(400));
  ASSERT_TRUE(WaitForEvent("j", "checkpoint"));
  const std::vector<pid_t> trainers = Trainers();
  EXPECT_THAT(trainers, SizeIs(1));
  for (const pid_t pid : trainers)
    EXPECT_THAT(ReadText(absl::StrCat("/proc/", pid, "/environ")), Not(HasSubstr(secret)));
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  for (const v1::JobEvent& event : service_.Events("j")) EXPECT_THAT(event.DebugString(), Not(HasSubstr(secret)));
  for (const std::vector<std::string>& command : {std::vector<std::string>{"job", "get", "j", "-o", "json"},
                                                  {"job", "logs", "j"},
                                                  {"node", "list", "-o", "wide"}}) {
    std::vector<std::string> line = {LUTHIER_BIN_FOLDER "/luthier", "--server", service_.Address()};
    line.insert(line.end(), command.begin(), command.end());
    const CapturedResult said = RunCaptured(line);
    EXPECT_EQ(said.exit_code, 0) << said.err;
    EXPECT_THAT(said.out + said.err, Not(HasSubstr(secret)));
  }
  unsetenv("LUTHIER_TOKEN");
  service_.agent.End(SIGTERM);
  service_.server.End(SIGTERM);
  EXPECT_THAT(ReadText(log), HasSubstr("serves on"));
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
    if (!entry.is_regular_file()) continue;
    EXPECT_THAT(ReadText(entry.path()), Not(HasSubstr(secret))) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 10);
}

// SIGTERM is how service managers and machines that shut down end an agent: nothing that was trained is lost.
TEST_F(ServiceTest, AnAgentThatIsAskedToEndLeavesACheckpointFromWhichTheJobGoesOn) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("j", Steps(600, /*checkpoint_every=*/1000000));
  ASSERT_TRUE(WaitForEvent("j", "progress"));
  const auto asked = std::chrono::steady_clock::now();
  const int status = service_.agent.End(SIGTERM);
  EXPECT_LT(std::chrono::steady_clock::now() - asked, std::chrono::seconds(30));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_THAT(Trainers(), IsEmpty());
  EXPECT_EQ(service_.Job("j").state(), State::RECOVERING) << "it is not given to a node that leaves";
  service_.StartAgent();
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  EXPECT_GT(ResumedStep("j"), 0);
  EXPECT_EQ(service_.Job("j").lost_attempts(), 0);
}

// --- A job that comes to another node goes on from its newest stored checkpoint, and nobody can tell by its result.

class MovedJobTest : public ServiceTest {
 protected:
  static constexpr int kSteps = 1000;  // some seconds: longer than it takes to end a node

  void SetUp() override {
    service_.StartServer();
    service_.StartAgent();
    service_.AddInputs();
    service_.Submit("whole", Job());
    ASSERT_TRUE(WaitForState("whole", State::SUCCEEDED)) << service_.Job("whole").DebugString();
  }
  static nlohmann::json Job() {
    nlohmann::json job = Steps(kSteps, /*checkpoint_every=*/20);
    job["lora"] = {{"dropout", 0.1}};  // random numbers are part of what goes along
    return job;
  }
  // SHA-256 of the published weights.
  std::string Weights(const std::string& job) {
    v1::ListModelVersionsRequest request;
    request.set_parent("models/" + job);
    v1::ListModelVersionsResponse response;
    service_.Call(
        [&](grpc::ClientContext& context) { return service_.models->ListModelVersions(&context, request, &response); });
    for (const v1::ModelFile& file : response.model_versions(0).files()) {
      if (file.path() == "adapter_model.safetensors") return file.sha256();
    }
    return "";
  }
  void ExpectGoesOnOnTheOtherNode(int64_t from_step) {
    ASSERT_TRUE(WaitForState("moved", State::SUCCEEDED)) << service_.Job("moved").DebugString();
    EXPECT_EQ(service_.Job("moved").node(), "nodes/n2");
    EXPECT_GE(ResumedStep("moved"), from_step);
    EXPECT_GT(ResumedStep("moved"), 0);
    EXPECT_LT(ResumedStep("moved"), kSteps);
    EXPECT_EQ(Weights("moved"), Weights("whole"));
    EXPECT_NE(Weights("moved"), "");
  }
};

TEST_F(MovedJobTest, FromANodeThatIsDrainedWithTheStepsThatItHadDone) {
  nlohmann::json job = Job();
  job["checkpoint"]["every"] = 1000000;  // none but the one that the drain asks for
  service_.Submit("moved", job);
  ASSERT_TRUE(WaitForEvent("moved", "progress"));
  const BackgroundProgram other = service_.RunAgent("n2");
  v1::DrainNodeRequest request;
  request.set_name("nodes/n1");
  request.set_requeue(true);
  v1::Node node;
  service_.Call([&](grpc::ClientContext& context) { return service_.nodes->DrainNode(&context, request, &node); });
  ExpectGoesOnOnTheOtherNode(1);
  EXPECT_EQ(service_.Job("moved").lost_attempts(), 0);
}

TEST_F(MovedJobTest, FromANodeThatDiedWithTheLastCheckpointThatItHadStored) {
  service_.Submit("moved", Job());
  ASSERT_TRUE(WaitForEvent("moved", "checkpoint_stored"));
  service_.agent.End(SIGKILL);
  const BackgroundProgram other = service_.RunAgent("n2");
  ExpectGoesOnOnTheOtherNode(20);
  EXPECT_EQ(service_.Job("moved").lost_attempts(), 1);
}

TEST_F(ServiceTest, AnUrgentJobHasALessUrgentOneStopWithACheckpointFromWhichItGoesOn) {
  service_.StartServer({"--preempt-after", "0s"});
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("background", Steps(600, /*checkpoint_every=*/1000000), v1::SERVICE_CLASS_BACKGROUND);
  ASSERT_TRUE(WaitForEvent("background", "progress"));
  service_.Submit("urgent", Steps(5));
  ASSERT_TRUE(WaitForState("urgent", State::SUCCEEDED)) << service_.Job("urgent").DebugString();
  ASSERT_TRUE(WaitForState("background", State::SUCCEEDED)) << service_.Job("background").DebugString();
  EXPECT_GT(ResumedStep("background"), 0);
  EXPECT_EQ(service_.Job("background").preemptions(), 1);
  EXPECT_EQ(service_.Job("background").lost_attempts(), 0);
}

TEST_F(ServiceTest, AFailureOfTheTrainerIsTheJobsWithItsCause) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  std::filesystem::create_directories(service_.AgentFolder() + "/jobs/j/run/adapter");
  WriteText(service_.AgentFolder() + "/jobs/j/run/adapter/notes.txt", "no earlier export");
  service_.Submit("j", Steps(20));
  ASSERT_TRUE(WaitFor([&] { return service_.Job("j").end_time().seconds() > 0; }, std::chrono::seconds(120)));
  const v1::FineTuningJob job = service_.Job("j");
  EXPECT_EQ(job.state(), State::FAILED) << job.DebugString();
  EXPECT_EQ(job.attempt(), 1);
  EXPECT_EQ(job.failure().cause(), v1::JobFailure::CONFIG) << job.DebugString();
  EXPECT_THAT(job.failure().message(), HasSubstr("which are never replaced"));
}

TEST_F(ServiceTest, AJobWhoseNodeCannotWriteItsCheckpointsIsTriedAgain) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  std::filesystem::create_directories(service_.AgentFolder() + "/jobs/j/run");
  const std::string checkpoints = service_.AgentFolder() + "/jobs/j/run/checkpoints";
  WriteText(checkpoints, "a file where a folder has to be");
  service_.Submit("j", Steps(20));
  ASSERT_TRUE(WaitFor([&] { return service_.Job("j").lost_attempts() > 0; }, std::chrono::seconds(120)));
  std::filesystem::remove(checkpoints);
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  EXPECT_FALSE(service_.Job("j").has_failure());
}

TEST_F(ServiceTest, ASecondAgentOnTheSameFolderIsRefused) {
  service_.StartServer();
  service_.StartAgent();
  ASSERT_TRUE(WaitFor([&] { return std::filesystem::exists(service_.AgentFolder() + "/cache"); }));
  const ProgramResult second = RunProgram({LUTHIER_BIN_FOLDER "/luthier-worker", "--server", service_.Address(),
                                           "--metrics-listen", "127.0.0.1:0", "--data-dir", service_.AgentFolder()});
  EXPECT_EQ(second.exit_code, 1);
}

}  // namespace
}  // namespace luthier
