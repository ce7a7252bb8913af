#include "client/cli/list.h"

#include <map>
#include <memory>
#include <utility>

#include "client/cli/output.h"
#include "client/cli/screen.h"
#include "client/cli/terminal.h"
#include "client/lib/stop_signal.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// How often a watched list is looked at.
constexpr absl::Duration kLook = absl::Seconds(1);

void Print(CommandContext& context, const Listing& listing) {
  if (context.ForPrograms()) {
    context.PrintForPrograms(listing.whole);
  } else if (context.format() == OutputFormat::kName) {
    for (const std::string& name : listing.names) context.out() << name << "\n";
  } else if (listing.names.empty()) {
    context.Say(listing.nothing);
  } else {
    context.out() << listing.table.Render(context.out_terminal());
  }
  context.out() << std::flush;
  if (!listing.note.empty()) context.Say(listing.note);
}

// What a watched list looks like where lines are not drawn again.
class Changes {
 public:
  explicit Changes(CommandContext& context) : context_(context) {}

  void Print(const Listing& listing) {
    const std::vector<std::string> lines = listing.table.Lines(context_.out_terminal());
    std::map<std::string, std::string> contents;
    for (size_t i = 0; i < listing.names.size(); ++i) {
      const std::string& name = listing.names[i];
      const std::string& content = contents[name] = listing.table.Content(i);
      if (const auto found = contents_.find(name); found != contents_.end() && found->second == content) continue;
      Print(name, listing.values[i], lines[0], lines[i + 1]);
    }
    for (const auto& [name, content] : contents_) {
      if (contents.count(name) == 0) PrintGone(name);
    }
    contents_ = std::move(contents);
    context_.out() << std::flush;
  }

 private:
  void Print(const std::string& name, const nlohmann::json& value, const std::string& heading,
             const std::string& line) {
    switch (context_.format()) {
      case OutputFormat::kJson:
      case OutputFormat::kYaml: context_.PrintOneForPrograms(value); break;
      case OutputFormat::kName: context_.out() << name << "\n"; break;
      default: context_.out() << (std::exchange(headed_, true) ? "" : heading) << line;
    }
  }

  // A name alone says that there is something new of it.
  void PrintGone(const std::string& name) {
    if (context_.ForPrograms()) {
      nlohmann::json gone;
      gone["no_longer_listed"] = name;
      context_.PrintOneForPrograms(gone);
    } else if (context_.format() != OutputFormat::kName) {
      context_.out() << ShortName(name) << "  is no longer listed\n";
    }
  }

  CommandContext& context_;
  bool headed_ = false;
  std::map<std::string, std::string> contents_;  // by name, as last printed
};

absl::Status Watch(CommandContext& context, const std::function<absl::StatusOr<Listing>()>& read) {
  const bool redraws =
      context.out_terminal().interactive && !context.ForPrograms() && context.format() != OutputFormat::kName;
  Screen screen(context.out(), context.out_terminal());
  Changes changes(context);
  bool seen = false, away = false;
  const auto stop = std::make_shared<StopSignal>();
  context.interrupts().Handle([stop] { stop->Notify(); });
  absl::Status failed;
  do {
    const absl::StatusOr<Listing> listing = read();
    if (seen && (absl::IsUnavailable(listing.status()) || absl::IsDeadlineExceeded(listing.status()))) {
      screen.Leave();
      if (!std::exchange(away, true)) context.SayThatItWaits(listing.status());
      continue;
    }
    failed = listing.status();
    if (!failed.ok()) break;
    seen = true;
    away = false;
    const Terminal terminal = context.out_terminal().AsItIsNow();
    screen.Resize(terminal);
    if (!redraws) {
      changes.Print(*listing);
    } else if (listing->names.empty()) {
      screen.Draw(listing->nothing + "\n");
    } else {
      screen.Draw(listing->table.Render(terminal));
    }
  } while (!stop->WaitFor(kLook));
  context.interrupts().Handle({});
  return failed;
}

}  // namespace

void AddWatchFlag(CLI::App& command, bool& watch) {
  command.add_flag("-w,--watch", watch, "Show it again whenever it changes, until Ctrl-C");
}

void AddLimitFlag(CLI::App& command, int& limit, int most) {
  command.add_option("--limit", limit, "At most this many")
      ->check(CLI::Range(1, most))
      ->capture_default_str()
      ->type_name("N");
}

absl::Status ShowList(CommandContext& context, bool watch, const std::function<absl::StatusOr<Listing>()>& read) {
  if (watch) return Watch(context, read);
  LUTHIER_ASSIGN_OR_RETURN(const Listing listing, read());
  Print(context, listing);
  return absl::OkStatus();
}

bool WantsWide(const CommandContext& context) {
  return context.format() == OutputFormat::kWide || context.ForPrograms();
}

}  // namespace luthier
