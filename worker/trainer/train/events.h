// What the trainer tells and is told: docs/trainer-protocol.md.
#pragma once

#include <atomic>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "lib/base/trainer_words.h"
#include "nlohmann/json.hpp"

namespace luthier {

// In the folder of a run, at its end.
inline constexpr char kReportFile[] = "report.json";

// Writes events as JSON lines. Thread-safe. Progress and evaluations also go to kMetricsFile in the run's folder.
class EventWriter {
 public:
  // `metrics_path` may be empty. `output` is borrowed.
  EventWriter(std::FILE* output, std::string attempt, const std::string& metrics_path);

  // Adds `event`, `attempt` and `time` to the fields and writes the line at once.
  void Write(const std::string& event, nlohmann::json fields);

 private:
  std::mutex mutex_;
  std::FILE* output_;
  std::string attempt_;
  std::ofstream metrics_;
};

// Writes `report` into the run's folder as kReportFile and says `finished` with it.
absl::Status FinishRun(const std::string& run_folder, nlohmann::json report, EventWriter& events);

// Wishes of the agent or the user, set from other threads and signal handlers, looked at between steps.
struct RunControl {
  std::atomic<bool> stop = false;
  std::atomic<bool> checkpoint = false;
};

// Reads commands from standard input until its end, in a thread that lives as long as the process: a blocking read
// cannot be interrupted. `control` must live as long.
void ListenForCommands(RunControl& control);

// SIGTERM and SIGINT set `control.stop`.
void StopOnSignal(RunControl& control);

}  // namespace luthier
