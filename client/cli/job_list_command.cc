// luthier job list: jobs by state, label, age or filter.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_text.h"
#include "client/cli/list.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

struct ListArguments {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  std::string since;
  std::string filter;
  bool oldest_first = false;
  int limit = 50;
  bool watch = false;
};

absl::StatusOr<std::vector<v1::FineTuningJob::State>> ParseStates(const std::vector<std::string>& words) {
  std::vector<v1::FineTuningJob::State> states;
  for (const std::string& word : words) {
    v1::FineTuningJob::State state;
    if (!v1::FineTuningJob::State_Parse(absl::AsciiStrToUpper(word), &state) ||
        state == v1::FineTuningJob::STATE_UNSPECIFIED) {
      return absl::InvalidArgumentError(
          absl::StrCat("--state: '", word, "' is no state; give one of: ", absl::StrJoin(StateWords(), ", ")));
    }
    states.push_back(state);
  }
  return states;
}

// Text as a filter takes it, whatever is in it.
std::string Quoted(const std::string& text) {
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\"", "\\\""}}), "\"");
}

// The filter of the API: what the flags say, joined.
absl::StatusOr<std::string> FilterOf(const ListArguments& arguments) {
  std::vector<std::string> comparisons;
  if (!arguments.filter.empty()) comparisons.push_back(arguments.filter);
  for (const std::string& label : arguments.labels) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(label, absl::MaxSplits('=', 1));
    const std::string key = absl::StrCat("labels.", Quoted(pair.first));
    comparisons.push_back(absl::StrContains(label, '=') ? absl::StrCat(key, " = ", Quoted(pair.second))
                                                        : absl::StrCat(key, ":*"));
  }
  if (!arguments.since.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const absl::Duration since, ParseDurationFlag("--since", arguments.since));
    comparisons.push_back(
        absl::StrCat("create_time >= ", absl::FormatTime(absl::RFC3339_sec, absl::Now() - since, absl::UTCTimeZone())));
  }
  return absl::StrJoin(comparisons, " AND ");
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const auto states, ParseStates(arguments.states));
  v1::ListFineTuningJobsRequest request;
  for (const v1::FineTuningJob::State state : states) request.add_states(state);
  LUTHIER_ASSIGN_OR_RETURN(*request.mutable_filter(), FilterOf(arguments));
  if (arguments.oldest_first) request.set_order_by("create_time");
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::FineTuningJob> jobs, client->ListJobs(request, arguments.limit));
    Listing listing = ListingOf("jobs", jobs, JobTable(jobs, WantsWide(context), absl::Now()),
                                states.empty() && request.filter().empty()
                                    ? "no jobs; submit one with: luthier job submit -f job.yaml"
                                    : "no job is like that");
    if (static_cast<int>(jobs.size()) == arguments.limit) listing.note = "more jobs may exist; --limit N shows them";
    return listing;
  });
}

}  // namespace

void AddJobListCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& command = context.AddCommand(job, "list", "List jobs, newest first",
                                         "  luthier job list\n"
                                         "  luthier job list --state queued,running -o wide\n"
                                         "  luthier job list --label team=support --since 24h\n"
                                         "  luthier job list --filter 'base_model = luthier-tiny AND end_time < "
                                         "2026-11-25T08:00:00Z'\n"
                                         "  luthier job list --state running --watch\n"
                                         "  luthier job list -o json\n",
                                         [&context, arguments] { return List(context, *arguments); });
  command.add_option("--state", arguments->states, "Only jobs in these states")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("STATE");
  command.add_option("--label", arguments->labels, "Only jobs with this label; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY[=VALUE]");
  command.add_option("--since", arguments->since, "Only jobs created within this time, such as 24h or 7d")
      ->type_name("DURATION");
  command
      .add_option("--filter", arguments->filter,
                  "Only jobs like this: comparisons of state, base_model, model or tenant (=), create_time or end_time "
                  "(<, <=, >, >=) or labels.KEY (=, or :* if it has one), joined by AND")
      ->type_name("FILTER");
  command.add_flag("--oldest-first", arguments->oldest_first, "In the order of creation");
  AddLimitFlag(command, arguments->limit);
  AddWatchFlag(command, arguments->watch);
}

}  // namespace luthier
