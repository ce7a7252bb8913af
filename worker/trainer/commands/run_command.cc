// luthier-trainer run: one attempt, as a process for each of its ranks.
#include <c10/util/Logging.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/plan/trainer_spec.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/commands/number_flags.h"
#include "worker/trainer/commands/threads.h"
#include "worker/trainer/distributed/rank_processes.h"
#include "worker/trainer/distributed/ranks.h"
#include "worker/trainer/distributed/rendezvous.h"
#include "worker/trainer/export/conversion.h"
#include "worker/trainer/export/export_place.h"
#include "worker/trainer/train/events.h"
#include "worker/trainer/train/preparation.h"
#include "worker/trainer/train/run.h"

namespace luthier {
namespace {

// The folder of a run. Nothing that it reads may be what it writes.
absl::Status MakeOut(const TrainerSpec& spec, const std::string& out) {
  std::vector<ExportInput> inputs = {{"base_model", spec.base_model}};
  if (!spec.start_adapter.empty()) inputs.emplace_back("start_adapter", spec.start_adapter);
  const std::string artifact = spec.exports()                 ? PlaceOfExport(spec)
                               : spec.recipe.tuning == "lora" ? "adapter"
                                                              : "model";
  LUTHIER_RETURN_IF_ERROR(CheckRunFolder(out, artifact, inputs));
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error) return absl::PermissionDeniedError(absl::StrCat("--out ", out, ": ", error.message()));
  return absl::OkStatus();
}

// Which of a run's nodes this is: --node-rank, --meeting and --address, of which there are all or none.
struct NodeArguments {
  std::optional<int> rank;
  std::string meeting;
  std::string address;

  bool leads() const { return rank.value_or(0) == 0; }
};

struct RunArguments {
  std::string spec;
  std::string out;
  bool die_with_parent = false;
  NodeArguments node;
  // Of a process that was started as one of several ranks: which one, and the descriptor of MakeRendezvous if it has
  // inherited one.
  std::vector<int> rank;

  bool is_one_of_several() const { return !rank.empty(); }
};

// How the ranks of this node find those of others, if the run has several nodes. INVALID_ARGUMENT if the flags do not
// say what the spec needs.
absl::StatusOr<std::optional<Meeting>> MeetingOf(const TrainerSpec& spec, const NodeArguments& node) {
  const int64_t nodes = spec.recipe.resources.nodes.value_or(1);
  if (!node.rank && nodes == 1) return std::nullopt;
  if (!node.rank) {
    return absl::InvalidArgumentError(
        absl::StrCat("resources.nodes: ", nodes,
                     " nodes train together where each is told which one it is; give --node-rank, --meeting and "
                     "--address, or set resources.nodes to 1"));
  }
  if (nodes == 1) {
    return absl::InvalidArgumentError(
        "--node-rank: goes with several nodes, and resources.nodes is 1; leave out --node-rank, --meeting and "
        "--address, or set resources.nodes");
  }
  if (*node.rank >= nodes) {
    return absl::InvalidArgumentError(absl::StrCat("--node-rank: ", *node.rank, " is out of range; resources.nodes is ",
                                                   nodes, ", so give 0 to ", nodes - 1));
  }
  LUTHIER_ASSIGN_OR_RETURN(Meeting meeting, ParseMeeting(node.meeting));
  meeting.address = node.address;
  meeting.run = spec.attempt;
  return std::optional<Meeting>(std::move(meeting));
}

// The ranks of this node, one for each of its devices.
LocalRanks RanksOfNode(const ResourceSpec& resources, const NodeArguments& node) {
  const auto devices = static_cast<int>(resources.devices.value_or(1));
  const auto nodes = static_cast<int>(resources.nodes.value_or(1));
  return {.first = node.rank.value_or(0) * devices, .count = devices, .of = nodes * devices};
}

// A process for each rank. They are started with the arguments that this one has, and their place. What keeps ranks
// from meeting is this node's fault and not the run's, which says so by a last word: there is none.
int RunEveryRank(const RunArguments& arguments, const std::optional<Meeting>& meeting, const LocalRanks& local) {
  const absl::StatusOr<int> rendezvous = MakeRendezvous(meeting, local.lead());
  if (!rendezvous.ok()) return ExitCodeOf(rendezvous.status());
  if (meeting) UseNetworkOf(meeting->address);
  return RunRanks(
      local,
      [&](int rank) {
        std::vector<std::string> words = {"run", "--spec", arguments.spec, "--out", arguments.out};
        if (meeting) {
          words.insert(words.end(), {"--node-rank", absl::StrCat(*arguments.node.rank), "--meeting",
                                     arguments.node.meeting, "--address", arguments.node.address});
        }
        words.emplace_back("--rank");
        words.push_back(absl::StrCat(rank));
        if (*rendezvous >= 0) words.push_back(absl::StrCat(*rendezvous));
        return words;
      },
      stdout);
}

// This process as one of the ranks, or as the only one.
int RunOneRank(const RunArguments& arguments, const TrainerSpec& spec, const std::optional<Meeting>& meeting,
               const LocalRanks& local) {
  static RunControl control;  // outlives main: the thread that reads commands never ends
  RankPlace place;
  if (!arguments.rank.empty()) place.rank = arguments.rank[0];
  if (arguments.rank.size() > 1) place.rendezvous = arguments.rank[1];
  place.size = local.of;
  place.local_rank = place.rank - local.first;
  place.meeting = meeting;
  if (place.meeting) FLAGS_caffe2_log_level = c10::GLOG_ERROR;  // else c10d warns of every machine that has no name
  EventWriter events(stdout, spec.attempt, place.rank == 0 ? arguments.out + "/" + kMetricsFile : "");
  ListenForCommands(control);
  StopOnSignal(control);
  const absl::Status status = RunAttempt(spec, arguments.out, place, events, control);
  const int exit_code = ExitCodeOf(status);
  return absl::IsAborted(status) ? kLostRankExitCode : exit_code;
}

int RunCommand(const RunArguments& arguments) {
  if (arguments.die_with_parent) {
    const pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return 1;  // it died in between, and no signal comes any more
  }
  const absl::StatusOr<TrainerSpec> spec = ReadTrainerSpec(arguments.spec);
  const auto fail_early = [&](const char* cause, const absl::Status& status) {
    EventWriter(stdout, spec.ok() ? spec->attempt : "local", "")
        .Write("failed", {{"cause", cause}, {"message", std::string(status.message())}});
    return ExitCodeOf(status);
  };
  if (!spec.ok()) return fail_early("CONFIG", spec.status());
  const absl::StatusOr<std::optional<Meeting>> meeting = MeetingOf(*spec, arguments.node);
  if (!meeting.ok()) return fail_early("CONFIG", meeting.status());
  if (arguments.node.leads()) {  // only its ranks need a folder
    if (absl::Status status = MakeOut(*spec, arguments.out); !status.ok()) {
      return fail_early(FailureCause(status).c_str(), status);
    }
  }
  const LocalRanks local = RanksOfNode(spec->recipe.resources, arguments.node);
  if (absl::Status status = UseThreads(spec->recipe.resources, arguments.is_one_of_several() ? local.count : 1);
      !status.ok()) {
    return fail_early("CONFIG", status);
  }
  if (local.of > 1 && !arguments.is_one_of_several()) {
    if (absl::Status status = CheckDevices(spec->recipe); !status.ok()) return fail_early("CONFIG", status);
    return RunEveryRank(arguments, *meeting, local);
  }
  return RunOneRank(arguments, *spec, *meeting, local);
}

}  // namespace

void AddRunCommand(CLI::App& app, Action& action) {
  const auto run = std::make_shared<RunArguments>();
  CLI::App* command =
      app.add_subcommand("run",
                         "Train one attempt, or export; JSON lines on standard output (docs/trainer-protocol.md). "
                         "Started again with the same --out it goes on from the last checkpoint.");
  command->add_option("--spec", run->spec, "Spec file (JSON)")->required()->check(CLI::ExistingFile);
  command->add_option("--out", run->out, "Folder for checkpoints, metrics and the artifact")->required();
  command->add_flag("--die-with-parent", run->die_with_parent, "End when the parent process ends (agents use this)");
  CLI::Option* node_rank =
      command->add_option("--node-rank", run->node.rank, "Which of the spec's resources.nodes this node is, from 0 on")
          ->check(WholeNumber(0, 63));
  CLI::Option* meeting =
      command->add_option("--meeting", run->node.meeting, "HOST:PORT at which node 0 waits for the others");
  CLI::Option* address =
      command->add_option("--address", run->node.address, "Host by which the other nodes reach this one");
  node_rank->needs(meeting, address);
  meeting->needs(node_rank);
  address->needs(node_rank);
  command->add_option("--rank", run->rank, "Rank, descriptor of MakeRendezvous")
      ->expected(1, 2)
      ->group("");  // not for people: this program starts itself with it
  command->callback([&action, run] { action = [run] { return RunCommand(*run); }; });
}

}  // namespace luthier
