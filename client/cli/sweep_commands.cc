// luthier sweep: the commands that are small; the others have files of their own.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/list.h"
#include "client/cli/sweep_text.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

std::string Values(const v1::SweepJob& job) {
  const std::map<std::string, std::string> values(job.values().begin(), job.values().end());
  return absl::StrJoin(values, ", ", absl::PairFormatter("="));
}

absl::Status Get(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->GetSweep(FullName("sweeps", id)));
  PrintSweepLine(context, sweep);
  if (!context.ForPrograms() && context.format() != OutputFormat::kName)
    context.out() << "\n" << SweepJobsTable(sweep, context.out_terminal()) << std::flush;
  return absl::OkStatus();
}

struct ListArguments {
  int limit = 50;
  bool watch = false;
};

Table SweepTable(const std::vector<v1::Sweep>& sweeps) {
  Table table({{"NAME"}, {"JOBS", false, true}, {"METRIC", false, true}, {"AGE", true, false, true}});
  for (const v1::Sweep& sweep : sweeps) {
    table.AddRow({ShortName(sweep.name()), SweepJobCounts(sweep), sweep.metric(),
                  FormatAge(absl::Now() - ToTime(sweep.create_time()))});
  }
  return table;
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Sweep> sweeps, client->ListSweeps(arguments.limit));
    Listing listing = ListingOf("sweeps", sweeps, SweepTable(sweeps),
                                "no sweeps; create one with: luthier sweep create -f job.yaml --grid lora.rank=4,8,16");
    if (static_cast<int>(sweeps.size()) == arguments.limit)
      listing.note = "more sweeps may exist; --limit N shows them";
    return listing;
  });
}

absl::Status Start(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->StartSweep(FullName("sweeps", id)));
  PrintSweepLine(context, sweep);
  return absl::OkStatus();
}

absl::Status Cancel(CommandContext& context, const std::string& id) {
  LUTHIER_RETURN_IF_ERROR(context.Confirm("cancel every job of " + FullName("sweeps", id) + " that is not over"));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->CancelSweep(FullName("sweeps", id)));
  PrintSweepLine(context, sweep);
  return absl::OkStatus();
}

absl::Status Best(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->GetSweep(FullName("sweeps", id)));
  for (const v1::SweepJob& job : sweep.jobs()) {
    if (job.job() != sweep.best_job()) continue;
    if (context.ForPrograms()) {
      context.PrintForPrograms(MessageToJson(job));
      return absl::OkStatus();
    }
    context.out() << job.job();
    if (context.format() != OutputFormat::kName) {
      context.out() << "  " << sweep.metric() << " " << FormatFraction(job.metric()) << "  " << Values(job) << "  "
                    << job.model_version();
    }
    context.out() << std::endl;
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("no job of ", sweep.name(), " has succeeded with a value of ", sweep.metric(),
                                          "; its jobs: ", SweepJobCounts(sweep)));
}

using Action = absl::Status (*)(CommandContext& context, const std::string& id);

CLI::App& AddOfOne(CLI::App& sweep, CommandContext& context, const std::string& name, const std::string& help,
                   const std::string& examples, Action action) {
  auto id = std::make_shared<std::string>();
  CLI::App& command =
      context.AddCommand(sweep, name, help, examples, [&context, id, action] { return action(context, *id); });
  command.add_option("SWEEP", *id, "Name of the sweep")->required();
  context.CompleteWith(command, SweepNames);
  return command;
}

}  // namespace

void AddSweepCommands(CLI::App& app, CommandContext& context) {
  CLI::App& sweep = context.AddNoun(app, "sweep", "Try many values at once, as one thing");
  AddSweepCreateCommand(sweep, context);
  AddOfOne(sweep, context, "get", "Show the jobs of a sweep, with their values and the metric",
           "  luthier sweep get seeds\n", Get);
  AddOfOne(sweep, context, "start", "Release the jobs of a sweep that was created on hold",
           "  luthier sweep start seeds\n", Start);
  AddSweepWatchCommand(sweep, context);
  AddOfOne(sweep, context, "best", "Show the best job of those that have succeeded",
           "  luthier sweep best seeds\n  luthier model download $(luthier sweep best seeds -o name)\n", Best);
  context.AddYesFlag(AddOfOne(sweep, context, "cancel", "Cancel all jobs of a sweep that are not over",
                              "  luthier sweep cancel seeds\n", Cancel));
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& list = context.AddCommand(sweep, "list", "List sweeps, newest first", "  luthier sweep list\n",
                                      [&context, arguments] { return List(context, *arguments); });
  AddWatchFlag(list, arguments->watch);
  AddLimitFlag(list, arguments->limit);
}

}  // namespace luthier
