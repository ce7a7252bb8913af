// The real `luthier` against the real `luthierd`. A scripted agent stands in for nodes, so that every event of a job is
// known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <regex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/text/json_file.h"
#include "luthier/v1/admin.pb.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/queues.pb.h"
#include "luthier/v1/sweeps.pb.h"
#include "tests/support/captured_program.h"
#include "tests/support/http_get.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

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
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
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
void WriteTinyModel(const std::string& folder, bool shape_fault = false, bool missing = false) {
  WriteTinyBase(folder);
  const auto config = ParseModelConfig(json::parse(*ReadTextFile(folder + "/config.json")));
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
  void AddInputs() {
    EXPECT_EQ(Ok({"model", "import", "tiny", "base"}), "baseModels/tiny\n");
    EXPECT_EQ(Ok({"dataset", "upload", "words", "rows"}), "datasets/words\n");
  }
  // Plays an agent that trains the next job to its end.
  void Train(ScriptedAgent& agent) {
    EXPECT_THAT(agent.TakeAttempt(), StartsWith("jobs/"));
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
    agent.Publish({{"adapter_config.json", "{}"}, {"adapter_model.safetensors", std::string(3'000'000, 'w')}});
    agent.End(v1::AttemptEnded::FINISHED);
  }
  static json Evaluation(const std::string& model, double exact_match, const std::string& answer) {
    return {{"event", "evaluation"},
            {"split", "test"},
            {"model", model},
            {"step", model == "base" ? 0 : 4},
            {"rows", 2},
            {"loss", 1.5},
            {"exact_match", exact_match},
            {"examples", {{{"prompt", "hello"}, {"expected", "yes"}, {"answer", answer}}}}};
  }

  TempFolder folder_;
  std::unique_ptr<Server> server_;
};

TEST_F(CliTest, TakesAJobFromInputsToComparisonAndDownload) {
  AddInputs();
  EXPECT_THAT(Cli({"dataset", "upload", "words", "rows"}).err, HasSubstr("train: 2 rows"));
  ScriptedAgent agent(server_->address());
  std::thread training([&] { Train(agent); });
  const CapturedResult submit =
      Cli({"job", "submit", "-f", "job.yaml", "--id", "j", "--label", "team=support", "--watch"});
  training.join();
  EXPECT_EQ(submit.exit_code, 0) << submit.err;
  EXPECT_EQ(submit.out, "jobs/j\n") << "progress is a message, the name is the result";
  EXPECT_THAT(submit.err,
              AllOf(HasSubstr("request id "),
                    HasSubstr("started    cpu fp32, trains 131,072 of 3,812,096 parameters on 2 rows, 4 steps"),
                    HasSubstr("step 4/4  100%  loss 0.0000  1,234 tok/s"),
                    HasSubstr("evaluation test, tuned: exact match 100.0 %"), HasSubstr("SUCCEEDED"),
                    HasSubstr("luthier job compare j")));

  EXPECT_THAT(Ok({"job", "get", "j"}), AllOf(HasSubstr("SUCCEEDED"), HasSubstr("lora.rank"),
                                             HasSubstr("models/j/versions/1"), HasSubstr("team=support")));
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "SUCCEEDED");
  EXPECT_THAT(Ok({"job", "get", "j", "-o", "yaml"}), HasSubstr("state: SUCCEEDED\n"));
  EXPECT_THAT(Ok({"job", "compare", "j"}),
              AllOf(HasSubstr("exact match"), HasSubstr("0.0 %"), HasSubstr("100.0 %"), HasSubstr("131,072"),
                    HasSubstr("base      the the\n"), HasSubstr("LoRA      yes\n")));
  EXPECT_EQ(json::parse(Ok({"job", "compare", "j", "-o", "json"}))["jobs"][0]["tuned"]["exact_match"], 1.0);
  EXPECT_THAT(Ok({"job", "logs", "j"}), AllOf(HasSubstr("[1] a line of the trainer\n"), HasSubstr("state: SUCCEEDED")));
  EXPECT_THAT(Ok({"job", "list"}), AllOf(StartsWith("NAME"), testing::ContainsRegex("\nj +SUCCEEDED +4/4")));
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--state", "succeeded,failed"}), "jobs/j\n");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--state", "running"}), "");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--label", "team=support", "--since", "1h", "--oldest-first"}),
            "jobs/j\n");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--label", "team=search"}), "");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--filter", "base_model = tiny AND end_time > 2020-01-01T00:00:00Z"}),
            "jobs/j\n");
  EXPECT_EQ(Cli({"job", "list", "--filter", "speed = 3"}).exit_code, 3);
  EXPECT_EQ(json::parse(Ok({"job", "list", "-o", "json"}))["jobs"].size(), 1u);
  EXPECT_THAT(Ok({"job", "list", "-o", "wide"}), HasSubstr("team=support"));
  EXPECT_THAT(Ok({"model", "list"}), AllOf(HasSubstr("tiny"), HasSubstr("j/1"), HasSubstr("adapter")));
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "baseModels/tiny\nmodels/j/versions/1\n");
  EXPECT_THAT(Ok({"model", "list", "--tuned", "-o", "wide"}), Not(HasSubstr("base, llama")));
  EXPECT_THAT(Ok({"dataset", "list"}), HasSubstr("words"));
  EXPECT_THAT(Ok({"node", "list"}), AllOf(HasSubstr("n1"), HasSubstr("READY"), HasSubstr("8.0 GB")));
  EXPECT_EQ(json::parse(Ok({"node", "list", "-o", "json"}))["nodes"][0]["name"], "nodes/n1");

  EXPECT_EQ(Ok({"model", "download", "j"}), "j\n");
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_model.safetensors"), std::string(3'000'000, 'w'));
  EXPECT_EQ(Ok({"model", "download", "j/1", "--to", "elsewhere/deep"}), "elsewhere/deep\n");
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/elsewhere/deep/adapter_config.json"), "{}");
  WriteText(folder_.path() + "/j/adapter_config.json", "changed");
  const CapturedResult taken = Cli({"model", "download", "j"});
  EXPECT_EQ(taken.exit_code, 1);
  EXPECT_THAT(taken.err, HasSubstr("give another folder"));
}

TEST_F(CliTest, ADownloadGoesOnFromTheBytesThatAreThere) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  Train(agent);
  std::filesystem::create_directories(folder_.path() + "/j.partial");
  WriteText(folder_.path() + "/j.partial/adapter_model.safetensors", std::string(1'234'567, 'w'));
  WriteText(folder_.path() + "/j.partial/adapter_config.json", "xx");
  Ok({"model", "download", "j"});
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_model.safetensors"), std::string(3'000'000, 'w'));
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_config.json"), "{}") << "two wrong bytes were noticed";
}

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

TEST_F(CliTest, CancelsQueuedAndRunningJobs) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "queued"});
  EXPECT_EQ(Ok({"job", "cancel", "queued"}), "jobs/queued  CANCELLED\n");
  EXPECT_EQ(Cli({"job", "watch", "queued"}).exit_code, 2);
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "running"});
  agent.TakeAttempt();
  std::thread stop([&] {
    EXPECT_TRUE(agent.TakeStop());
    agent.End(v1::AttemptEnded::STOPPED);
  });
  // CANCELLED already, if the agent was quick.
  EXPECT_THAT(Ok({"job", "cancel", "jobs/running", "--wait"}),
              testing::MatchesRegex("jobs/running  CANCELL(ING|ED)\n"));
  stop.join();
  EXPECT_THAT(Ok({"job", "list"}), AllOf(HasSubstr("running"), Not(HasSubstr("CANCELLING"))));
}

TEST_F(CliTest, CtrlCWhileACancelledJobEndsIsNoSuccess) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  agent.TakeAttempt();
  CaptureOptions options;
  options.on_output = [](const CapturedResult& result, pid_t pid) {
    if (absl::StrContains(result.out, "CANCELLING")) kill(pid, SIGINT);
  };
  EXPECT_EQ(Cli({"job", "cancel", "j", "--wait"}, options).exit_code, 2);
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "CANCELLING");
}

TEST_F(CliTest, ASweepIsCreatedWatchedComparedAndCancelled) {
  AddInputs();
  std::thread training([&] {
    for (int job = 0; job < 2; ++job) {
      ScriptedAgent agent(server_->address());  // a new session hears of what the last one did not read
      Train(agent);
    }
  });
  const CapturedResult created = Cli({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "lora.rank=4,8",
                                      "--metric", "test.exact_match", "--class", "background", "--watch"});
  training.join();
  EXPECT_EQ(created.exit_code, 0) << created.err;
  EXPECT_THAT(created.out, AllOf(StartsWith("sweeps/s"), HasSubstr("lora.rank"), HasSubstr("s-2")));
  EXPECT_THAT(created.err, AllOf(HasSubstr("request id "), HasSubstr("2 SUCCEEDED")));
  EXPECT_THAT(Ok({"sweep", "get", "s"}), testing::ContainsRegex("s-1 +SUCCEEDED +4 +1 \\* +models/s-1/versions/1"));
  EXPECT_EQ(Ok({"sweep", "best", "s", "-o", "name"}), "jobs/s-1\n");
  EXPECT_THAT(Ok({"sweep", "best", "s"}), HasSubstr("test.exact_match 1  lora.rank=4"));
  EXPECT_EQ(json::parse(Ok({"sweep", "get", "s", "-o", "json"}))["jobs"][1]["values"]["lora.rank"], "8");
  EXPECT_EQ(json::parse(Ok({"job", "get", "s-1", "-o", "json"}))["service_class"], "SERVICE_CLASS_BACKGROUND");
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "t", "--point", "lora.target_modules: [q_proj], training.seed: 3",
      "--point", "tuning: full"});
  EXPECT_THAT(Ok({"sweep", "cancel", "t"}), StartsWith("sweeps/t  "));
  EXPECT_EQ(Cli({"sweep", "best", "t"}).exit_code, 5);
  EXPECT_EQ(Ok({"sweep", "list", "-o", "name"}), "sweeps/t\nsweeps/s\n");
  const CapturedResult wrong =
      Cli({"sweep", "create", "-f", "job.yaml", "--id", "w", "--grid", "lora.rank=4,999", "--dry-run"});
  EXPECT_EQ(wrong.exit_code, 3);
  EXPECT_THAT(wrong.err, HasSubstr("lora.rank: 999 is out of range"));
}

TEST_F(CliTest, AWatchedSweepGoesOnAfterARestartOfTheServer) {
  AddInputs();
  const std::vector<std::string> create = {"sweep", "create", "-f",     "job.yaml",
                                           "--id",  "s",      "--grid", "training.seed=1"};
  Ok(create);
  EXPECT_EQ(Cli({"sweep", "watch", "s", "--timeout", "100ms"}).exit_code, 8);
  enum { kRuns, kGone, kIsBack } stage = kRuns;
  CaptureOptions options;
  options.on_output = [&](const CapturedResult& result, pid_t) {
    if (stage == kRuns && absl::StrContains(result.err, "1 QUEUED")) {
      stage = kGone;
      server_->Kill();
    } else if (stage == kGone && absl::StrContains(result.err, "waiting for it")) {
      stage = kIsBack;
      server_->Start();
      Ok({"sweep", "cancel", "s"});
    }
  };
  const CapturedResult watch = Cli({"sweep", "watch", "s"}, options);
  EXPECT_EQ(watch.exit_code, 2) << watch.err;
  EXPECT_THAT(watch.err, HasSubstr("sweeps/s was cancelled"));
}

TEST_F(CliTest, EveryStepOfAJobIsTakenAndExplained) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--label", "team=support"});
  EXPECT_EQ(Ok({"job", "pause", "j"}), "jobs/j  PAUSED\n");
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(StartsWith("jobs/j  PAUSED\n"), HasSubstr("waits because  paused; resume it"),
                    HasSubstr("starts         nobody can say when\n")));
  EXPECT_EQ(Ok({"job", "resume", "j", "-o", "name"}), "jobs/j\n");
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(HasSubstr("no node is connected"), HasSubstr("tenant default uses 0 devices")));
  EXPECT_EQ(json::parse(Ok({"job", "explain", "j", "-o", "json"}))["pending_code"], "PENDING_REASON_NO_NODE");

  EXPECT_EQ(Ok({"job", "clone", "j", "--id", "k", "--hold", "--priority", "3"}), "jobs/k  HELD\n");
  const json clone = json::parse(Ok({"job", "get", "k", "-o", "json"}));
  EXPECT_EQ(clone["labels"]["team"], "support");
  EXPECT_EQ(clone["priority"], 3);
  const std::string etag = clone["etag"];
  EXPECT_EQ(Ok({"job", "update", "k", "--priority", "5", "--label", "team=sales", "--etag", etag}), "jobs/k  HELD\n");
  EXPECT_EQ(json::parse(Ok({"job", "get", "k", "-o", "json"}))["labels"]["team"], "sales");
  const CapturedResult late = Cli({"job", "update", "k", "--priority", "6", "--etag", etag});
  EXPECT_EQ(late.exit_code, 1);
  EXPECT_THAT(late.err, HasSubstr("was changed by someone else"));
  EXPECT_EQ(Cli({"job", "update", "k"}).exit_code, 3);
  EXPECT_EQ(Cli({"job", "update", "k", "--label", "team"}).exit_code, 3);

  EXPECT_EQ(Ok({"job", "start", "k"}), "jobs/k  QUEUED\n");
  EXPECT_EQ(Ok({"queue", "show", "-o", "name"}), "jobs/k\njobs/j\n") << "five points are worth five hours";
  EXPECT_THAT(Ok({"queue", "show"}),
              AllOf(StartsWith("NAME"), testing::ContainsRegex("\nk +default +standard +5 +1 .*no node")));
  EXPECT_EQ(json::parse(Ok({"queue", "show", "--limit", "1", "-o", "json"}))["entries"].size(), 1u);

  const CapturedResult both = Cli({"job", "retry", "j", "k"});
  EXPECT_EQ(both.exit_code, 1);
  EXPECT_THAT(both.err, AllOf(HasSubstr("j: jobs/j is QUEUED"), HasSubstr("k: jobs/k is QUEUED"),
                              HasSubstr("error: 2 of 2 could not be done")));
  Ok({"job", "cancel", "k"});
  EXPECT_EQ(Ok({"job", "retry", "k"}), "jobs/k  QUEUED\n");
}

TEST_F(CliTest, ADrainedNodeGetsNothingAndCanMoveWhatItRuns) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  agent.TakeAttempt();
  EXPECT_EQ(Ok({"node", "drain", "n1"}), "nodes/n1  DRAINING\n");
  EXPECT_THAT(Ok({"job", "get", "j"}), HasSubstr("STARTING")) << "what runs goes on";
  std::thread stop([&] {
    EXPECT_TRUE(agent.TakeStop());
    agent.End(v1::AttemptEnded::STOPPED);
  });
  EXPECT_EQ(Ok({"node", "drain", "n1", "--requeue", "-o", "name"}), "nodes/n1\n");
  stop.join();
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(HasSubstr("QUEUED"), HasSubstr("no node is connected that takes jobs")));
  EXPECT_THAT(Ok({"node", "list"}), HasSubstr("DRAINED"));
  EXPECT_EQ(Ok({"node", "undrain", "n1"}), "nodes/n1  READY\n");
  EXPECT_EQ(agent.TakeAttempt(), "jobs/j/attempts/2");
  EXPECT_EQ(Cli({"node", "drain", "n2"}).exit_code, 5);
}

TEST_F(CliTest, TheSameRequestIdMakesOneJob) {
  AddInputs();
  const std::string id = "11111111-2222-4333-8444-555555555555";
  const std::string first = Ok({"job", "submit", "-f", "job.yaml", "--request-id", id});
  EXPECT_EQ(Ok({"job", "submit", "-f", "job.yaml", "--request-id", id}), first);
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), first);
  const CapturedResult other = Cli({"job", "submit", "-f", "job.yaml", "--lora.rank", "4", "--request-id", id});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr(id));
}

TEST_F(CliTest, ADryRunShowsEveryValueWithItsReasonAndCreatesNothing) {
  AddInputs();
  const CapturedResult result = Cli({"job", "submit", "-f", "job.yaml", "--training.epochs", "3", "--dry-run"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("FIELD"), HasSubstr("lora.rank"), HasSubstr("training.learning_rate"),
                                testing::ContainsRegex("training.epochs +3 +given")));
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), "");
}

TEST_F(CliTest, JobsComeFromFlagsOrFromStandardInput) {
  AddInputs();
  EXPECT_EQ(Ok({"job", "submit", "--base-model", "tiny", "--dataset", "words", "--lora.target_modules", "[q_proj]",
                "--id", "a"}),
            "jobs/a\n");
  CaptureOptions options;
  options.input = R"({"base_model": "tiny", "dataset": {"train": "words/train"}, "tuning": "full"})";
  EXPECT_EQ(Cli({"job", "submit", "-f", "-", "--id", "b", "-o", "name"}, options).out, "jobs/b\n");
  EXPECT_TRUE(json::parse(Ok({"job", "get", "b", "-o", "json"}))["spec"].contains("full"));
}

TEST_F(CliTest, DeletesADatasetThatNoJobUses) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  EXPECT_THAT(Cli({"dataset", "delete", "words"}).err, HasSubstr("jobs/j"));
  Ok({"job", "cancel", "j"});
  const CapturedResult several = Cli({"dataset", "delete", "none", "words"});
  EXPECT_EQ(several.exit_code, 5) << "that of the one that failed";
  EXPECT_EQ(several.out, "datasets/words\n") << "the other is deleted";
  EXPECT_EQ(Ok({"dataset", "list", "-o", "name"}), "");
}

TEST_F(CliTest, TakesParquetAsADatasetAndPlansAJobWithIt) {
  const std::string fixtures = std::filesystem::absolute("tests/fixtures/parquet/").string();
  Ok({"model", "import", "tiny", "base"});
  Ok({"dataset", "upload", "table", fixtures + "completion.parquet"});
  EXPECT_THAT(Ok({"dataset", "get", "table"}), HasSubstr("40"));
  Ok({"job", "submit", "--base-model", "tiny", "--dataset", "table", "--id", "of-a-table"});
  const CapturedResult wrong = Cli({"dataset", "upload", "wrong", fixtures + "chat.parquet"});
  EXPECT_EQ(wrong.exit_code, 3);
  EXPECT_THAT(wrong.err, HasSubstr("chat.parquet, row 7: messages[1].content is missing"));
}

// Bad input: the message names what is wrong and what to do, the exit code is 3, and nothing is left behind.
TEST_F(CliTest, RefusesRowsThatAreWrongAndKeepsNothing) {
  const std::string path = folder_.path() + "/rows/train.jsonl";
  WriteText(path, ChatLine("a", "b") + "{oops\n");
  const CapturedResult malformed = Cli({"dataset", "upload", "words", "rows"});
  EXPECT_EQ(malformed.exit_code, 3);
  EXPECT_THAT(malformed.err, HasSubstr("rows/train.jsonl:2: "));
  WriteText(path, "");
  const CapturedResult empty = Cli({"dataset", "upload", "words", "rows"});
  EXPECT_EQ(empty.exit_code, 3);
  EXPECT_THAT(empty.err, HasSubstr("the file holds no rows"));
  EXPECT_EQ(Ok({"dataset", "list", "-o", "name"}), "");
}

TEST_F(CliTest, RefusesAJobWhoseRowsDoNotFitTheModelOrTrainNothing) {
  Ok({"model", "import", "tiny", "base"});
  WriteText(folder_.path() + "/long.jsonl", ChatLine("a", "b") + ChatLine("a", std::string(300, 'x')));
  std::string masked;
  for (int i = 0; i < 30; ++i)
    masked += R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]})"
              "\n";
  WriteText(folder_.path() + "/masked.jsonl", masked);
  Ok({"dataset", "upload", "long", "long.jsonl"});
  Ok({"dataset", "upload", "masked", "masked.jsonl"});
  const CapturedResult too_long = Cli({"job", "submit", "--base-model", "tiny", "--dataset", "long"});
  EXPECT_EQ(too_long.exit_code, 3);
  EXPECT_THAT(too_long.err, AllOf(HasSubstr("train:2: "), HasSubstr("256")));
  const CapturedResult nothing = Cli({"job", "submit", "--base-model", "tiny", "--dataset", "masked"});
  EXPECT_EQ(nothing.exit_code, 3);
  EXPECT_THAT(nothing.err, AllOf(HasSubstr("train:1: "), HasSubstr("train:20: "), HasSubstr("and 10 more")))
      << "a long list arrives whole";
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), "");
}

TEST_F(CliTest, RefusesUnknownFieldsAndValuesOutOfRangeWithTheirLines) {
  WriteText(
      folder_.path() + "/job.yaml",
      "base_model: tiny\ndataset: words\nlora:\n  rank: 0\n  rnk: 8\ntraining: {learning_rate: 5, epochs: .nan}\n");
  const CapturedResult result = Cli({"job", "submit", "-f", "job.yaml"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("job.yaml:4: lora.rank: 0 is out of range"),
                                HasSubstr("job.yaml:5: lora.rnk: unknown field; did you mean 'rank'?"),
                                HasSubstr("job.yaml:6: training.learning_rate: 5 is out of range"),
                                HasSubstr("job.yaml:6: training.epochs")));
}

TEST_F(CliTest, RefusesBaseModelsThatAreMissingUnsupportedOrBroken) {
  const auto refused = [&](const std::string& folder, const std::string& why) {
    const CapturedResult result = Cli({"model", "import", "m", folder});
    EXPECT_EQ(result.exit_code, 3) << folder;
    EXPECT_THAT(result.err, HasSubstr(why)) << folder;
  };
  refused("nowhere", "nowhere");
  refused(std::string(300, 'x'), "File name too long");  // as a folder that the server's user must not see
  WriteTinyModel(folder_.path() + "/missing", /*shape_fault=*/false, /*missing=*/true);
  refused("missing", "model.layers.1.mlp.up_proj.weight");
  WriteTinyModel(folder_.path() + "/misshapen", /*shape_fault=*/true);
  refused("misshapen", "model.layers.0.self_attn.k_proj.weight");
  WriteTinyModel(folder_.path() + "/strange");
  json config = json::parse(*ReadTextFile(folder_.path() + "/strange/config.json"));
  config["model_type"] = "mystery";
  config["architectures"] = {"MysteryForCausalLM"};
  WriteText(folder_.path() + "/strange/config.json", config.dump());
  refused("strange", "ystery");
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "");
}

TEST_F(CliTest, GenerateSaysHowTheTrainerEnded) {
  const std::string trainer = folder_.path() + "/trainer";
  const auto exit_code = [&](const std::string& script) {
    WriteText(trainer, absl::StrCat("#!/bin/sh\n", script, "\n"));
    std::filesystem::permissions(trainer, std::filesystem::perms::owner_all);
    CaptureOptions options;
    options.environment = {{"LUTHIER_TRAINER", trainer}};
    return Cli({"generate", "--base", "base", "--prompt", "x"}, options).exit_code;
  };
  EXPECT_EQ(exit_code("exit 0"), 0);
  EXPECT_EQ(exit_code("exit 1"), 1);
  EXPECT_EQ(exit_code("exit 2"), 3) << "it was used wrongly";
  EXPECT_EQ(exit_code("exec env --default-signal=INT /bin/sh -c 'kill -INT $$'"), 2);
  EXPECT_EQ(exit_code("kill -SEGV $$"), 1);
}

TEST_F(CliTest, NamesWhatDoesNotExist) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"job", "get", "none"},
                                                  {"job", "watch", "none"},
                                                  {"job", "logs", "none"},
                                                  {"job", "cancel", "none"},
                                                  {"job", "compare", "none"},
                                                  {"model", "download", "none"},
                                                  {"generate", "--model", "none", "--prompt", "x"},
                                                  {"generate", "--base", "none", "--prompt", "x"},
                                                  {"job", "submit", "--base-model", "none", "--dataset", "none"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 5) << testing::PrintToString(command) << result.err;
    EXPECT_THAT(result.err, HasSubstr("none")) << testing::PrintToString(command);
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST_F(CliTest, ANewNameIsTakenAsItIsOrRefused) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"model", "import", "meta/tiny", "base"},
                                                  {"dataset", "upload", "meta/words", "rows"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 3) << testing::PrintToString(command);
    EXPECT_THAT(result.err, HasSubstr(command[2])) << "a name without its first half would be another one";
  }
  EXPECT_EQ(Ok({"model", "import", "baseModels/tiny", "base"}), "baseModels/tiny\n");
  EXPECT_EQ(Ok({"dataset", "upload", "datasets/words", "rows"}), "datasets/words\n");
}

TEST_F(CliTest, SaysHowToStartAServerThatIsNotRunning) {
  server_->Kill();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"job", "list"}, {"job", "watch", "j"}, {"dataset", "upload", "words", "rows"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 6) << testing::PrintToString(command);
    EXPECT_THAT(result.err, AllOf(HasSubstr(server_->address()), HasSubstr("luthierd --with-local-worker")));
  }
}

TEST_F(CliTest, CompletesNamesThatTheServerKnows) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "intents-1"});
  EXPECT_EQ(Ok({"__complete", "--", "job", "get", "int"}), "intents-1\n");
  EXPECT_EQ(Ok({"__complete", "--", "job", "submit", "--dataset", ""}), "words\n");
  EXPECT_EQ(Ok({"__complete", "--", "job", "submit", "--base-model", "t"}), "tiny\n");
  ScriptedAgent agent(server_->address());
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "seeds", "--grid", "training.seed=1"});
  EXPECT_EQ(Ok({"__complete", "--", "sweep", "watch", "s"}), "seeds\n");
  EXPECT_EQ(Ok({"__complete", "--", "node", "drain", ""}), "n1\n");
  EXPECT_EQ(Ok({"__complete", "--", "tenant", "set", ""}), "default\n");
  Ok({"context", "set", "lab", "--server", "gpu1:7070"});
  EXPECT_EQ(Ok({"__complete", "--", "job", "list", "--context", "l"}), "lab\n");
  CaptureOptions elsewhere;
  elsewhere.environment = {{"LUTHIER_SERVER", "127.0.0.1:1"}};
  EXPECT_EQ(Cli({"__complete", "--", "--server", server_->address(), "job", "get", "int"}, elsewhere).out,
            "intents-1\n")
      << "the server of the line is asked";
  for (const char* shell : {"bash", "zsh", "fish"})
    EXPECT_THAT(Ok({"completion", shell}), HasSubstr("luthier __complete"));
  const CapturedResult in_bash =
      RunCaptured({"/bin/bash", "-c",
                   "source <(" LUTHIER_BIN "/luthier completion bash); luthier() { " LUTHIER_BIN "/luthier \"$@\"; }; "
                   "COMP_WORDS=(luthier job wat); COMP_CWORD=2; _luthier; echo \"${COMPREPLY[@]}\""});
  EXPECT_EQ(in_bash.out, "watch\n") << in_bash.err;
}

TEST_F(CliTest, OnceThereIsATokenEveryCallNeedsOneAndSeesItsTenantOnly) {
  AddInputs();
  const auto with = [](const std::string& secret) {
    CaptureOptions options;
    options.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
    return options;
  };
  EXPECT_EQ(Cli({"admin", "token", "create", "alice", "--role", "member", "--tenant", "support"}).exit_code, 1)
      << "the first is an admin's";
  const CapturedResult created = Cli({"admin", "token", "create", "root", "--role", "admin"});
  EXPECT_EQ(created.exit_code, 0) << created.err;
  EXPECT_THAT(created.out, testing::MatchesRegex("[0-9a-f]{64}\n"));
  const CapturedResult refused = Cli({"job", "list"});
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_THAT(refused.err, HasSubstr("LUTHIER_TOKEN"));
  const CaptureOptions root = with(created.out);
  EXPECT_EQ(Cli({"job", "list"}, root).exit_code, 0);
  CaptureOptions written_on_windows, of_the_docs;
  written_on_windows.environment = {{"LUTHIER_TOKEN", root.environment[0].second + "\r\n"}};
  EXPECT_EQ(Cli({"job", "list"}, written_on_windows).exit_code, 0);
  of_the_docs.environment = {{"LUTHIER_TOKEN", "…"}};
  const CapturedResult no_token = Cli({"job", "list"}, of_the_docs);
  EXPECT_EQ(no_token.exit_code, 3);
  EXPECT_THAT(no_token.err, HasSubstr("LUTHIER_TOKEN: holds characters that no token has"));
  const CaptureOptions alice =
      with(Cli({"admin", "token", "create", "alice", "--role", "member", "--tenant", "support"}, root).out);

  EXPECT_EQ(Cli({"job", "submit", "-f", "job.yaml", "--id", "j"}, alice).exit_code, 5)
      << "the rows are another tenant's";
  EXPECT_EQ(Cli({"dataset", "upload", "hers", "rows"}, alice).out, "datasets/hers\n");
  EXPECT_EQ(Cli({"job", "submit", "-f", "job.yaml", "--dataset", "hers", "--id", "j"}, alice).exit_code, 0);
  EXPECT_EQ(json::parse(Cli({"job", "get", "j", "-o", "json"}, root).out)["tenant"], "support");
  EXPECT_EQ(Cli({"dataset", "list", "-o", "name"}, alice).out, "datasets/hers\n");
  EXPECT_EQ(Cli({"model", "import", "more", "base"}, alice).exit_code, 4)
      << "members read no folders of the server's machine";
  EXPECT_EQ(Cli({"admin", "token", "list", "-o", "name"}, root).out, "tokens/alice\ntokens/root\n");

  server_->Kill();
  server_->Start();
  EXPECT_EQ(Cli({"job", "list"}).exit_code, 4) << "what was made is on record";
  EXPECT_EQ(Cli({"job", "list", "-o", "name"}, alice).out, "jobs/j\n");
  EXPECT_EQ(Cli({"admin", "token", "revoke", "alice"}, root).out, "tokens/alice\n");
  EXPECT_EQ(Cli({"job", "list"}, alice).exit_code, 4);
}

// Every method of every service that is not for agents only.
std::set<std::string> PublicMethods() {
  std::set<std::string> methods;
  for (const google::protobuf::FileDescriptor* file :
       {v1::Backup::descriptor()->file(), v1::FineTuningJob::descriptor()->file(), v1::Dataset::descriptor()->file(),
        v1::ModelVersion::descriptor()->file(), v1::Node::descriptor()->file(), v1::Queue::descriptor()->file(),
        v1::Sweep::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) methods.insert(file->service(s)->method(m)->name());
    }
  }
  return methods;
}

TEST_F(CliTest, EveryMethodOfTheApiHasACommand) {
  AddInputs();
  EXPECT_THAT(Ok({"job", "estimate", "-f", "job.yaml"}),
              AllOf(HasSubstr("rows      2\n"), testing::ContainsRegex("memory    [0-9.]+ .?B a device: weights "),
                    HasSubstr("takes     unknown (no "), HasSubstr("fits on   no node that is connected now\n")));
  EXPECT_EQ(json::parse(Ok({"job", "estimate", "-f", "job.yaml", "-o", "json"}))["train_rows"], "2");
  EXPECT_THAT(Cli({"job", "estimate", "--base-model", "tiny", "--dataset", "none"}).err, HasSubstr("none"));

  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--hold"});
  EXPECT_EQ(Cli({"job", "checkpoint", "j"}).exit_code, 1) << "it does not run";
  Ok({"job", "start", "j"});
  EXPECT_EQ(agent.TakeAttempt(), "jobs/j/attempts/1");
  agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 4}, {"resumed_step", 0}});
  EXPECT_EQ(Ok({"job", "checkpoint", "j"}), "jobs/j\n");
  EXPECT_THAT(Cli({"job", "checkpoints", "j"}).err, HasSubstr("jobs/j has reported no checkpoint"));
  EXPECT_EQ(Ok({"job", "estimate", "-f", "job.yaml", "-o", "name"}), "nodes/n1\n");
  TrainWhatWasTaken(agent);
  EXPECT_THAT(Ok({"job", "checkpoints", "j"}), testing::ContainsRegex("STEP +ATTEMPT.*\n +4 +1 +0.1 +1.0 kB +n1"));
  EXPECT_EQ(Ok({"job", "checkpoints", "j", "-o", "name"}), "jobs/j/checkpoints/4\n");
  const std::string metrics = Ok({"job", "metrics", "j"});
  EXPECT_THAT(metrics, AllOf(testing::ContainsRegex("STEP +LOSS"), testing::ContainsRegex("\n +4/4 +0 .*1,234\n"),
                             HasSubstr("test, tuned: exact match 100.0 %")));
  EXPECT_EQ(Ok({"job", "metrics", "j", "--follow"}), metrics) << "the stream says the same";
  EXPECT_EQ(Ok({"job", "metrics", "j", "-o", "json"}), Ok({"job", "metrics", "j", "--follow", "-o", "json"}));
  EXPECT_THAT(Ok({"job", "logs", "j", "--lines", "1"}), testing::EndsWith("[1] a line of the trainer\n"));
  EXPECT_EQ(json::parse(Ok({"job", "logs", "j", "--lines", "1", "-o", "json"}))["line"], "a line of the trainer");
  Ok({"job", "watch", "j"});
  Ok({"job", "logs", "j"});
  for (const char* command : {"watch", "logs"})
    EXPECT_THAT(Ok({"job", command, "j", "-o", "yaml"}), AllOf(StartsWith("---\n"), HasSubstr("\nstate: QUEUED\n")));
  Ok({"job", "get", "j"});
  Ok({"job", "list"});

  Ok({"node", "drain", "n1"});  // what follows waits
  Ok({"job", "clone", "j", "--id", "k"});
  for (const char* step : {"pause", "resume", "explain", "cancel", "retry", "cancel"}) Ok({"job", step, "k"});
  Ok({"job", "clone", "j", "--id", "l", "--hold"});
  Ok({"job", "update", "l", "--priority", "1"});
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "training.seed=1,2", "--hold"});
  EXPECT_EQ(Ok({"sweep", "start", "s"}), "sweeps/s  2 QUEUED\n");
  Ok({"sweep", "get", "s"});
  Ok({"sweep", "list"});
  Ok({"sweep", "cancel", "s"});

  EXPECT_THAT(Ok({"dataset", "get", "words"}), AllOf(StartsWith("datasets/words"), HasSubstr("validation")));
  Ok({"dataset", "list"});
  EXPECT_THAT(Ok({"model", "get", "baseModels/tiny"}), HasSubstr("model.safetensors"));
  EXPECT_EQ(Ok({"model", "get", "tiny"}), Ok({"model", "get", "baseModels/tiny"}));
  EXPECT_EQ(Cli({"model", "get", "tiny/1"}).exit_code, 5);
  EXPECT_THAT(Ok({"model", "get", "j"}), AllOf(StartsWith("models/j/versions/1\n"), HasSubstr("of jobs/j"),
                                               HasSubstr("adapter_model.safetensors")));
  EXPECT_THAT(Cli({"model", "alias", "list"}).err, HasSubstr("no aliases"));
  EXPECT_EQ(Ok({"model", "promote", "j", "--as", "production", "--minimum", "exact_match=0.9"}),
            "models/j/versions/1  production\n");
  const CapturedResult not_good_enough = Cli({"model", "promote", "j", "--as", "best", "--minimum", "field_f1=0.9"});
  EXPECT_EQ(not_good_enough.exit_code, 1);
  EXPECT_EQ(Cli({"model", "promote", "j", "--as", "best", "--minimum", "good"}).exit_code, 3);
  EXPECT_THAT(Ok({"model", "alias", "list"}), testing::ContainsRegex("\nj +production +1 +j\n"));
  EXPECT_EQ(Ok({"model", "alias", "list", "j", "-o", "name"}), "models/j/versions/production\n");
  EXPECT_THAT(Ok({"model", "list"}), testing::ContainsRegex("j/1 +adapter +production"));
  EXPECT_EQ(Ok({"model", "download", "j/production", "--to", "p"}), "p\n");
  const CapturedResult urls = Cli({"model", "urls", "j/production"});
  EXPECT_EQ(urls.exit_code, 1) << "its files are in no bucket";
  EXPECT_THAT(urls.err, AllOf(HasSubstr("luthier model download"), HasSubstr("--artifact-store")));
  EXPECT_EQ(Cli({"model", "urls", "j", "--for", "soon"}).exit_code, 3);
  EXPECT_EQ(Ok({"model", "alias", "delete", "j/production"}), "models/j/versions/production\n");
  EXPECT_EQ(Cli({"model", "alias", "delete", "j/production"}).exit_code, 5);
  CaptureOptions no_trainer;
  no_trainer.environment = {{"LUTHIER_TRAINER", "/bin/true"}};
  EXPECT_EQ(Cli({"generate", "--base", "tiny", "--prompt", "x"}, no_trainer).exit_code, 0);

  EXPECT_THAT(Ok({"tenant", "set", "default", "--weight", "2", "--max-devices", "3"}),
              testing::ContainsRegex("\ndefault +2 +0 +3 +[0-9]+ +no limit"));
  EXPECT_EQ(json::parse(Ok({"tenant", "list", "-o", "json"}))["tenants"][0]["max_devices"], 3);
  EXPECT_EQ(Cli({"tenant", "set", "default"}).exit_code, 3);
  EXPECT_THAT(Cli({"tenant", "set", "default", "--weight", "0"}).err, HasSubstr("tenant.weight: 0 is out of range"));
  Ok({"queue", "show"});
  Ok({"node", "list"});
  Ok({"admin", "backup", "--to", "backup"});
  EXPECT_THAT(Cli({"admin", "backup", "--to", std::string(300, 'x')}).err, HasSubstr("File name too long"));
  EXPECT_EQ(json::parse(Ok({"admin", "check", "-o", "json"}))["jobs"], "5");
  EXPECT_EQ(Ok({"admin", "check", "-o", "name"}), "ok\n");
  Ok({"job", "cancel", "l"});
  Ok({"dataset", "delete", "words"});
  EXPECT_EQ(Ok({"model", "delete", "j/1"}), "models/j/versions/1\n");
  EXPECT_EQ(Ok({"model", "delete-base", "tiny"}), "baseModels/tiny\n");
  Ok({"node", "undrain", "n1"});
  CaptureOptions root;
  root.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(
                                            Ok({"admin", "token", "create", "root", "--role", "admin"})))}};
  Cli({"admin", "token", "create", "n1", "--role", "agent", "--node", "n1", "--expires", "3d"}, root);
  EXPECT_THAT(Cli({"admin", "token", "list"}, root).out,
              AllOf(testing::ContainsRegex("\nn1 +agent +- +n1 +valid +in 2d"),
                    testing::ContainsRegex("\nroot +admin +- +- +valid +never")));
  EXPECT_EQ(Cli({"admin", "token", "revoke", "n1"}, root).exit_code, 0);

  EXPECT_THAT(server_->MethodsCalled(), testing::IsSupersetOf(PublicMethods()));
}

TEST_F(CliTest, EveryListIsThereInEveryFormat) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "training.seed=1"});
  Train(agent);
  Ok({"model", "promote", "s-1", "--as", "production"});
  Ok({"node", "drain", "n1"});
  Ok({"job", "submit", "-f", "job.yaml", "--id", "waits"});
  Ok({"admin", "token", "create", "root", "--role", "admin", "-o", "json"});
  server_->Kill();
  const std::string secret =
      RunCaptured({LUTHIER_BIN "/luthierd", "admin-token", "--data-dir", folder_.path() + "/server"}).out;
  server_->Start();
  CaptureOptions root;
  root.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
  for (const std::vector<std::string>& list : {std::vector<std::string>{"job", "list"},
                                               {"job", "checkpoints", "s-1"},
                                               {"sweep", "list"},
                                               {"dataset", "list"},
                                               {"model", "list"},
                                               {"model", "alias", "list"},
                                               {"tenant", "list"},
                                               {"queue", "show"},
                                               {"admin", "token", "list"}}) {
    const auto as = [&](const std::string& format) {
      std::vector<std::string> command = list;
      command.insert(command.end(), {"-o", format});
      const CapturedResult result = Cli(command, root);
      EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(command) << result.err;
      return result.out;
    };
    SCOPED_TRACE(testing::PrintToString(list));
    EXPECT_THAT(as("table"), testing::ContainsRegex("^[A-Z].*\n.*\n"));
    EXPECT_THAT(as("wide"), testing::ContainsRegex("^[A-Z].*\n.*\n"));
    EXPECT_THAT(as("yaml"), testing::ContainsRegex("[a-z_]+:\n"));
    EXPECT_TRUE(json::parse(as("json"), nullptr, /*allow_exceptions=*/false).is_object());
    for (const auto& line : absl::StrSplit(as("name"), '\n', absl::SkipEmpty()))
      EXPECT_THAT(std::string(line), testing::MatchesRegex("[a-zA-Z]+/[a-zA-Z0-9./-]+"));
  }
}

TEST_F(CliTest, TheFileOfAProjectSaysHowItsCommandsPrint) {
  AddInputs();
  WriteText(folder_.path() + "/.luthier.yaml", "output: name\n");
  EXPECT_EQ(Ok({"dataset", "list"}), "datasets/words\n");
  EXPECT_THAT(Ok({"dataset", "list", "-o", "table"}), StartsWith("NAME")) << "flags win";
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

TEST_F(CliTest, AWatchedListGoesOnAfterARestartOfTheServer) {
  AddInputs();
  enum { kRuns, kGone, kIsBack, kInterrupted } stage = kRuns;
  CaptureOptions options;
  options.on_output = [&](const CapturedResult& result, pid_t pid) {
    if (stage == kRuns && absl::StrContains(result.out, "words")) {
      stage = kGone;
      server_->Kill();
    } else if (stage == kGone && absl::StrContains(result.err, "waiting for it")) {
      stage = kIsBack;
      server_->Start();
      Ok({"dataset", "upload", "more", "rows"});
    } else if (stage == kIsBack && absl::StrContains(result.out, "more")) {
      stage = kInterrupted;
      kill(pid, SIGINT);
    }
  };
  const CapturedResult watch = Cli({"dataset", "list", "--watch"}, options);
  EXPECT_EQ(watch.exit_code, 0) << watch.err;
  EXPECT_THAT(watch.out, testing::ContainsRegex("\nwords .*\nmore "));
}

TEST_F(CliTest, DataIsCheckedWithAndWithoutItsServer) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  EXPECT_THAT(Cli({"admin", "check"}).err, HasSubstr("nothing is damaged"));
  const json served = json::parse(Ok({"admin", "check", "-o", "json"}));
  const CapturedResult busy = Cli({"admin", "check", "--data-dir", "server"});
  EXPECT_EQ(busy.exit_code, 1) << "a server uses it";
  server_->Kill();
  const CapturedResult offline = Cli({"admin", "check", "--data-dir", "server"});
  EXPECT_EQ(offline.exit_code, 0) << offline.err;
  EXPECT_EQ(offline.out, "ok\n");
  EXPECT_THAT(offline.err, AllOf(HasSubstr("1 jobs and "), HasSubstr("nothing is damaged")));
  const json found = json::parse(Ok({"admin", "check", "--data-dir", "server", "-o", "json"}));
  EXPECT_EQ(found["jobs"], "1");
  EXPECT_EQ(found["files"], served["files"]);
  EXPECT_EQ(Ok({"admin", "check", "--data-dir", "server", "-o", "name"}), "ok\n");
  EXPECT_THAT(Ok({"admin", "check", "--data-dir", "server", "-o", "yaml"}), HasSubstr("jobs: "));
}

TEST_F(CliTest, ALostSecretOfAnAdminIsReplacedOnTheServersMachine) {
  const auto with = [](const std::string& secret) {
    CaptureOptions options;
    options.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
    return options;
  };
  const auto replace = [&] {
    return RunCaptured({LUTHIER_BIN "/luthierd", "admin-token", "root", "--data-dir", folder_.path() + "/server"});
  };
  const std::string lost = Ok({"admin", "token", "create", "root", "--role", "admin"});
  EXPECT_EQ(replace().exit_code, 1) << "a server uses the folder";
  server_->Kill();
  const CapturedResult made = replace();
  EXPECT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.out, testing::MatchesRegex("[0-9a-f]{64}\n"));
  server_->Start();
  EXPECT_EQ(Cli({"job", "list"}, with(lost)).exit_code, 4) << "it may be in wrong hands";
  EXPECT_EQ(Cli({"admin", "token", "list", "-o", "name"}, with(made.out)).out, "tokens/root\n");
}

TEST_F(CliTest, ShowsItsVersion) {
  EXPECT_THAT(Ok({"version"}), StartsWith("luthier "));
  EXPECT_TRUE(json::parse(Ok({"version", "-o", "json"})).contains("version"));
}

}  // namespace
}  // namespace luthier
