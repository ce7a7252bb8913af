#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/command.h"
#include "client/cli/job_file.h"
#include "client/cli/job_flags.h"
#include "client/cli/job_text.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/job_spec_wire.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string file;
  JobFlagValues fields;
};

std::string MemoryText(const v1::MemoryEstimate& memory) {
  const int64_t named = memory.weights_bytes() + memory.training_state_bytes() + memory.activations_bytes() +
                        memory.head_bytes() + memory.workspace_bytes();
  return absl::StrCat(FormatBytes(memory.total_bytes()), " a device: weights ", FormatBytes(memory.weights_bytes()),
                      ", gradients and optimizer ", FormatBytes(memory.training_state_bytes()), ", activations ",
                      FormatBytes(memory.activations_bytes()), ", logits ", FormatBytes(memory.head_bytes()),
                      ", the runtime ", FormatBytes(memory.workspace_bytes()), ", holes in the heap ",
                      FormatBytes(std::max<int64_t>(0, memory.total_bytes() - named)));
}

std::string FitsText(const v1::EstimateFineTuningJobResponse& estimate, const v1::FineTuningSpec& spec) {
  std::vector<std::string> nodes;
  for (const std::string& node : estimate.fitting_nodes()) nodes.push_back(ShortName(node));
  if (!nodes.empty()) return absl::StrJoin(nodes, ", ");
  return spec.resources().nodes() > 1 ? "too few of the nodes that are connected now" : "no node that is connected now";
}

std::string EstimateText(const v1::EstimateFineTuningJobResponse& estimate, const v1::FineTuningSpec& spec,
                         const Terminal& terminal) {
  std::string out;
  const auto line = [&](absl::string_view heading, const std::string& text) {
    absl::StrAppend(&out, terminal.Paint(Colour::kFaint, heading), std::string(10 - heading.size(), ' '), OneLine(text),
                    "\n");
  };
  line("rows", FormatCount(estimate.train_rows()));
  line("tokens", absl::StrCat(FormatCount(estimate.train_tokens()), " in a pass, ",
                              FormatCount(estimate.trained_tokens()), " of them trained"));
  line("steps", FormatCount(estimate.total_steps()));
  line("memory", MemoryText(estimate.memory()));
  line("takes", absl::StrCat(estimate.has_duration() ? DurationText(ToDuration(estimate.duration())) : "unknown", " (",
                             estimate.duration_reason(), ")"));
  line("fits on", FitsText(estimate, spec));
  return out;
}

absl::Status Estimate(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const JobFile file, ReadJobWithFlags(context, arguments.file, arguments.fields));
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec spec, ParseJobFile(file));
  v1::FineTuningJob job;
  LUTHIER_ASSIGN_OR_RETURN(job, JobToProto(spec));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::EstimateFineTuningJobResponse> estimate = client->EstimateJob(job.spec());
  if (!estimate.ok()) return WithLines(estimate.status(), file);
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(*estimate));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    for (const std::string& node : estimate->fitting_nodes()) context.out() << node << "\n";
    return absl::OkStatus();
  }
  context.SayWarnings(estimate->warnings());
  context.out() << EstimateText(*estimate, job.spec(), context.out_terminal());
  if (context.format() == OutputFormat::kWide) {
    *job.mutable_resolved() = estimate->resolved();
    context.out() << "\n" << ResolvedTable(job, context.out_terminal());
  }
  return absl::OkStatus();
}

}  // namespace

void AddJobEstimateCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      job, "estimate", "Say what a job would need and take, without creating it: tokens, steps, memory, time, nodes",
      "  luthier job estimate -f job.yaml\n"
      "  luthier job estimate -f job.yaml --tuning full -o wide     # every value with its reason, too\n",
      [&context, arguments] { return Estimate(context, *arguments); });
  command.add_option("-f,--file", arguments->file, "Job file, YAML or JSON; - is standard input")->type_name("FILE");
  AddJobFlags(command, arguments->fields);
}

}  // namespace luthier
