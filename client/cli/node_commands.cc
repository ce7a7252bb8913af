#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/list.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

std::string Gpus(const v1::Inventory& inventory) {
  if (inventory.gpus().empty()) return "-";
  return absl::StrCat(inventory.gpus_size(), "x ", inventory.gpus(0).model());
}

std::string GpuMemory(const v1::Inventory& inventory) {
  int64_t used = 0, all = 0;
  for (const v1::Gpu& gpu : inventory.gpus()) {
    used += gpu.memory_used_bytes();
    all += gpu.memory_bytes();
  }
  return all == 0 ? "-" : absl::StrCat(FormatBytes(used), " of ", FormatBytes(all));
}

Colour StateColour(v1::Node::State state) {
  if (state == v1::Node::READY) return Colour::kGreen;
  const bool is_wrong = state == v1::Node::DISCONNECTED || state == v1::Node::LOST || state == v1::Node::QUARANTINED;
  return is_wrong ? Colour::kRed : Colour::kBlue;
}

std::string Runs(const v1::Node& node) {
  std::vector<std::string> jobs;
  for (const std::string& attempt : node.attempts())
    jobs.push_back(ShortName(attempt.substr(0, attempt.find("/attempts/"))));
  return jobs.empty() ? "-" : absl::StrJoin(jobs, ",");
}

// Of a list that is `watched` a column that comes and goes would change every row.
Table NodeTable(const std::vector<v1::Node>& nodes, bool wide, bool watched) {
  std::vector<Column> columns = {{"NAME"},
                                 {"STATE"},
                                 {"CPUS", true},
                                 {"MEMORY", true},
                                 {"GPUS", false, true},
                                 {"RUNS", false, true},
                                 {"HEARD", true, false, true}};
  if (wide) {
    columns.push_back({"GPU MEMORY", false, true, true});
    for (const char* heading : {"CPU", "HOST", "AGENT", "GANG ADDRESS", "LABELS"})
      columns.push_back({heading, false, true});
  }
  const bool reasons =
      watched || std::any_of(nodes.begin(), nodes.end(), [](const v1::Node& n) { return !n.state_reason().empty(); });
  if (reasons) columns.push_back({"BECAUSE", false, true});
  Table table(columns);
  for (const v1::Node& node : nodes) {
    const v1::Inventory& inventory = node.inventory();
    std::vector<Cell> cells = {
        ShortName(node.name()),
        Cell(v1::Node::State_Name(node.state()), StateColour(node.state())),
        FormatCount(inventory.cpus()),
        FormatBytes(inventory.memory_bytes()),
        Gpus(inventory),
        Runs(node),
        node.has_last_heartbeat_time() ? FormatAge(absl::Now() - ToTime(node.last_heartbeat_time())) : "-"};
    if (wide) {
      for (const std::string& cell : {GpuMemory(inventory), inventory.cpu_model(), inventory.hostname(),
                                      node.agent_version(), node.gang_address(), LabelText(node.labels())}) {
        cells.emplace_back(cell.empty() ? "-" : cell);
      }
    }
    if (reasons) cells.emplace_back(node.state_reason().empty() ? "-" : node.state_reason());
    table.AddRow(std::move(cells));
  }
  return table;
}

absl::Status List(CommandContext& context, bool watch) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Node> nodes, client->ListNodes(kMostListed));
    return ListingOf("nodes", nodes, NodeTable(nodes, WantsWide(context), watch),
                     "no nodes; start an agent with `luthier-worker --server HOST:PORT`, or the server with "
                     "--with-local-worker");
  });
}

absl::Status PrintChanged(CommandContext& context, const absl::StatusOr<v1::Node>& node) {
  if (!node.ok()) return node.status();
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(*node));
  } else {
    context.out() << node->name();
    if (context.format() != OutputFormat::kName) context.out() << "  " << v1::Node::State_Name(node->state());
    context.out() << std::endl;
  }
  return absl::OkStatus();
}

struct DrainArguments {
  std::string node;
  bool requeue = false;
};

absl::Status Drain(CommandContext& context, const DrainArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return PrintChanged(context, client->DrainNode(FullName("nodes", arguments.node), arguments.requeue));
}

absl::Status Undrain(CommandContext& context, const std::string& node) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return PrintChanged(context, client->UndrainNode(FullName("nodes", node)));
}

}  // namespace

void AddNodeCommands(CLI::App& app, CommandContext& context) {
  CLI::App& node = context.AddNoun(app, "node", "Show the machines that train");
  auto watch = std::make_shared<bool>(false);
  CLI::App& list =
      context.AddCommand(node, "list", "List nodes: what they have, what they run, when they were last heard",
                         "  luthier node list\n  luthier node list -o wide --watch\n",
                         [&context, watch] { return List(context, *watch); });
  AddWatchFlag(list, *watch);
  auto drain = std::make_shared<DrainArguments>();
  CLI::App& drain_command =
      context.AddCommand(node, "drain", "Give a node nothing any more; what runs there goes on to its end",
                         "  luthier node drain gpu-1\n"
                         "  luthier node drain gpu-1 --requeue     # what runs there goes on elsewhere\n",
                         [&context, drain] { return Drain(context, *drain); });
  drain_command.add_option("NODE", drain->node, "Name of the node")->required();
  context.CompleteWith(drain_command, NodeNames);
  drain_command.add_flag("--requeue", drain->requeue, "Stop what runs there with a checkpoint, to go on elsewhere");
  auto undrained = std::make_shared<std::string>();
  CLI::App& undrain_command = context.AddCommand(
      node, "undrain",
      "Give a node work again: ends a drain and a quarantine, and forgets with which nodes it did not meet",
      "  luthier node undrain gpu-1\n", [&context, undrained] { return Undrain(context, *undrained); });
  undrain_command.add_option("NODE", *undrained, "Name of the node")->required();
  context.CompleteWith(undrain_command, NodeNames);
}

}  // namespace luthier
