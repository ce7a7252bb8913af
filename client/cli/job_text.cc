#include "client/cli/job_text.h"

#include <algorithm>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/model_names.h"
#include "client/cli/output.h"
#include "client/cli/progress_line.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "client/lib/job_watch.h"

namespace luthier {
namespace {

std::string TaskWord(v1::Task task) {
  return EnumWord(v1::Task_Name(task == v1::TASK_UNSPECIFIED ? v1::TASK_CHAT : task), "TASK_");
}

std::string DatasetText(const v1::DatasetSelection& dataset) {
  if (dataset.mixture().empty()) return ShortName(dataset.train().empty() ? dataset.dataset() : dataset.train());
  std::vector<std::string> parts;
  for (const v1::WeightedDataset& weighted : dataset.mixture()) {
    const bool once = !weighted.has_weight() || weighted.weight() == 1;
    parts.push_back(once ? ShortName(weighted.dataset())
                         : absl::StrCat(ShortName(weighted.dataset()), " ×", weighted.weight()));
  }
  return absl::StrJoin(parts, " + ");
}

// What an export writes in which form.
std::string ExportText(const v1::ModelExport& wanted) {
  return absl::StrCat(wanted.model_version(),
                      wanted.format() == v1::ModelExport::MERGED ? ", merged into its base" : ", as a GGUF adapter");
}

std::string SourceText(const v1::FineTuningSpec& spec) {
  return spec.has_model_export() ? spec.model_export().model_version() : DatasetText(spec.dataset());
}

std::string ProgressText(const v1::FineTuningJob& job) {
  if (!job.has_progress()) return "-";
  return absl::StrCat(FormatCount(job.progress().step()), "/", FormatCount(job.progress().total_steps()));
}

Cell StateCell(v1::FineTuningJob::State state) {
  const Terminal plain;
  Cell cell(StateWord(state, plain));
  if (state == v1::FineTuningJob::SUCCEEDED) cell.colour = Colour::kGreen;
  if (state == v1::FineTuningJob::FAILED) cell.colour = Colour::kRed;
  if (state == v1::FineTuningJob::RUNNING) cell.colour = Colour::kBlue;
  return cell;
}

// `heading   text`, as a description has it; nothing if there is no text.
void Field(std::string& out, const Terminal& terminal, const std::string& heading, const std::string& text) {
  if (text.empty()) return;
  absl::StrAppend(&out, terminal.Paint(Colour::kFaint, heading),
                  std::string(std::max<size_t>(1, 14 - heading.size()), ' '), text, "\n");
}

void Section(std::string& out, const Terminal& terminal, const std::string& heading, const std::string& body) {
  if (!body.empty()) absl::StrAppend(&out, "\n", terminal.Paint(Colour::kBold, heading), "\n", body);
}

// `n1`, or `n1 (leads), n2`.
std::string NodesText(const v1::FineTuningJob& job) {
  std::string text = ShortName(job.node());
  if (job.other_nodes_size() > 0) absl::StrAppend(&text, " (leads)");
  for (const std::string& node : job.other_nodes()) absl::StrAppend(&text, ", ", ShortName(node));
  return text;
}

// Why it ended, where its state does not say it.
std::string EndText(const v1::FineTuningJob& job) {
  if (job.stop_reason() == "DEADLINE") return "its deadline was over";
  if (job.stop_reason() == "MAX_STEPS") return "it has done the steps of training.max_steps";
  if (job.stop_reason() == "NO_GAIN") return "it has not got better for as long as evaluation.patience says";
  return "";
}

// `background, priority -3`; nothing where both are what they are by default.
std::string UrgencyText(const v1::FineTuningJob& job) {
  const bool standard =
      job.service_class() == v1::SERVICE_CLASS_UNSPECIFIED || job.service_class() == v1::SERVICE_CLASS_STANDARD;
  if (standard && job.priority() == 0) return "";
  const std::string word = EnumWord(v1::ServiceClass_Name(job.service_class()), "SERVICE_CLASS_");
  return absl::StrCat(standard ? "standard" : word, ", priority ", job.priority());
}

std::string Times(const v1::FineTuningJob& job, absl::Time now) {
  std::string text =
      absl::StrCat(FormatTime(job.create_time()), " (", FormatAge(now - ToTime(job.create_time())), " ago)");
  if (job.has_start_time()) {
    const absl::Time start = ToTime(job.start_time());
    absl::StrAppend(&text, job.has_end_time() ? absl::StrCat(", ran ", DurationText(ToTime(job.end_time()) - start))
                                              : absl::StrCat(", began ", FormatAge(now - start), " ago"));
  }
  return text;
}

std::string FailureText(const v1::FineTuningJob& job, const Terminal& terminal) {
  std::string out;
  if (!job.has_failure()) return out;
  const std::string cause = v1::JobFailure::Cause_Name(job.failure().cause());
  for (absl::string_view line : absl::StrSplit(job.failure().message(), '\n'))
    absl::StrAppend(&out, "  ", OneLine(line), "\n");
  if (!job.failure().node().empty()) absl::StrAppend(&out, "  node    ", ShortName(job.failure().node()), "\n");
  absl::StrAppend(&out, "  cause   ", terminal.Paint(Colour::kRed, cause), "\n");
  absl::StrAppend(&out, "  remedy  ", Remedy(job.failure().cause(), ShortName(job.name())), "\n");
  return out;
}

std::string EvaluationLines(const v1::FineTuningJob& job) {
  std::string out;
  for (const v1::Evaluation& evaluation : job.evaluations()) {
    const bool has_step = evaluation.step() > 0 && evaluation.model() != "base";  // which no step has changed
    absl::StrAppend(&out, "  ", EvaluationText(evaluation), has_step ? absl::StrCat(", step ", evaluation.step()) : "",
                    "\n");
  }
  return out;
}

std::string ResultText(const v1::FineTuningJob& job) {
  std::string out;
  if (!job.model_version().empty()) absl::StrAppend(&out, "  model       ", job.model_version(), "\n");
  if (!job.has_summary()) return out;
  const v1::RunSummary& summary = job.summary();
  absl::StrAppend(&out, "  size        ", FormatBytes(summary.artifact_bytes()), "\n");
  std::string steps;
  if (!job.spec().has_model_export()) {
    absl::StrAppend(&out, "  trained     ", FormatCount(summary.trainable_parameters()), " parameters, final loss ",
                    FormatFraction(summary.train_loss()), "\n");
    steps = absl::StrCat(DurationText(ToDuration(summary.step_duration())), " a step, ");
  }
  absl::StrAppend(&out, "  took        ", DurationText(ToDuration(summary.duration())), ", ", steps, "peak memory ",
                  FormatBytes(summary.peak_memory_bytes()), "\n");
  return out;
}

std::string WorstRows(const v1::FineTuningJob& job) {
  std::string out;
  for (const v1::RowLoss& row : job.summary().worst_rows()) {
    absl::StrAppend(&out, "  ", OneLine(row.file()), ":", row.line(), "  loss ", FormatFraction(row.last_loss()),
                    ", at first ", FormatFraction(row.first_loss()), "\n");
  }
  return out;
}

}  // namespace

std::vector<std::string> StateWords() {
  std::vector<std::string> words;
  for (int i = v1::FineTuningJob::State_MIN + 1; i <= v1::FineTuningJob::State_MAX; ++i)
    words.push_back(absl::AsciiStrToLower(v1::FineTuningJob::State_Name(static_cast<v1::FineTuningJob::State>(i))));
  return words;
}

Table JobTable(const std::vector<v1::FineTuningJob>& jobs, bool wide, absl::Time now) {
  std::vector<Column> columns = {{"NAME"},
                                 {"STATE"},
                                 {"STEP", true},
                                 {"TASK", false, true},
                                 {"TUNING"},
                                 {"BASE MODEL", false, true},
                                 {"DATASET", false, true},
                                 {"AGE", true, false, true}};
  if (wide) {
    for (const char* heading : {"LOSS", "NODE", "ATTEMPT", "MODEL VERSION", "LABELS"})
      columns.push_back({heading, false, true});
  }
  Table table(columns);
  for (const v1::FineTuningJob& job : jobs) {
    std::vector<Cell> cells = {
        ShortName(job.name()),  StateCell(job.state()),
        ProgressText(job),      job.spec().has_model_export() ? "-" : TaskWord(job.spec().task()),
        TuningWord(job.spec()), ShortName(job.spec().base_model()),
        SourceText(job.spec()), FormatAge(now - ToTime(job.create_time()))};
    if (wide) {
      cells.emplace_back(job.has_progress() ? FormatFraction(job.progress().loss()) : "-");
      cells.emplace_back(job.node().empty() ? "-" : NodesText(job));
      cells.emplace_back(absl::StrCat(job.attempt()));
      cells.emplace_back(job.model_version().empty() ? "-" : job.model_version());
      cells.emplace_back(LabelText(job.labels()));
    }
    table.AddRow(std::move(cells));
  }
  return table;
}

std::string TuningWord(const v1::FineTuningSpec& spec) {
  return spec.has_model_export() ? "export" : spec.has_full() ? "full" : "lora";
}

std::string ResolvedTable(const v1::FineTuningJob& job, const Terminal& terminal) {
  Table table({{"FIELD"}, {"VALUE", false, true}, {"REASON", false, true}});
  for (const v1::ResolvedValue& value : job.resolved()) {
    table.AddRow({value.field(), value.value(),
                  Cell(value.reason(), value.reason() == "given" ? std::optional<Colour>() : Colour::kFaint)});
  }
  return table.empty() ? "" : table.Render(terminal);
}

std::string JobDescription(const v1::FineTuningJob& job, absl::Time now, const Terminal& terminal) {
  std::string out;
  const bool over = IsTerminal(job.state());
  Field(out, terminal, "Job", terminal.Paint(Colour::kBold, job.name()));
  Field(out, terminal, "State", StateWord(job.state(), terminal));
  Field(out, terminal, "Waits because", OneLine(job.pending_reason()));
  Field(out, terminal, "Ended because", EndText(job));
  Field(out, terminal, "Urgency", UrgencyText(job));
  Field(out, terminal, "Tenant", job.tenant() == "default" ? "" : job.tenant());
  Field(out, terminal, "Sweep", ShortName(job.sweep()));
  Field(out, terminal, "Base model", ShortName(job.spec().base_model()));
  Field(out, terminal, "Dataset", DatasetText(job.spec().dataset()));
  if (job.spec().has_model_export()) {
    Field(out, terminal, "Export", ExportText(job.spec().model_export()));
  } else {
    Field(out, terminal, "Task",
          absl::StrCat(TaskWord(job.spec().task()), ", ", job.spec().has_full() ? "full training" : "LoRA"));
  }
  if (!job.labels().empty()) Field(out, terminal, "Labels", OneLine(LabelText(job.labels())));
  Field(out, terminal, "Created", Times(job, now));
  if (job.has_deadline()) Field(out, terminal, "Deadline", FormatTime(job.deadline()));
  if (job.has_retention()) Field(out, terminal, "Logs kept", DurationText(ToDuration(job.retention())));
  if (job.attempt() > 0) {
    const std::string lost = job.lost_attempts() > 0 ? absl::StrCat(", ", job.lost_attempts(), " lost") : "";
    Field(out, terminal, "Attempt", absl::StrCat(job.attempt(), " on ", NodesText(job), lost));
  }
  if (job.has_progress() && !over) Field(out, terminal, "Progress", PlainProgressLine(job.progress()));
  for (const std::string& warning : job.warnings()) Field(out, terminal, "Warning", OneLine(warning));
  Section(out, terminal, "Failure", FailureText(job, terminal));
  Section(out, terminal, "Result", ResultText(job));
  Section(out, terminal, "Evaluations", EvaluationLines(job));
  Section(out, terminal, "Training rows with the highest loss", WorstRows(job));
  Section(out, terminal, "Values", ResolvedTable(job, terminal));
  return out;
}

std::string WhatCameOut(const v1::FineTuningJob& job) {
  const std::string id = ShortName(job.name());
  const v1::FineTuningSpec& spec = job.spec();
  // The model may have another name than the job, and versions of other jobs.
  const std::string version = ShortVersionName(job.model_version());
  std::string out =
      absl::StrCat(job.name(), " succeeded after ", DurationText(ToTime(job.end_time()) - ToTime(job.create_time())),
                   " and published ", job.model_version());
  if (!spec.has_model_export()) absl::StrAppend(&out, "\n  compare with the base:  luthier job compare ", id);
  if (spec.model_export().format() != v1::ModelExport::GGUF_ADAPTER)  // that is for llama.cpp
    absl::StrAppend(&out, "\n  try it:                 luthier generate --model ", version, " --prompt TEXT");
  absl::StrAppend(&out, "\n  download it:            luthier model download ", version);
  return out;
}

std::string Remedy(v1::JobFailure::Cause cause, const std::string& job) {
  switch (cause) {
    case v1::JobFailure::USER_DATA:
      return "correct the rows, check them with `luthier dataset check`, upload them under a new name and submit again";
    case v1::JobFailure::CONFIG:
      return "correct the job file and submit again; `--dry-run` shows what every value becomes";
    case v1::JobFailure::OOM:
      return "lower training.micro_batch_tokens (memory only) or training.max_length, use LoRA, or a node with more "
             "memory";
    case v1::JobFailure::NON_FINITE:
      return "lower training.learning_rate, raise training.warmup_ratio, or train in fp32";
    case v1::JobFailure::HARDWARE:
      return absl::StrCat("look at the node's device (its driver's log), then `luthier job retry ", job,
                          "`, which goes on from the last checkpoint");
    case v1::JobFailure::WORKER_LOST:
      return absl::StrCat("look at `luthier node list` and `luthier job logs ", job,
                          "`: attempts died without saying why");
    case v1::JobFailure::CRASHED:
      return absl::StrCat("look at `luthier job logs ", job,
                          "` for what the trainer said last; try a smaller training.micro_batch_tokens, and report it "
                          "if that does not help");
    case v1::JobFailure::STORAGE:
      return absl::StrCat(
          "free disk space, or bring back what is damaged, where the message says; then `luthier job retry ", job,
          "`, which goes on from the last checkpoint");
    default: return absl::StrCat("a defect of Luthier: report it with the output of `luthier job logs ", job, "`");
  }
}

}  // namespace luthier
