#include "worker/trainer/train/events.h"

#include <chrono>
#include <csignal>
#include <iostream>
#include <utility>

#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

std::atomic<RunControl*> signalled_control = nullptr;

void HandleSignal(int) {
  if (RunControl* control = signalled_control.load()) control->stop = true;
}

}  // namespace

EventWriter::EventWriter(std::FILE* output, std::string attempt, const std::string& metrics_path)
    : output_(output), attempt_(std::move(attempt)) {
  if (!metrics_path.empty()) metrics_.open(metrics_path, std::ios::app);
}

void EventWriter::Write(const std::string& event, nlohmann::json fields) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  fields["event"] = event;
  fields["attempt"] = attempt_;
  fields["time"] = now.count();
  // Text of users may hold broken UTF-8 (a cut token); a replaced character is better than a lost event.
  const std::string line = fields.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::lock_guard lock(mutex_);
  std::fwrite(line.data(), 1, line.size(), output_);
  std::fflush(output_);
  if (metrics_.is_open() && (event == "progress" || event == "evaluation")) metrics_ << line << std::flush;
}

absl::Status FinishRun(const std::string& run_folder, nlohmann::json report, EventWriter& events) {
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(
      run_folder + "/" + kReportFile, report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"));
  events.Write("finished", std::move(report));
  return absl::OkStatus();
}

void ListenForCommands(RunControl& control) {
  std::thread([&control] {
    std::string line;
    while (std::getline(std::cin, line)) {
      const nlohmann::json command = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      const std::string name = command.is_object() ? command.value("command", "") : "";
      if (name == "stop") {
        control.stop = true;
      } else if (name == "checkpoint") {
        control.checkpoint = true;
      } else {
        std::cerr << "ignored a line on standard input that is no command: " << line << "\n";
      }
    }
  }).detach();
}

void StopOnSignal(RunControl& control) {
  signalled_control = &control;
  struct sigaction action = {};
  action.sa_handler = HandleSignal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

}  // namespace luthier
