#include "client/cli/watch_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/progress_line.h"
#include "client/cli/text.h"

namespace luthier {
namespace {

constexpr size_t kMostLosses = 64;
// In a file a line each tenth of the way, and at least this often: enough to see that it goes on, without filling logs.
constexpr absl::Duration kLineInterval = absl::Seconds(30);
constexpr int kHeadingWidth = 11;

Colour StateColour(v1::FineTuningJob::State state) {
  switch (state) {
    case v1::FineTuningJob::SUCCEEDED: return Colour::kGreen;
    case v1::FineTuningJob::FAILED: return Colour::kRed;
    case v1::FineTuningJob::RECOVERING:
    case v1::FineTuningJob::CANCELLING:
    case v1::FineTuningJob::CANCELLED: return Colour::kYellow;
    default: return Colour::kBlue;
  }
}

double Number(const v1::JobEvent& event, const char* field) {
  const auto found = event.data().fields().find(field);
  return found == event.data().fields().end() ? 0 : found->second.number_value();
}

std::string Text(const v1::JobEvent& event, const char* field) {
  const auto found = event.data().fields().find(field);
  return found == event.data().fields().end() ? "" : found->second.string_value();
}

std::string StartedText(const v1::JobEvent& event) {
  const auto count = [&](const char* field) { return FormatCount(static_cast<int64_t>(Number(event, field))); };
  if (const std::string form = Text(event, "export"); !form.empty())
    return absl::StrCat(Text(event, "device"), ", exports the adapter as ", form);
  const bool resumed = Number(event, "resumed_step") > 0;
  return absl::StrCat(Text(event, "device"), " ", Text(event, "precision"), ", trains ", count("trainable_parameters"),
                      " of ", count("base_parameters"), " parameters on ", count("train_rows"), " rows, ",
                      count("total_steps"), " steps",
                      resumed ? absl::StrCat(", goes on behind step ", count("resumed_step")) : "");
}

std::string CheckpointText(const v1::JobEvent& event) {
  return absl::StrCat("step ", FormatCount(static_cast<int64_t>(Number(event, "step"))), ", ",
                      FormatBytes(static_cast<int64_t>(Number(event, "bytes"))));
}

}  // namespace

std::string StateWord(v1::FineTuningJob::State state, const Terminal& terminal) {
  return terminal.Paint(StateColour(state), v1::FineTuningJob::State_Name(state));
}

std::string EvaluationText(const v1::Evaluation& evaluation) {
  std::vector<std::string> parts;
  if (evaluation.has_exact_match()) parts.push_back("exact match " + FormatPercent(evaluation.exact_match()));
  if (evaluation.has_json_equality()) parts.push_back("JSON equality " + FormatPercent(evaluation.json_equality()));
  if (evaluation.has_field_f1()) parts.push_back("field F1 " + FormatPercent(evaluation.field_f1()));
  const bool of_some = evaluation.scored_rows() > 0 && evaluation.scored_rows() < evaluation.rows();
  if (!parts.empty() && of_some)
    absl::StrAppend(&parts.back(), " (", FormatCount(evaluation.scored_rows()), " answers)");
  if (evaluation.has_loss()) parts.push_back("loss " + FormatFraction(evaluation.loss()));
  if (evaluation.has_token_accuracy()) parts.push_back("token accuracy " + FormatPercent(evaluation.token_accuracy()));
  return absl::StrCat(evaluation.split(), ", ", evaluation.model(), ": ", absl::StrJoin(parts, ", "), " (",
                      FormatCount(evaluation.rows()), " rows)");
}

void WatchView::OnEvent(const v1::JobEvent& event) {
  const absl::Time time = ToTime(event.create_time());
  if (event.type() == "progress") {
    OnProgress(event);
  } else if (event.type() == "state") {
    Erase();  // what was drawn said how far an attempt is that may be gone, and when it would end
    Line(time, StateWord(event.state(), terminal_), event.message());
  } else if (event.type() == "started") {
    Line(time, "started", StartedText(event));
  } else if (event.type() == "evaluation") {
    Line(time, "evaluation", EvaluationText(event.evaluation()));
  } else if (event.type() == "checkpoint") {
    Line(time, "checkpoint", CheckpointText(event));
  } else if (event.type() == "warning") {
    Line(time, terminal_.Paint(Colour::kYellow, "warning"), event.message());
  } else if (event.type() == "published") {
    Line(time, terminal_.Paint(Colour::kGreen, "published"), event.message());
  }
  // `log` is what `job logs` shows; `failed` and `finished` are followed by the change of state that says the same.
}

void WatchView::OnProgress(const v1::JobEvent& event) {
  progress_ = event.progress();
  losses_.push_back(progress_.loss());
  if (losses_.size() > kMostLosses) losses_.erase(losses_.begin());
  if (terminal_.interactive) return Redraw();
  const absl::Time time = ToTime(event.create_time());
  const int64_t total = progress_.total_steps();
  const int tenth = total > 0 ? static_cast<int>(progress_.step() * 10 / total) : 0;
  if (tenth == last_tenth_ && time - last_line_ < kLineInterval) return;
  last_tenth_ = tenth;
  last_line_ = time;
  Line(time, "progress", PlainProgressLine(progress_));
}

void WatchView::OnInterrupted(const absl::Status& why) {
  interrupted_ = true;
  Erase();  // nobody knows how far it is
  Line(absl::Now(), terminal_.Paint(Colour::kYellow, "waiting"),
       absl::StrCat(why.message(), "; the job goes on, and so does this watch once the server is back"));
}

void WatchView::OnResumed() {
  if (!interrupted_) return;
  interrupted_ = false;
  Line(absl::Now(), "resumed", "the server is back");
}

void WatchView::Finish() { Erase(); }

void WatchView::Line(absl::Time time, const std::string& heading, const std::string& text) {
  const bool redraw = !live_.empty();
  Erase();
  const std::string padding(static_cast<size_t>(std::max(1, kHeadingWidth - DisplayWidth(heading))), ' ');
  const std::string clock = absl::FormatTime("%H:%M:%S", time, absl::LocalTimeZone());
  out_ << terminal_.Paint(Colour::kFaint, clock) << "  " << heading << padding << OneLine(text) << std::endl;
  if (redraw) Redraw();
}

// A carriage return and the line, so that nothing scrolls; the last column stays free, since some terminals wrap there.
void WatchView::Redraw() {
  live_ = ProgressLine(progress_, losses_, terminal_.AsItIsNow().width - 1);
  out_ << "\r" << live_ << "\x1b[K" << std::flush;
}

void WatchView::Erase() {
  if (live_.empty()) return;
  out_ << "\r\x1b[K" << std::flush;
  live_.clear();
}

}  // namespace luthier
