// bench-service: the real server under load; one line of JSON for a scenario, or all of them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/service/scenarios.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using Scenario = std::function<Json(const BenchOptions&)>;

const std::vector<std::pair<std::string, Scenario>>& Scenarios() {
  static const auto* scenarios = new std::vector<std::pair<std::string, Scenario>>{
      {"submit", BenchSubmit},   {"lifecycle", BenchLifecycle},   {"watch", BenchWatch},
      {"restart", BenchRestart}, {"heartbeats", BenchHeartbeats}, {"queue", BenchQueue}};
  return *scenarios;
}

void Print(const Json& result, bool json) {
  if (json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    for (const auto& [name, value] : result.items()) std::printf("%-24s %s\n", name.c_str(), value.dump().c_str());
  }
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  BenchOptions options;
  std::string scenario = "submit";
  double seconds = 5;
  bool json = false, bare_grpc = false;
  CLI::App app("Measures luthierd on loopback, with durable commits, beside bare gRPC and bare SQLite.",
               "bench-service");
  std::vector<std::string> names;
  for (const auto& [name, run] : Scenarios()) names.push_back(name);
  app.add_option("--scenario", scenario, "What to measure")->check(CLI::IsMember(names))->capture_default_str();
  app.add_option("--callers", options.callers, "Calls under way at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--seconds", seconds, "How long")->check(CLI::Range(1, 3600))->capture_default_str();
  const CLI::Option* agents =
      app.add_option("--agents", options.agents, "Simulated agents; 10000 for heartbeats")->capture_default_str();
  app.add_option("--jobs", options.jobs, "Jobs that wait (queue, restart)")->capture_default_str();
  app.add_option("--watchers", options.watchers, "Watchers of one job (watch)")->capture_default_str();
  app.add_option("--folder", options.folder, "Where to put data: the disk to measure; a temporary folder if not given");
  app.add_flag("--json", json, "One line of JSON");
  app.add_flag("--bare-grpc", bare_grpc, "Be the server of the gRPC ceiling")->group("");
  CLI11_PARSE(app, argc, argv);
  if (bare_grpc) return ServeBareGrpc();
  options.time = absl::Seconds(seconds);
  options.program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "luthierd";
  if (scenario == "heartbeats" && agents->count() == 0) options.agents = 10000;
  TempFolder temporary;
  options.folder =
      options.folder.empty() ? temporary.path() : options.folder + "/bench-service-" + std::to_string(getpid());
  std::filesystem::create_directories(options.folder);
  for (const auto& [name, run] : Scenarios()) {
    if (name != scenario) continue;
    Json result = run(options);
    AddCeilings(options, result);
    Print(result, json);
  }
  std::filesystem::remove_all(options.folder);
  return 0;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::Main(argc, argv); }
