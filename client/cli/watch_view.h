// Prints a job's events as they come: on a terminal one redrawn line of progress below the other events, in a file
// lines.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/terminal.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// The word for a state, in its colour.
std::string StateWord(v1::FineTuningJob::State state, const Terminal& terminal);

class WatchView {
 public:
  WatchView(std::ostream& out, const Terminal& terminal) : out_(out), terminal_(terminal) {}

  void OnEvent(const v1::JobEvent& event);
  void OnInterrupted(const absl::Status& why);
  void OnResumed();
  // Removes the redrawn line; further output starts on a line of its own.
  void Finish();

 private:
  void OnProgress(const v1::JobEvent& event);
  // A line that stays, with time and heading.
  void Line(absl::Time time, const std::string& heading, const std::string& text);
  void Redraw();
  void Erase();

  std::ostream& out_;
  const Terminal terminal_;
  std::string live_;            // the redrawn line; empty: none
  std::vector<double> losses_;  // newest last, as many as a curve can show
  v1::JobProgress progress_;
  bool interrupted_ = false;
  // Of the last line of progress in a file.
  absl::Time last_line_ = absl::InfinitePast();
  int last_tenth_ = -1;
};

// `test, tuned: exact match 96.5 % (100 answers), loss 0.1234 (200 rows)`; the answers where they are not of all rows.
std::string EvaluationText(const v1::Evaluation& evaluation);

}  // namespace luthier
