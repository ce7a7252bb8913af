#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

std::string ClassWord(v1::ServiceClass service_class) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::ServiceClass_Name(service_class), "SERVICE_CLASS_"));
}

absl::Status Show(CommandContext& context, int limit) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Queue queue, client->GetQueue(limit));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(queue));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    for (const v1::QueueEntry& entry : queue.entries()) context.out() << entry.job() << "\n";
    return absl::OkStatus();
  }
  if (queue.entries().empty()) {
    context.Say("nothing waits");
    return absl::OkStatus();
  }
  Table table({{"NAME", false, true},
               {"TENANT", false, true},
               {"CLASS"},
               {"PRIORITY", true},
               {"DEVICES", true},
               {"AGE", true},
               {"WAITS BECAUSE", false, true}});
  for (const v1::QueueEntry& entry : queue.entries()) {
    table.AddRow({ShortName(entry.job()), entry.tenant(), ClassWord(entry.service_class()),
                  absl::StrCat(entry.priority()), absl::StrCat(entry.devices()),
                  FormatAge(absl::Now() - ToTime(entry.create_time())), OneLine(entry.pending_reason())});
  }
  context.out() << table.Render(context.out_terminal());
  if (queue.depth() > queue.entries_size())
    context.Say(absl::StrCat(FormatCount(queue.depth()), " jobs wait in all; --limit N shows more"));
  return absl::OkStatus();
}

}  // namespace

void AddQueueCommands(CLI::App& app, CommandContext& context) {
  CLI::App& queue = context.AddNoun(app, "queue", "Show what waits");
  auto limit = std::make_shared<int>(50);
  CLI::App& show = context.AddCommand(
      queue, "show",
      "List the jobs that wait, in the order in which they are expected to start, with the reason of each",
      "  luthier queue show\n  luthier queue show --limit 500 -o json\n",
      [&context, limit] { return Show(context, *limit); });
  show.add_option("--limit", *limit, "At most this many")
      ->check(CLI::Range(1, 500))
      ->capture_default_str()
      ->type_name("N");
}

}  // namespace luthier
