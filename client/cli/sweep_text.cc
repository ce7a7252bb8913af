#include "client/cli/sweep_text.h"

#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/wire/json_wire.h"

namespace luthier {

std::string SweepJobCounts(const v1::Sweep& sweep) {
  const std::map<std::string, int> counts(sweep.job_counts().begin(), sweep.job_counts().end());
  return absl::StrJoin(
      counts, ", ", [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.second, " ", entry.first); });
}

std::string SweepJobsTable(const v1::Sweep& sweep, const Terminal& terminal) {
  std::set<std::string> fields;
  for (const v1::SweepJob& job : sweep.jobs()) {
    for (const auto& [field, value] : job.values()) fields.insert(field);
  }
  std::vector<Column> columns = {{"NAME"}, {"STATE"}};
  for (const std::string& field : fields) columns.push_back({field, true, true});
  columns.push_back({sweep.metric(), true});
  columns.push_back({"MODEL VERSION", false, true});
  Table table(columns);
  for (const v1::SweepJob& job : sweep.jobs()) {
    const bool best = job.job() == sweep.best_job();
    const std::optional<Colour> colour = best ? std::optional(Colour::kGreen) : std::nullopt;
    std::vector<Cell> cells = {Cell(ShortName(job.job()), colour), v1::FineTuningJob::State_Name(job.state())};
    for (const std::string& field : fields) {
      const auto value = job.values().find(field);
      cells.emplace_back(value == job.values().end() ? "-" : value->second);
    }
    cells.emplace_back(job.has_metric() ? absl::StrCat(FormatFraction(job.metric()), best ? " *" : "") : "-", colour);
    cells.emplace_back(job.model_version().empty() ? "-" : job.model_version());
    table.AddRow(std::move(cells));
  }
  return table.Render(terminal);
}

void PrintSweepLine(CommandContext& context, const v1::Sweep& sweep) {
  if (context.ForPrograms()) return context.PrintForPrograms(MessageToJson(sweep));
  context.out() << sweep.name();
  if (context.format() != OutputFormat::kName) context.out() << "  " << SweepJobCounts(sweep);
  context.out() << std::endl;
}

}  // namespace luthier
