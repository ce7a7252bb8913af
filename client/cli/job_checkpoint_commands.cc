#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/each.h"
#include "client/cli/list.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

absl::Status Create(CommandContext& context, const std::vector<std::string>& jobs) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return DoToEach(context, jobs, [&](const std::string& id) -> absl::Status {
    const std::string name = FullName("jobs", id);
    LUTHIER_RETURN_IF_ERROR(client->CreateCheckpoint(name));
    if (context.ForPrograms()) {
      context.PrintForPrograms({{"name", name}});
    } else {
      context.out() << name << std::endl;
    }
    context.Say(
        absl::StrCat("ordered; once it is on its node's disk it is in: luthier job checkpoints ", ShortName(name)));
    return absl::OkStatus();
  });
}

struct ListArguments {
  std::string job;
  bool watch = false;
};

Table CheckpointTable(const std::vector<v1::Checkpoint>& checkpoints) {
  Table table({{"STEP", true},
               {"ATTEMPT", true},
               {"LOSS", true},
               {"SIZE", true},
               {"NODE", false, true},
               {"AGE", true, false, true}});
  for (const v1::Checkpoint& checkpoint : checkpoints) {
    table.AddRow({FormatCount(checkpoint.step()), absl::StrCat(checkpoint.attempt()), FormatFraction(checkpoint.loss()),
                  FormatBytes(checkpoint.size_bytes()), checkpoint.node().empty() ? "-" : ShortName(checkpoint.node()),
                  FormatAge(absl::Now() - ToTime(checkpoint.create_time()))});
  }
  return table;
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const std::string job = FullName("jobs", arguments.job);
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Checkpoint> checkpoints, client->ListCheckpoints(job));
    return ListingOf("checkpoints", checkpoints, CheckpointTable(checkpoints), job + " has reported no checkpoint");
  });
}

}  // namespace

void AddJobCheckpointCommands(CLI::App& job, CommandContext& context) {
  auto jobs = std::make_shared<std::vector<std::string>>();
  CLI::App& create =
      context.AddCommand(job, "checkpoint", "Have running jobs write a checkpoint after the step they are at",
                         "  luthier job checkpoint intents-1\n", [&context, jobs] { return Create(context, *jobs); });
  create.add_option("JOB", *jobs, "Names of the jobs")->required();
  context.CompleteWith(create, JobNames);

  auto arguments = std::make_shared<ListArguments>();
  CLI::App& list = context.AddCommand(job, "checkpoints", "List the checkpoints that a job has reported, oldest first",
                                      "  luthier job checkpoints intents-1\n",
                                      [&context, arguments] { return List(context, *arguments); });
  list.add_option("JOB", arguments->job, "Name of the job")->required();
  AddWatchFlag(list, arguments->watch);
  context.CompleteWith(list, JobNames);
}

}  // namespace luthier
