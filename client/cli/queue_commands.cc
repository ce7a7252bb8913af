#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/list.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Arguments {
  int limit = 50;
  bool watch = false;
};

Table QueueTable(const v1::Queue& queue) {
  Table table({{"NAME"},
               {"TENANT", false, true},
               {"CLASS"},
               {"PRIORITY", true},
               {"NODES", true},
               {"DEVICES", true},
               {"AGE", true, false, true},
               {"WAITS BECAUSE", false, true}});
  for (const v1::QueueEntry& entry : queue.entries()) {
    table.AddRow({ShortName(entry.job()), entry.tenant(),
                  EnumWord(v1::ServiceClass_Name(entry.service_class()), "SERVICE_CLASS_"),
                  absl::StrCat(entry.priority()), absl::StrCat(entry.nodes()), absl::StrCat(entry.devices()),
                  FormatAge(absl::Now() - ToTime(entry.create_time())), entry.pending_reason()});
  }
  return table;
}

absl::Status Show(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const v1::Queue queue, client->GetQueue(arguments.limit));
    Listing listing{.whole = MessageToJson(queue), .table = QueueTable(queue), .nothing = "nothing waits"};
    for (const v1::QueueEntry& entry : queue.entries()) {
      listing.names.push_back(entry.job());
      listing.values.push_back(MessageToJson(entry));
    }
    listing.whole["entries"] = listing.values;  // also where it is empty, which protobuf's JSON leaves out
    if (queue.depth() > queue.entries_size())
      listing.note = absl::StrCat(FormatCount(queue.depth()), " jobs wait in all; --limit N shows more");
    return listing;
  });
}

}  // namespace

void AddQueueCommands(CLI::App& app, CommandContext& context) {
  CLI::App& queue = context.AddNoun(app, "queue", "Show what waits");
  auto arguments = std::make_shared<Arguments>();
  CLI::App& show = context.AddCommand(
      queue, "show",
      "List the jobs that wait, in the order in which they are expected to start, with the reason of each",
      "  luthier queue show --watch\n  luthier queue show --limit 500 -o json\n",
      [&context, arguments] { return Show(context, *arguments); });
  AddLimitFlag(show, arguments->limit, 500);
  AddWatchFlag(show, arguments->watch);
}

}  // namespace luthier
