// Lists, as every noun shows them: for programs, as names or as a table; once, or with --watch whenever they change.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/command.h"
#include "client/cli/table.h"
#include "lib/wire/json_wire.h"
#include "nlohmann/json.hpp"

namespace luthier {

// What a list holds at one moment.
struct Listing {
  std::vector<std::string> names;      // of the items
  std::vector<nlohmann::json> values;  // the items, for programs
  nlohmann::json whole;                // all of it, for programs
  Table table;                         // a row an item
  std::string nothing;                 // what is said if there are no items
  std::string note;                    // what is said of all of it, in every format
};

// Of messages that have a name. `key` names the array in `whole`.
template <typename Message>
Listing ListingOf(const std::string& key, const std::vector<Message>& messages, Table table, std::string nothing) {
  Listing listing;
  for (const Message& message : messages) {
    listing.names.push_back(message.name());
    listing.values.push_back(MessageToJson(message));
  }
  listing.whole = {{key, listing.values}};
  listing.table = std::move(table);
  listing.nothing = std::move(nothing);
  return listing;
}

// Items of a list that has no --limit.
inline constexpr int kMostListed = 10000;

// --watch of a list, and --limit with its default.
void AddWatchFlag(CLI::App& command, bool& watch);
void AddLimitFlag(CLI::App& command, int& limit, int most = 1'000'000);

// Prints what `read` returns. With `watch` it goes on until Ctrl-C, across restarts of the server: on a terminal the
// table is drawn again in its place, elsewhere an item is a line when it appears, whenever it changes, without what
// only time changes, and when it is not there any more. Errors: those of `read`.
absl::Status ShowList(CommandContext& context, bool watch, const std::function<absl::StatusOr<Listing>()>& read);

// Whether tables of this run have all of their columns: so that programs hear of every change, too.
bool WantsWide(const CommandContext& context);

}  // namespace luthier
