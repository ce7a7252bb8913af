#include "client/cli/progress_line.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"
#include "client/cli/text.h"

namespace luthier {
namespace {

constexpr int kBarWidth = 20;
constexpr int kCurveWidth = 16;

double Done(const v1::JobProgress& progress) {
  if (progress.total_steps() <= 0) return 0;
  return std::clamp(static_cast<double>(progress.step()) / static_cast<double>(progress.total_steps()), 0.0, 1.0);
}

std::string Bar(double done) {
  const int full = static_cast<int>(std::floor(done * kBarWidth));
  std::string bar;
  for (int i = 0; i < kBarWidth; ++i) bar += i < full ? "█" : "░";
  return bar;
}

std::string Steps(const v1::JobProgress& progress) {
  const std::string total = FormatCount(progress.total_steps());
  return absl::StrCat("step ", FormatCount(progress.step()), "/", total);
}

std::string Speed(const v1::JobProgress& progress) {
  return absl::StrCat(FormatCount(std::llround(progress.tokens_per_second())), " tok/s");
}

// Also after the last step: the evaluations behind it can take longer than the training.
std::string Eta(const v1::JobProgress& progress) {
  const absl::Duration left = ToDuration(progress.eta());
  return left > absl::ZeroDuration() ? absl::StrCat("ETA ", DurationText(left)) : "";
}

}  // namespace

std::string ProgressLine(const v1::JobProgress& progress, const std::vector<double>& losses, int width) {
  const double done = Done(progress);
  struct Piece {
    std::string text;
    int importance;  // the least important one goes first
  };
  std::vector<Piece> pieces = {
      {absl::StrFormat("%s  %.0f%%", Steps(progress), std::floor(done * 100)), 9},
      {Bar(done), 2},
      {absl::StrFormat("loss %.3f", progress.loss()), 8},
      {Sparkline(losses, kCurveWidth), 1},
      {Speed(progress), 5},
      {Eta(progress), 7},
  };
  while (true) {
    std::string line;
    for (const Piece& piece : pieces) {
      if (!piece.text.empty()) absl::StrAppend(&line, line.empty() ? "" : "  ", piece.text);
    }
    if (DisplayWidth(line) <= width || pieces.size() == 1) return Ellipsize(line, width);
    pieces.erase(std::min_element(pieces.begin(), pieces.end(),
                                  [](const Piece& a, const Piece& b) { return a.importance < b.importance; }));
  }
}

std::string PlainProgressLine(const v1::JobProgress& progress) {
  const std::string eta = Eta(progress);
  return absl::StrFormat("%s  %.0f%%  loss %.4f  %s%s%s", Steps(progress), std::floor(Done(progress) * 100),
                         progress.loss(), Speed(progress), eta.empty() ? "" : "  ", eta);
}

}  // namespace luthier
