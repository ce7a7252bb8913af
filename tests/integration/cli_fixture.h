// The real `luthier` against the real `luthierd`. A scripted agent stands in for nodes, so that every event of a job is
// known.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/text/json_file.h"
#include "luthier/v1/worker.pb.h"
#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/http_get.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {

// A luthierd on a port that the system chose; started again it takes the same one.
class Server {
 public:
  explicit Server(std::string data_dir) : data_dir_(std::move(data_dir)) { Start(); }
  ~Server() { Kill(); }

  void Start() {
    int err[2];
    ASSERT_EQ(pipe2(err, O_CLOEXEC), 0);
    const std::string listen = absl::StrCat("127.0.0.1:", port_);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(err[1], STDERR_FILENO);
      execl(LUTHIER_BIN "/luthierd", "luthierd", "--listen", listen.c_str(), "--metrics-listen", "127.0.0.1:0",
            "--data-dir", data_dir_.c_str(), nullptr);
      _exit(127);
    }
    close(err[1]);
    std::string said;
    char byte;
    while (said.find('\n') == std::string::npos && read(err[0], &byte, 1) == 1) said += byte;
    const size_t found = said.find("serves on 127.0.0.1:");
    ASSERT_NE(found, std::string::npos) << said;
    port_ = std::stoi(said.substr(found + 20));
    const std::string metrics = "metrics on http://127.0.0.1:";
    metrics_port_ = std::stoi(said.substr(said.find(metrics) + metrics.size()));
    log_ = std::thread([fd = err[0]] {  // what it says later must not fill the pipe
      char buffer[256];
      while (read(fd, buffer, sizeof buffer) > 0) {
      }
      close(fd);
    });
  }
  void Kill() { End(SIGKILL); }
  void End(int signal) {
    if (pid_ <= 0) return;
    kill(pid_, signal);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
    log_.join();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  // Methods of the API that were called since it started, and were done or refused for the state of things.
  std::set<std::string> MethodsCalled() const {
    static const std::regex handled(
        R"re(luthier_grpc_server_handled_total\{code="(?:OK|FAILED_PRECONDITION)",method="(\w+)"\})re");
    const std::string metrics = HttpGet(metrics_port_, "/metrics");
    std::set<std::string> methods;
    for (std::sregex_iterator found(metrics.begin(), metrics.end(), handled), end; found != end; ++found)
      methods.insert((*found)[1]);
    return methods;
  }

 private:
  std::string data_dir_;
  int port_ = 0, metrics_port_ = 0;
  pid_t pid_ = 0;
  std::thread log_;
};

// A base model with weights that mean nothing. `shape_fault`: one tensor has a wrong shape; `missing`: one is left out.
inline void WriteTinyModel(const std::string& folder, bool shape_fault = false, bool missing = false) {
  WriteTinyBase(folder);
  const auto config = ParseModelConfig(nlohmann::json::parse(*ReadTextFile(folder + "/config.json")));
  ASSERT_TRUE(config.ok()) << config.status();
  std::vector<std::vector<std::byte>> contents;
  std::vector<TensorToWrite> tensors;
  for (auto [name, shape] : CheckpointTensors(*config)) {
    if (missing && absl::StrContains(name, "layers.1.mlp.up_proj")) continue;
    if (shape_fault && absl::StrContains(name, "layers.0.self_attn.k_proj")) shape[0] += 8;
    contents.emplace_back(static_cast<size_t>(NumElements(shape)) * 4);
    tensors.push_back({name, Dtype::kF32, shape, contents.back()});
  }
  ASSERT_TRUE(WriteSafetensors(folder + "/model.safetensors", tensors, {}).ok());
}

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    server_ = std::make_unique<Server>(folder_.path() + "/server");
    WriteTinyModel(folder_.path() + "/base");
    std::filesystem::create_directories(folder_.path() + "/rows");
    for (const char* part : {"train", "validation", "test"}) {
      WriteText(absl::StrCat(folder_.path(), "/rows/", part, ".jsonl"),
                ChatLine("hello", "yes") + ChatLine("bye", "no"));
    }
    WriteText(folder_.path() + "/job.yaml", "base_model: tiny\ndataset: words\ntask: classification\n");
  }

  // Runs `luthier` in the test's folder.
  CapturedResult Cli(const std::vector<std::string>& arguments, CaptureOptions options = {}) {
    std::vector<std::string> line = {LUTHIER_BIN "/luthier"};
    line.insert(line.end(), arguments.begin(), arguments.end());
    options.folder = folder_.path();
    options.environment.insert(options.environment.begin(), {{"LUTHIER_SERVER", server_->address()},
                                                             {"XDG_CONFIG_HOME", folder_.path() + "/config"},
                                                             {"LUTHIER_CACHE_DIR", folder_.path() + "/cache"},
                                                             {"TZ", "UTC"}});
    return RunCaptured(line, options);
  }
  // The same, for commands that have to succeed.
  std::string Ok(const std::vector<std::string>& arguments) {
    const CapturedResult result = Cli(arguments);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.err;
    return result.out;
  }
  // That a command prints something for people and for programs.
  void ExpectInEveryFormat(const std::vector<std::string>& list, const CaptureOptions& options = {}) {
    const auto as = [&](const std::string& format) {
      std::vector<std::string> command = list;
      command.insert(command.end(), {"-o", format});
      const CapturedResult result = Cli(command, options);
      EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(command) << result.err;
      return result.out;
    };
    SCOPED_TRACE(testing::PrintToString(list));
    EXPECT_THAT(as("table"), testing::ContainsRegex("^[A-Z].*\n.*\n"));
    EXPECT_THAT(as("wide"), testing::ContainsRegex("^[A-Z].*\n.*\n"));
    EXPECT_THAT(as("yaml"), testing::ContainsRegex("[a-z_]+:\n"));
    EXPECT_TRUE(nlohmann::json::parse(as("json"), nullptr, /*allow_exceptions=*/false).is_object());
    // Contexts are names of this machine and no resources of a server.
    const std::string name = list[0] == "context" ? "[a-z]+" : "[a-zA-Z]+/[a-zA-Z0-9./-]+";
    const std::string names = as("name");
    EXPECT_NE(names, "");
    for (const auto& line : absl::StrSplit(names, '\n', absl::SkipEmpty()))
      EXPECT_THAT(std::string(line), testing::MatchesRegex(name));
  }
  void AddInputs() {
    EXPECT_EQ(Ok({"model", "import", "tiny", "base"}), "baseModels/tiny\n");
    EXPECT_EQ(Ok({"dataset", "upload", "words", "rows"}), "datasets/words\n");
  }
  // Plays an agent that trains the next job to its end.
  void Train(ScriptedAgent& agent) {
    EXPECT_THAT(agent.TakeAttempt(), testing::StartsWith("jobs/"));
    TrainWhatWasTaken(agent);
  }
  void TrainWhatWasTaken(ScriptedAgent& agent) {
    agent.Report({{"event", "started"},
                  {"device", "cpu"},
                  {"precision", "fp32"},
                  {"base_parameters", 3812096},
                  {"trainable_parameters", 131072},
                  {"total_steps", 4},
                  {"resumed_step", 0},
                  {"train_rows", 2}});
    agent.Report(Evaluation("base", 0.0, "the the"));
    for (int step = 1; step <= 4; ++step) {
      agent.Report({{"event", "progress"},
                    {"step", step},
                    {"total_steps", 4},
                    {"loss", 4.0 - step},
                    {"tokens_per_second", 1234},
                    {"eta_seconds", 4 - step}});
    }
    agent.Log("a line of the trainer");
    agent.Report({{"event", "checkpoint"}, {"step", 4}, {"bytes", 1000}, {"loss", 0.1}});
    agent.Report(Evaluation("tuned", 1.0, "yes"));
    agent.Report({{"event", "finished"},
                  {"step", 4},
                  {"stop_reason", "COMPLETED"},
                  {"artifact", {{"kind", "adapter"}, {"bytes", 526000}}},
                  {"trainable_parameters", 131072},
                  {"step_seconds", 0.25},
                  {"seconds", 2},
                  {"peak_memory_bytes", 400000000},
                  {"train_loss", 0.1}});
    agent.Publish(
        {{"adapter_config.json", kAdapterConfig}, {"adapter_model.safetensors", std::string(3'000'000, 'w')}});
    agent.End(v1::AttemptEnded::FINISHED);
  }
  static nlohmann::json Evaluation(const std::string& model, double exact_match, const std::string& answer) {
    return {{"event", "evaluation"},
            {"split", "test"},
            {"model", model},
            {"step", model == "base" ? 0 : 4},
            {"rows", 2},
            {"loss", 1.5},
            {"exact_match", exact_match},
            {"examples", {{{"prompt", "hello"}, {"expected", "yes"}, {"answer", answer}}}}};
  }

  // What Train() publishes beside weights that are none.
  static constexpr char kAdapterConfig[] = R"({"peft_type": "LORA", "target_modules": ["q_proj"]})";
  TempFolder folder_;
  std::unique_ptr<Server> server_;
};

}  // namespace luthier
