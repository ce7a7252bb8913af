// luthier-trainer plan: what a spec would take.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "lib/base/status_macros.h"
#include "lib/plan/trainer_spec.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/commands/threads.h"
#include "worker/trainer/train/plan_report.h"

namespace luthier {
namespace {

struct PlanArguments {
  std::string spec;
  bool measure = false;
  std::string output = "text";
};

absl::Status PlanJob(const PlanArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const TrainerSpec spec, ReadTrainerSpec(arguments.spec));
  if (spec.exports()) return absl::InvalidArgumentError("export: takes no steps, so there is nothing to plan; run it");
  LUTHIER_RETURN_IF_ERROR(UseThreads(spec.recipe.resources, /*ranks=*/1));
  LUTHIER_ASSIGN_OR_RETURN(const nlohmann::json report, MakePlanReport(spec, arguments.measure));
  std::cout << (arguments.output == "json"
                    ? report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                    : PlanReportText(report));
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, Action& action) {
  const auto plan = std::make_shared<PlanArguments>();
  CLI::App* command =
      app.add_subcommand("plan", "Say what a spec would take: memory, steps, time, and every value with its reason.");
  command->add_option("--spec", plan->spec, "Spec file (JSON)")->required()->check(CLI::ExistingFile);
  command->add_flag("--measure", plan->measure, "Load the model and time two steps instead of estimating");
  command->add_option("-o,--output", plan->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->callback([&action, plan] { action = [plan] { return ExitCodeOf(PlanJob(*plan)); }; });
}

}  // namespace luthier
