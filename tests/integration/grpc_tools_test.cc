// The server through gRPC tools that others wrote, which know nothing of Luthier but what reflection tells them:
// grpcurl calls every method, ghz loads two, grpc-health-probe asks as Kubernetes does. scripts/tools builds them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/luthierd.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainerEq;
using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string Tool(const std::string& name) { return absl::StrCat(std::getenv("LUTHIER_GO_TOOLS"), "/", name); }

class GrpcToolsTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Serves()) << server_.log();
    ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
  }

  // `more`: flags in front of the address.
  CapturedResult Grpcurl(const std::vector<std::string>& more, const std::vector<std::string>& what,
                         const std::string& input = "") {
    std::vector<std::string> line = {Tool("grpcurl"), "-plaintext", "-max-time", "20"};
    if (!token_.empty()) line.insert(line.end(), {"-H", "authorization: Bearer " + token_});
    line.insert(line.end(), more.begin(), more.end());
    line.push_back(server_.address());
    line.insert(line.end(), what.begin(), what.end());
    CaptureOptions options;
    options.input = input;
    return RunCaptured(line, options);
  }
  std::set<std::string> List(const std::vector<std::string>& what) {
    std::vector<std::string> line = {"list"};
    line.insert(line.end(), what.begin(), what.end());
    const CapturedResult result = Grpcurl({}, line);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return absl::StrSplit(result.out, '\n', absl::SkipEmpty());
  }
  // Every method of ours, `luthier.v1.Service.Method`.
  std::set<std::string> Methods() {
    std::set<std::string> methods;
    for (const std::string& service : List({})) {
      if (service.rfind("luthier.v1.", 0) == 0) methods.merge(List({service}));
    }
    return methods;
  }

  // Calls a method, and remembers that; `messages` are those of the stream, one after the other. grpcurl's exit code is
  // 64 and the status code, or 0.
  std::string Call(const std::string& method, const std::vector<json>& messages, int code = grpc::StatusCode::OK) {
    called_.insert("luthier.v1." + method);
    std::string input;
    for (const json& message : messages) absl::StrAppend(&input, message.dump(), "\n");
    const CapturedResult result = Grpcurl({"-d", "@"}, {"luthier.v1." + method}, input);
    EXPECT_EQ(result.exit_code, code == grpc::StatusCode::OK ? 0 : 64 + code)
        << method << " " << input << result.out << result.err;
    return result.out;
  }
  json CallForJson(const std::string& method, const json& message = json::object()) {
    const json answer = json::parse(Call(method, {message}), nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(answer.is_discarded()) << method;
    return answer;
  }
  void AddInputs() {
    const std::string rows = Rows();
    EXPECT_EQ(CallForJson("ModelService.RegisterBaseModel",
                          {{"base_model_id", "tiny"}, {"source_path", folder_.path() + "/model"}})["name"],
              "baseModels/tiny");
    const json part = {{"part", "train"}, {"size_bytes", rows.size()}, {"sha256", Sha256Hex(rows)}};
    const json chunk = {{"part", "train"}, {"data", absl::Base64Escape(rows)}, {"crc32c", Crc32c(rows)}};
    EXPECT_THAT(Call("DatasetService.UploadDataset",
                     {{{"header", {{"dataset_id", "words"}, {"parts", json::array({part})}}}},  //
                      {{"chunk", chunk}}}),
                HasSubstr("\"rows\": \"2\""));
  }
  static std::string Rows() { return ChatLine("hello", "yes") + ChatLine("bye", "no"); }
  static json Job() { return {{"spec", {{"base_model", "tiny"}, {"dataset", {{"dataset", "words"}}}}}}; }

  // One run of ghz, which must not meet an error.
  json Load(const std::string& method, const std::string& message, int calls) {
    const CapturedResult result =
        RunCaptured({Tool("ghz"), "--insecure", "--call", "luthier.v1.FineTuningService." + method, "--data", message,
                     "--total", std::to_string(calls), "--concurrency", "8", "--connections", "2", "--timeout", "20s",
                     "--format", "json", server_.address()});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  }

  TempFolder folder_;
  Luthierd server_{
      LUTHIERD_PROGRAM,
      {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder_.path() + "/data"}};
  std::string token_;
  std::set<std::string> called_;
};

TEST_F(GrpcToolsTest, GrpcurlCallsEveryMethodThatReflectionLists) {
  const json j = {{"name", "jobs/j"}}, k = {{"name", "jobs/k"}}, version = {{"name", "models/j/versions/1"}};
  AddInputs();
  EXPECT_EQ(CallForJson("ModelService.GetBaseModel", {{"name", "baseModels/tiny"}})["model_type"], "llama");
  EXPECT_THAT(CallForJson("ModelService.ListBaseModels")["base_models"], SizeIs(1));
  EXPECT_EQ(CallForJson("DatasetService.GetDataset", {{"name", "datasets/words"}})["name"], "datasets/words");
  EXPECT_THAT(CallForJson("DatasetService.ListDatasets")["datasets"], SizeIs(1));
  Call("ModelService.DownloadBaseModel", {{{"name", "baseModels/tiny"}, {"path", "config.json"}}});

  // A job's life before it runs.
  Call("FineTuningService.EstimateFineTuningJob", {Job()});
  Call("FineTuningService.CreateFineTuningJob", {{{"job_id", "j"}, {"job", Job()}, {"hold", true}}});
  Call("FineTuningService.CreateFineTuningJob", {{{"job_id", "j"}, {"job", Job()}}}, grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(CallForJson("FineTuningService.ExplainFineTuningJob", j)["pending_code"], "PENDING_REASON_HELD");
  EXPECT_EQ(CallForJson("FineTuningService.UpdateFineTuningJob",
                        {{"job", {{"name", "jobs/j"}, {"priority", 3}}},
                         {"update_mask", {{"paths", json::array({"priority"})}}}})["priority"],
            3);
  EXPECT_EQ(CallForJson("FineTuningService.StartFineTuningJob", j)["state"], "QUEUED");
  EXPECT_EQ(CallForJson("FineTuningService.PauseFineTuningJob", j)["state"], "PAUSED");
  EXPECT_EQ(CallForJson("FineTuningService.CloneFineTuningJob", {{"name", "jobs/j"}, {"job_id", "k"}})["name"],
            "jobs/k");
  EXPECT_EQ(CallForJson("FineTuningService.CancelFineTuningJob", k)["state"], "CANCELLED");
  EXPECT_EQ(CallForJson("FineTuningService.RetryFineTuningJob", k)["state"], "QUEUED");
  EXPECT_THAT(CallForJson("QueueService.GetQueue")["entries"], SizeIs(1));
  Call("FineTuningService.CancelFineTuningJob", {k});
  EXPECT_EQ(CallForJson("FineTuningService.ResumeFineTuningJob", j)["state"], "QUEUED");
  EXPECT_THAT(CallForJson("FineTuningService.ListFineTuningJobs", {{"states", json::array({"QUEUED"})}})["jobs"],
              SizeIs(1));

  // It runs, and publishes.
  std::string credential;
  {
    ScriptedAgent agent(server_.address());
    ASSERT_EQ(agent.TakeAttempt(), "jobs/j/attempts/1");
    credential = agent.credential();
    EXPECT_THAT(Call("WorkerService.FetchBlob",
                     {{{"attempt", "jobs/j/attempts/1"}, {"credential", credential}, {"sha256", Sha256Hex(Rows())}}}),
                HasSubstr(absl::Base64Escape(Rows())));
    agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}});
    Call("FineTuningService.CreateJobCheckpoint", {{{"parent", "jobs/j"}}});
    agent.Report({{"event", "progress"}, {"step", 1}, {"total_steps", 1}, {"loss", 0.5}});
    agent.Report({{"event", "checkpoint"}, {"step", 1}, {"bytes", 1000}, {"loss", 0.5}});
    agent.Log("a line of the trainer");
    agent.Report({{"event", "finished"}, {"stop_reason", "COMPLETED"}});
    agent.Publish({{"adapter_config.json", "{}"}, {"adapter_model.safetensors", "weights"}});
    agent.End(v1::AttemptEnded::FINISHED);
    EXPECT_THAT(CallForJson("NodeService.ListNodes")["nodes"], SizeIs(1));
  }
  EXPECT_EQ(CallForJson("FineTuningService.GetFineTuningJob", j)["state"], "SUCCEEDED");
  EXPECT_THAT(Call("FineTuningService.WatchFineTuningJob", {j}), HasSubstr("SUCCEEDED"));
  EXPECT_THAT(Call("FineTuningService.StreamJobMetrics", {j}), HasSubstr("\"loss\": 0.5"));
  EXPECT_THAT(Call("FineTuningService.TailJobLogs", {j}), HasSubstr("a line of the trainer"));
  EXPECT_THAT(CallForJson("FineTuningService.ListJobEvents",
                          {{"parent", "jobs/j"}, {"types", json::array({"progress"})}})["events"],
              SizeIs(1));
  EXPECT_THAT(CallForJson("FineTuningService.ListJobCheckpoints", {{"parent", "jobs/j"}})["checkpoints"], SizeIs(1));
  EXPECT_THAT(CallForJson("ModelService.ListModels")["models"], SizeIs(1));
  EXPECT_THAT(CallForJson("ModelService.ListModelVersions", {{"parent", "models/j"}})["model_versions"], SizeIs(1));
  EXPECT_EQ(CallForJson("ModelService.GetModelVersion", version)["files"][1]["sha256"], Sha256Hex("weights"));
  EXPECT_EQ(CallForJson("FineTuningService.ExportModelVersion", {{"name", "models/j/versions/latest"},
                                                                 {"format", "MERGED"},
                                                                 {"validate_only", true}})["spec"]["output_model"],
            "j-merged");
  Call("ModelService.PromoteModelVersion", {{{"name", "models/j/versions/1"}, {"alias", "production"}}});
  Call("ModelService.DeleteModelAlias", {{{"name", "models/j/versions/production"}}});
  EXPECT_THAT(Call("ModelService.DownloadModelVersion", {version}), HasSubstr(absl::Base64Escape("weights")));
  Call("ModelService.SignModelVersionUrls", {version}, grpc::StatusCode::FAILED_PRECONDITION);  // no bucket

  // What agents call.
  EXPECT_THAT(Call("WorkerService.Session", {{{"register", {{"node_id", "n2"}, {"inventory", {{"cpus", 1}}}}}}}),
              HasSubstr("\"lease\": \"30s\""));
  Call("WorkerService.UploadArtifact", {{{"header", {{"attempt", "jobs/j/attempts/1"}, {"credential", credential}}}}},
       grpc::StatusCode::FAILED_PRECONDITION);

  Call("ModelService.DeleteModelVersion", {{{"name", "models/j/versions/1"}}});

  // What operators call. From the first token on, every call needs one.
  EXPECT_EQ(CallForJson("NodeService.DrainNode", {{"name", "nodes/n1"}})["name"], "nodes/n1");
  EXPECT_EQ(CallForJson("NodeService.UndrainNode", {{"name", "nodes/n1"}})["name"], "nodes/n1");
  EXPECT_EQ(CallForJson("QueueService.UpdateTenant", {{"tenant", {{"name", "tenants/default"}, {"weight", 2}}},
                                                      {"update_mask", {{"paths", json::array({"weight"})}}}})["weight"],
            2.0);
  EXPECT_THAT(CallForJson("QueueService.ListTenants")["tenants"], SizeIs(1));
  EXPECT_EQ(CallForJson("AdminService.CreateBackup", {{"path", folder_.path() + "/backup"}})["jobs"], "2");
  EXPECT_EQ(CallForJson("AdminService.CheckData")["jobs"], "2");
  const json grid = {{"field", "training.seed"}, {"values", json::array({"1", "2"})}}, s = {{"name", "sweeps/s"}};
  EXPECT_THAT(
      CallForJson(
          "SweepService.CreateSweep",
          {{"sweep_id", "s"}, {"hold", true}, {"sweep", {{"job", Job()}, {"grid", json::array({grid})}}}})["jobs"],
      SizeIs(2));
  EXPECT_EQ(CallForJson("SweepService.StartSweep", s)["job_counts"].count("HELD"), 0u);
  EXPECT_EQ(CallForJson("SweepService.GetSweep", s)["jobs"][1]["values"]["training.seed"], "2");
  EXPECT_THAT(CallForJson("SweepService.ListSweeps")["sweeps"], SizeIs(1));
  EXPECT_EQ(CallForJson("SweepService.CancelSweep", s)["job_counts"]["CANCELLED"], 2);
  Call("DatasetService.DeleteDataset", {{{"name", "datasets/words"}}});
  Call("ModelService.DeleteBaseModel", {{{"name", "baseModels/tiny"}}});
  token_ =
      CallForJson("AdminService.CreateToken", {{"token_id", "root"}, {"token", {{"role", "ROLE_ADMIN"}}}})["secret"];
  EXPECT_THAT(CallForJson("AdminService.ListTokens")["tokens"], SizeIs(1));
  Call("AdminService.RevokeToken", {{{"name", "tokens/root"}}}, grpc::StatusCode::FAILED_PRECONDITION);
  token_.clear();
  Call("AdminService.ListTokens", {json::object()}, grpc::StatusCode::UNAUTHENTICATED);

  EXPECT_THAT(called_, ContainerEq(Methods())) << "a method that nobody called here, or that is gone";
}

TEST_F(GrpcToolsTest, GrpcurlDescribesEveryServiceThatReflectionLists) {
  const CapturedResult all = Grpcurl({}, {"describe"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_THAT(all.out, AllOf(HasSubstr("grpc.health.v1.Health is a service"),
                             HasSubstr("luthier.v1.FineTuningService is a service")));
  const CapturedResult health = Grpcurl({"-d", R"({"service": "luthier.v1.FineTuningService"})"},  //
                                        {"grpc.health.v1.Health/Check"});
  EXPECT_THAT(health.out, HasSubstr("\"status\": \"SERVING\"")) << health.err;
}

TEST_F(GrpcToolsTest, GrpcurlPrintsWhatAnErrorSaysToPrograms) {
  AddInputs();
  const auto error = [&](const std::string& method, const json& message) {
    const CapturedResult result = Grpcurl({"-d", message.dump()}, {"luthier.v1." + method});
    EXPECT_NE(result.exit_code, 0);
    return result.err;
  };
  json wrong = Job();
  wrong["spec"]["lora"] = {{"rank", 0}};
  EXPECT_THAT(error("FineTuningService.CreateFineTuningJob", {{"job", wrong}}),
              AllOf(HasSubstr("google.rpc.ErrorInfo"), HasSubstr("\"reason\": \"INVALID_ARGUMENT\""),
                    HasSubstr("google.rpc.BadRequest"), HasSubstr("\"field\": \"lora.rank\"")));
  Call("QueueService.UpdateTenant",
       {{{"tenant", {{"name", "tenants/default"}, {"weight", 1}, {"max_queued_jobs", 1}}}}});
  Call("FineTuningService.CreateFineTuningJob", {{{"job", Job()}}});
  EXPECT_THAT(error("FineTuningService.CreateFineTuningJob", {{"job", Job()}}),
              AllOf(HasSubstr("google.rpc.RetryInfo"), HasSubstr("\"1s\""), HasSubstr("google.rpc.QuotaFailure"),
                    HasSubstr("\"subject\": \"tenants/default\"")));
}

TEST_F(GrpcToolsTest, GhzSubmitsAndReadsJobsWithoutAnError) {
  constexpr int kSubmits = 400, kReads = 2000;
  AddInputs();
  const json submits =
      Load("CreateFineTuningJob", json({{"job", Job()}, {"request_id", "{{newUUID}}"}}).dump(), kSubmits);
  EXPECT_EQ(submits["statusCodeDistribution"], json::object({{"OK", kSubmits}})) << submits["errorDistribution"];
  EXPECT_EQ(CallForJson("QueueService.GetQueue", {{"limit", 1}})["depth"], std::to_string(kSubmits))
      << "every acknowledged job is there, once";
  const std::string job = CallForJson("FineTuningService.ListFineTuningJobs", {{"page_size", 1}})["jobs"][0]["name"];
  const json reads = Load("GetFineTuningJob", json({{"name", job}}).dump(), kReads);
  EXPECT_EQ(reads["statusCodeDistribution"], json::object({{"OK", kReads}})) << reads["errorDistribution"];
  std::cout << "ghz at 8 callers: " << submits["rps"] << " submits, " << reads["rps"] << " reads a second\n";
}

TEST_F(GrpcToolsTest, TheHealthProbeSeesAServerThatServesAndOneThatIsGone) {
  const std::vector<std::string> probe = {
      Tool("grpc-health-probe"), "-addr", server_.address(), "-connect-timeout", "2s", "-rpc-timeout", "2s"};
  const CapturedResult serving = RunCaptured(probe);
  EXPECT_EQ(serving.exit_code, 0) << serving.err;
  EXPECT_THAT(serving.out + serving.err, HasSubstr("SERVING"));
  const auto probed = [&](const std::string& service) {
    std::vector<std::string> one = probe;
    one.insert(one.end(), {"-service", service});
    return RunCaptured(one).exit_code;
  };
  for (const std::string& service : List({})) {
    if (service.rfind("luthier.v1.", 0) != 0) continue;
    EXPECT_EQ(probed(service), 0) << service;
  }
  EXPECT_NE(probed("luthier.v1.NoService"), 0);
  EXPECT_EQ(server_.End(SIGTERM), 0);
  EXPECT_NE(RunCaptured(probe).exit_code, 0);
}

}  // namespace
}  // namespace luthier

// GoogleTest's own main would end with 0 where nothing was tried, and ctest call that passed.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (std::getenv("LUTHIER_GO_TOOLS") == nullptr) {
    std::cout << "SKIPPED: LUTHIER_GO_TOOLS names no folder with grpcurl, ghz and grpc-health-probe; scripts/test sets "
                 "it, or: LUTHIER_GO_TOOLS=$(dirname $(scripts/tools grpcurl))\n";
    return 77;
  }
  return RUN_ALL_TESTS();
}
