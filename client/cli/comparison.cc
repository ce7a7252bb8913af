#include "client/cli/comparison.h"

#include <algorithm>
#include <functional>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/job_text.h"
#include "client/cli/output.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

constexpr char kNone[] = "-";

const v1::Evaluation* Find(const v1::FineTuningJob& job, const std::string& model) {
  for (const v1::Evaluation& evaluation : job.evaluations()) {
    if (evaluation.split() == "test" && evaluation.model() == model) return &evaluation;
  }
  return nullptr;
}

// One column of the table: what a base model or a job measured.
struct Subject {
  std::string kind;  // base, or how the job tuned
  std::string name;
  std::string job;                             // of which the figures are, the first of those that share them
  const v1::Evaluation* evaluation = nullptr;  // on the test part; null: none
  const v1::RunSummary* summary = nullptr;     // null for a base model
  int64_t base_parameters = 0;

  std::string heading() const { return absl::StrCat(kind, " ", name); }
};

bool SameFigures(const v1::Evaluation& a, const v1::Evaluation& b) {
  return a.rows() == b.rows() && a.loss() == b.loss() && a.exact_match() == b.exact_match() &&
         a.json_equality() == b.json_equality() && a.field_f1() == b.field_f1();
}

std::string Tuning(const v1::FineTuningJob& job) {
  const std::string word = TuningWord(job.spec());
  return word == "lora" ? "LoRA" : word;
}

// Two jobs that start from the same base on the same rows share its column.
std::vector<Subject> Subjects(const std::vector<v1::FineTuningJob>& jobs,
                              const std::map<std::string, int64_t>& base_parameters) {
  std::vector<Subject> bases, tuned;
  for (const v1::FineTuningJob& job : jobs) {
    const std::string base = FullName("baseModels", job.spec().base_model());
    const v1::Evaluation* evaluation = Find(job, "base");
    const std::string base_name = ShortName(base), job_name = ShortName(job.name());
    const auto same = std::find_if(bases.begin(), bases.end(), [&](const Subject& other) {
      if (other.name != base_name) return false;
      return evaluation == nullptr || other.evaluation == nullptr || SameFigures(*evaluation, *other.evaluation);
    });
    if (same == bases.end()) {
      bases.push_back({"base", base_name, job_name, evaluation, nullptr, 0});
    } else if (same->evaluation == nullptr) {
      same->evaluation = evaluation;
      same->job = job_name;
    }
    const auto found = base_parameters.find(base);
    tuned.push_back({Tuning(job), job_name, job_name, Find(job, "tuned"), job.has_summary() ? &job.summary() : nullptr,
                     found == base_parameters.end() ? 0 : found->second});
  }
  std::map<std::string, int> columns;
  for (const Subject& base : bases) ++columns[base.name];
  for (Subject& base : bases) {
    if (columns[base.name] > 1) base.name = absl::StrCat(base.name, " (", base.job, ")");
  }
  bases.insert(bases.end(), tuned.begin(), tuned.end());
  return bases;
}

std::string Parameters(const Subject& subject) {
  const int64_t trained = subject.summary->trainable_parameters();
  if (subject.base_parameters <= 0) return FormatCount(trained);
  const double part = static_cast<double>(trained) / static_cast<double>(subject.base_parameters);
  return absl::StrFormat("%s (%.3g %%)", FormatCount(trained), part * 100);
}

struct Figure {
  const char* name;
  std::function<std::string(const Subject&)> text;
};

const std::vector<Figure>& Figures() {
  const auto evaluated = [](auto text) {
    return [text](const Subject& s) { return s.evaluation == nullptr ? kNone : text(*s.evaluation); };
  };
  const auto measured = [](auto text) {
    return [text](const Subject& s) { return s.summary == nullptr ? kNone : text(s); };
  };
  static const auto* figures = new std::vector<Figure>{
      {"exact match",
       evaluated([](const v1::Evaluation& e) { return e.has_exact_match() ? FormatPercent(e.exact_match()) : kNone; })},
      {"JSON equality", evaluated([](const v1::Evaluation& e) {
         return e.has_json_equality() ? FormatPercent(e.json_equality()) : kNone;
       })},
      {"field F1",
       evaluated([](const v1::Evaluation& e) { return e.has_field_f1() ? FormatPercent(e.field_f1()) : kNone; })},
      {"answers compared",
       evaluated([](const v1::Evaluation& e) { return e.scored_rows() > 0 ? FormatCount(e.scored_rows()) : kNone; })},
      {"loss", evaluated([](const v1::Evaluation& e) { return e.has_loss() ? FormatFraction(e.loss()) : kNone; })},
      {"held-out rows", evaluated([](const v1::Evaluation& e) { return FormatCount(e.rows()); })},
      {"trained parameters", measured(Parameters)},
      {"artifact size", measured([](const Subject& s) { return FormatBytes(s.summary->artifact_bytes()); })},
      {"peak memory", measured([](const Subject& s) { return FormatBytes(s.summary->peak_memory_bytes()); })},
      {"time a step", measured([](const Subject& s) { return DurationText(ToDuration(s.summary->step_duration())); })},
      {"training time", measured([](const Subject& s) { return DurationText(ToDuration(s.summary->duration())); })},
  };
  return *figures;
}

const v1::EvaluationExample* FindExample(const v1::Evaluation* evaluation, const std::string& prompt) {
  if (evaluation == nullptr) return nullptr;
  for (const v1::EvaluationExample& example : evaluation->examples()) {
    if (example.prompt() == prompt) return &example;
  }
  return nullptr;
}

std::string Fitted(const std::string& text, const std::string& heading, const Terminal& terminal) {
  const std::string line = OneLine(text);
  return terminal.width > 0 ? Ellipsize(line, std::max(8, terminal.width - DisplayWidth(heading))) : line;
}

// `width`: columns of the longest name.
void ExampleLine(std::string& out, const std::string& name, size_t width, const std::string& text,
                 std::optional<Colour> colour, const Terminal& terminal) {
  const std::string heading = absl::StrCat("    ", name, std::string(width - name.size() + 2, ' '));
  const std::string fitted = Fitted(text, heading, terminal);
  absl::StrAppend(&out, heading, colour ? terminal.Paint(*colour, fitted) : fitted, "\n");
}

Colour Verdict(const v1::EvaluationExample& example) {
  return example.answer() == example.expected() ? Colour::kGreen : Colour::kRed;
}

}  // namespace

std::string ComparisonTable(const std::vector<v1::FineTuningJob>& jobs,
                            const std::map<std::string, int64_t>& base_parameters, const Terminal& terminal) {
  const std::vector<Subject> subjects = Subjects(jobs, base_parameters);
  std::vector<Column> columns = {{""}};
  for (const Subject& subject : subjects) columns.push_back({subject.heading(), true});
  Table table(columns);
  for (const Figure& figure : Figures()) {
    std::vector<Cell> cells = {figure.name};
    bool any = false;
    for (const Subject& subject : subjects) {
      cells.emplace_back(figure.text(subject));
      any = any || cells.back().text != kNone;
    }
    if (any) table.AddRow(std::move(cells));
  }
  return table.Render(terminal);
}

std::string ComparisonExamples(const std::vector<v1::FineTuningJob>& jobs, int limit, const Terminal& terminal) {
  std::string out;
  const v1::Evaluation* first = nullptr;
  for (const v1::FineTuningJob& job : jobs) {
    if (first == nullptr) first = Find(job, "tuned");
  }
  if (first == nullptr) return out;
  const std::vector<Subject> subjects = Subjects(jobs, {});
  const auto name_of = [&](const Subject& subject) { return jobs.size() > 1 ? subject.heading() : subject.kind; };
  const std::string expected = "expected";
  size_t width = expected.size();
  for (const Subject& subject : subjects) width = std::max(width, name_of(subject).size());
  for (int i = 0; i < std::min(limit, first->examples_size()); ++i) {
    const v1::EvaluationExample& row = first->examples(i);
    const std::string number = absl::StrCat(i + 1, "   ");
    absl::StrAppend(&out, out.empty() ? "" : "\n", number,
                    terminal.Paint(Colour::kBold, Fitted(row.prompt(), number, terminal)), "\n");
    ExampleLine(out, expected, width, row.expected(), std::nullopt, terminal);
    for (const Subject& subject : subjects) {
      const v1::EvaluationExample* example = FindExample(subject.evaluation, row.prompt());
      if (example != nullptr) ExampleLine(out, name_of(subject), width, example->answer(), Verdict(*example), terminal);
    }
  }
  return out;
}

nlohmann::json ComparisonJson(const std::vector<v1::FineTuningJob>& jobs) {
  nlohmann::json list = nlohmann::json::array();
  for (const v1::FineTuningJob& job : jobs) {
    nlohmann::json entry = {{"job", job.name()},
                            {"tuning", TuningWord(job.spec())},
                            {"base_model", FullName("baseModels", job.spec().base_model())},
                            {"model_version", job.model_version()}};
    if (const v1::Evaluation* base = Find(job, "base")) entry["base"] = MessageToJson(*base);
    if (const v1::Evaluation* tuned = Find(job, "tuned")) entry["tuned"] = MessageToJson(*tuned);
    if (job.has_summary()) entry["summary"] = MessageToJson(job.summary());
    list.push_back(std::move(entry));
  }
  return {{"jobs", list}};
}

}  // namespace luthier
