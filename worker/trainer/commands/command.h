// The commands of luthier-trainer, a file each.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "absl/status/status.h"

namespace luthier {

// What the command line asks for. Returns the exit code of the process; LibTorch may throw.
using Action = std::function<int()>;

// Each adds its command and flags; `action`, which the parse sets, outlives `app`.
void AddRunCommand(CLI::App& app, Action& action);
void AddPlanCommand(CLI::App& app, Action& action);
void AddGenerateCommand(CLI::App& app, Action& action);
void AddEvaluateCommand(CLI::App& app, Action& action);
void AddExportCommand(CLI::App& app, Action& action);

constexpr int kWrongUsage = 2;  // docs/trainer-protocol.md

// 0, or 1 for an error, which is said on standard error.
int ExitCodeOf(const absl::Status& status);

}  // namespace luthier
