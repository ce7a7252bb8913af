// luthier job compare: base against tuned model, and jobs with one another.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/comparison.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

struct CompareArguments {
  std::vector<std::string> jobs;
  int examples = 3;
};

// Says why a job has no figures to compare.
void ExplainMissing(CommandContext& context, const v1::FineTuningJob& job) {
  if (job.state() != v1::FineTuningJob::SUCCEEDED) {
    context.Say(absl::StrCat(job.name(), " is ", v1::FineTuningJob::State_Name(job.state()),
                             "; figures are there once it has succeeded"));
  } else if (std::none_of(job.evaluations().begin(), job.evaluations().end(),
                          [](const auto& e) { return e.split() == "test"; })) {
    context.Say(absl::StrCat(job.name(), " has no held-out rows; give its dataset a test part to compare on"));
  }
}

absl::Status Compare(CommandContext& context, const CompareArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::vector<v1::FineTuningJob> jobs;
  std::map<std::string, int64_t> base_parameters;
  for (const std::string& id : arguments.jobs) {
    LUTHIER_ASSIGN_OR_RETURN(jobs.emplace_back(), client->GetJob(FullName("jobs", id)));
    if (const v1::FineTuningSpec& spec = jobs.back().spec(); spec.has_model_export()) {
      return absl::FailedPreconditionError(absl::StrCat(
          jobs.back().name(), " is an export, which trains and evaluates nothing; compare the job that made ",
          spec.model_export().model_version(), " (`luthier model get` names it)"));
    }
    const std::string base = FullName("baseModels", jobs.back().spec().base_model());
    // Only for the percentage.
    if (const auto model = client->GetBaseModel(base); model.ok()) base_parameters[base] = model->parameters();
  }
  if (context.ForPrograms()) {
    context.PrintForPrograms(ComparisonJson(jobs));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    for (const v1::FineTuningJob& job : jobs) context.out() << job.name() << "\n";
    return absl::OkStatus();
  }
  for (const v1::FineTuningJob& job : jobs) ExplainMissing(context, job);
  const bool any = std::any_of(jobs.begin(), jobs.end(), [](const v1::FineTuningJob& job) {
    return job.has_summary() || job.evaluations_size() > 0;
  });
  if (!any) return absl::FailedPreconditionError("nothing to compare: no figures are there");
  context.out() << ComparisonTable(jobs, base_parameters, context.out_terminal());
  const std::string examples = ComparisonExamples(jobs, arguments.examples, context.out_terminal());
  if (!examples.empty()) context.out() << "\nHeld-out rows, before and after\n" << examples;
  return absl::OkStatus();
}

}  // namespace

void AddJobCompareCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App& command =
      context.AddCommand(job, "compare", "Compare base and tuned model on held-out rows, and jobs with one another",
                         "  luthier job compare intents-lora\n"
                         "  luthier job compare intents-lora intents-full       # LoRA beside full training\n",
                         [&context, arguments] { return Compare(context, *arguments); });
  command.add_option("JOB", arguments->jobs, "Names of the jobs")->required();
  command.add_option("--examples", arguments->examples, "Rows to show with their answers")
      ->check(CLI::Range(0, 100))
      ->capture_default_str()
      ->type_name("N");
  context.CompleteWith(command, JobNames);
}

}  // namespace luthier
