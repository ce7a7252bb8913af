// luthier-trainer: trains one attempt, answers prompts, scores files. Wiring only.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>

#include "absl/status/statusor.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/device.h"
#include "worker/trainer/ops/subnormals.h"
#include "worker/trainer/torch.h"
#include "worker/trainer/train/heap.h"

namespace luthier {
namespace {

int PrintVersion() {
  const absl::StatusOr<at::Device> device = DeviceOfRank(0);
  if (!device.ok()) return ExitCodeOf(device.status());
  std::cout << "luthier-trainer " LUTHIER_VERSION ", LibTorch 2.11.0, " << device->str() << ", "
            << at::get_num_threads() << " threads\n";
  return 0;
}

// Of what went well so far: what was printed has to arrive, too.
int WithOutput(int exit_code) {
  if (exit_code != 0 || std::cout.flush()) return exit_code;
  std::cerr << "error: the output cannot be written, so some of it is missing; is the disk full?\n";
  return 1;
}

int Main(int argc, char** argv) {
  KeepHeapPages();
  ops::FlushSubnormals();
  Action action = &PrintVersion;
  CLI::App app{"Trains LoRA adapters or whole models, and tries them out. Needs no server."};
  app.require_subcommand(1);
  AddRunCommand(app, action);
  AddPlanCommand(app, action);
  AddGenerateCommand(app, action);
  AddEvaluateCommand(app, action);
  AddExportCommand(app, action);
  app.add_subcommand("version", "Version and device.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return WithOutput(app.exit(error) == 0 ? 0 : kWrongUsage);
  }
  return WithOutput(action());
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) {
  try {
    return luthier::Main(argc, argv);
  } catch (const std::exception& error) {  // LibTorch throws
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
