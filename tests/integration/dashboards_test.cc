// A real Prometheus with the shipped rules scrapes luthierd and its agent while jobs run: every query of every
// dashboard and rule returns data. GPUs are those of a second agent that loads a fake NVML: the queries are tried, the
// figures are not real.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tests/support/http_get.h"
#include "tests/support/monitoring.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::Contains;

constexpr char kDeploy[] = LUTHIER_SOURCE_FOLDER "/deploy";

// Grafana's variables, as Grafana would fill them for a look at the last minutes.
std::string Filled(const std::string& expr) {
  return absl::StrReplaceAll(expr, {{"$__rate_interval", "5m"}, {"$__range", "5m"}, {"$node", ".*"}});
}

std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(stream)), {});
}

// Prometheus as deploy/prometheus configures it, with this test's targets and a second for each scrape.
class Prometheus {
 public:
  Prometheus(const std::string& program, const std::string& folder, const std::string& server,
             const std::vector<std::string>& agents)
      : port_(FreePort()) {
    std::filesystem::copy(absl::StrCat(kDeploy, "/prometheus"), folder, std::filesystem::copy_options::recursive);
    Replace(folder + "/prometheus.yml", {{"server:9464", server}, {"15s", "1s"}});
    Replace(folder + "/workers.yml", {{"worker:9465", absl::StrJoin(agents, "\", \"")}});
    program_ = BackgroundProgram({program, "--config.file=" + folder + "/prometheus.yml",
                                  "--storage.tsdb.path=" + folder + "/data",
                                  absl::StrCat("--web.listen-address=127.0.0.1:", port_), "--log.level=warn"});
  }

  json Get(const std::string& path) const {
    const json answer = json::parse(HttpGet(port_, path), nullptr, /*allow_exceptions=*/false);
    return answer.is_object() ? answer["data"] : json();
  }
  // Null if the query is wrong.
  json Query(const std::string& expr) const { return Get("/api/v1/query?query=" + PercentEncode(expr)); }
  // Whether the query returns a number: a quantile of nothing is NaN.
  bool HasData(const std::string& expr) const {
    const json data = Query(expr);
    if (!data.is_object()) return false;
    for (const json& sample : data["result"]) {
      if (!std::isnan(std::stod(sample["value"][1].get<std::string>()))) return true;
    }
    return false;
  }

 private:
  static void Replace(const std::string& path, const std::vector<std::pair<std::string, std::string>>& replacements) {
    const std::string text = ReadText(path);
    const std::string replaced = absl::StrReplaceAll(text, replacements);
    EXPECT_NE(text, replaced) << path << " does not name what this test replaces";
    WriteText(path, replaced);
  }

  const int port_;
  BackgroundProgram program_;
};

BackgroundProgram StartGpuAgent(const Service& service, const std::string& folder, const std::string& metrics) {
  std::filesystem::create_directories(folder + "/nvml");
  std::filesystem::create_symlink(LUTHIER_FAKE_NVML, folder + "/nvml/libnvidia-ml.so.1");
  setenv("LD_LIBRARY_PATH", (folder + "/nvml").c_str(), 1);
  BackgroundProgram agent({LUTHIER_BIN_FOLDER "/luthier-worker", "--server", service.Address(), "--metrics-listen",
                           metrics, "--data-dir", folder + "/gpu-agent", "--node-id", "gpu"});
  unsetenv("LD_LIBRARY_PATH");
  return agent;
}

TEST(DashboardsTest, EveryQueryReturnsDataWhileJobsRun) {
  const TempFolder folder;
  Service service(LUTHIER_BIN_FOLDER, folder.path());
  service.server_metrics = absl::StrCat("127.0.0.1:", FreePort());
  service.agent_metrics = absl::StrCat("127.0.0.1:", FreePort());
  service.StartServer();
  service.StartAgent();
  const std::string gpu_agent_metrics = absl::StrCat("127.0.0.1:", FreePort());
  const Prometheus prometheus(std::getenv("LUTHIER_PROMETHEUS"), folder.path() + "/prometheus", service.server_metrics,
                              {service.agent_metrics, gpu_agent_metrics});
  ASSERT_TRUE(WaitFor([&] { return prometheus.HasData("luthier_agent_connected == 1"); })) << "nothing is scraped";
  service.AddInputs();

  // Two jobs one after the other, since a series that begins with its first event has no rate before the second; and
  // two calls that fail.
  const json steps = {{"training", {{"max_steps", 6}, {"batch_tokens", 200}, {"epochs", 1000}}},
                      {"checkpoint", {{"every", 2}}}};
  for (const std::string id : {"first", "second"}) {
    service.Submit(id, steps);
    ASSERT_TRUE(
        WaitFor([&] { return service.Job(id).state() == v1::FineTuningJob::SUCCEEDED; }, std::chrono::seconds(200)))
        << service.Job(id).DebugString();
    v1::FineTuningJob job;
    grpc::ClientContext refused, unknown;
    EXPECT_EQ(service.jobs->CreateFineTuningJob(&refused, {}, &job).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/no-such-job");
    EXPECT_EQ(service.jobs->GetFineTuningJob(&unknown, request, &job).error_code(), grpc::StatusCode::NOT_FOUND);
    // Of both programs: each is scraped at its own moments, and a fast machine trains the second job between two.
    for (const std::string count :
         {"luthier_attempts_total{outcome=\"finished\"}",
          "luthier_grpc_server_handled_total{method=\"GetFineTuningJob\", code=\"NOT_FOUND\"}"}) {
      ASSERT_TRUE(WaitFor([&] {
        return prometheus.HasData(absl::StrCat("sum(", count, ") >= ", id == "first" ? 1 : 2));
      })) << "what the job did is not scraped: "
          << count;
    }
  }

  // After the jobs, which would else be placed on its GPUs.
  const BackgroundProgram gpu_agent = StartGpuAgent(service, folder.path(), gpu_agent_metrics);
  std::vector<MonitoringQuery> queries = DashboardQueries(absl::StrCat(kDeploy, "/grafana/dashboards"));
  ASSERT_GT(queries.size(), 20u);
  for (const MonitoringQuery& query : queries) {
    const std::string expr = Filled(query.expr);
    EXPECT_TRUE(WaitFor([&] { return prometheus.HasData(expr); })) << query.where << ": no data: " << expr;
  }

  // Named, since a range-for does not keep alive the answer that it takes the groups from.
  const json rules = prometheus.Get("/api/v1/rules");
  ASSERT_FALSE(rules["groups"].empty());
  for (const json& group : rules["groups"]) {
    for (const json& rule : group["rules"]) {
      const std::string name = rule["name"];
      EXPECT_EQ(rule["health"], "ok") << name << ": " << rule.value("lastError", "");
      if (rule["type"] == "alerting") {
        EXPECT_NE(rule["state"], "firing") << name << " fires although all is well";
      } else {
        EXPECT_TRUE(WaitFor([&] { return prometheus.HasData(name); })) << name << " records nothing";
      }
    }
  }

  // A name that is written wrong in an alert would just never fire.
  for (MonitoringQuery& query : RuleQueries(absl::StrCat(kDeploy, "/prometheus/rules")))
    queries.push_back(std::move(query));
  const json names = prometheus.Get("/api/v1/label/__name__/values");
  for (const MonitoringQuery& query : queries) {
    for (const std::string& metric : MetricsOf(query.expr)) {
      EXPECT_THAT(names, Contains(metric)) << query.where << ": no program exports " << metric;
    }
  }
}

}  // namespace
}  // namespace luthier

// GoogleTest's own main would end with 0 where nothing was tried, and ctest call that passed.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (std::getenv("LUTHIER_PROMETHEUS") == nullptr) {
    std::cout << "LUTHIER_PROMETHEUS names no Prometheus; scripts/test sets it, or: LUTHIER_PROMETHEUS=$(scripts/tools "
                 "prometheus)\n";
    return 77;
  }
  return RUN_ALL_TESTS();
}
