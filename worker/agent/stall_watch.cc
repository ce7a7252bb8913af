#include "worker/agent/stall_watch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// Reading a large base, its rows and its first step, or writing and comparing a model, is one silence each.
constexpr int kLongPhase = 4;
// A step of many tokens on a slow machine is slow each time; one that takes ten times as long as the others hangs.
constexpr int kSlowSteps = 10;

}  // namespace

void StallWatch::Observe(const nlohmann::json& event, absl::Time now) {
  heard_ = now;
  const auto is = [&](const char* field, const char* value) {
    const auto found = event.find(field);
    return found != event.end() && *found == value;
  };
  if (is("event", "progress")) {
    phase_ = Phase::kTraining;
    if (const auto step = event.find("step_seconds"); step != event.end() && step->is_number())
      step_ = absl::Seconds(step->get<double>());
  } else if (is("event", "busy") && is("with", "export")) {
    phase_ = Phase::kExporting;
  }
}

absl::Duration StallWatch::limit() const {
  return phase_ == Phase::kTraining ? std::max(patience_, kSlowSteps * step_) : kLongPhase * patience_;
}

std::string StallWatch::Text() const {
  const char* what = phase_ == Phase::kLoading    ? "before its first step"
                     : phase_ == Phase::kTraining ? "while it trained"
                                                  : "while it wrote its result";
  return absl::StrCat("the trainer said nothing for ", absl::FormatDuration(limit()), " ", what);
}

}  // namespace luthier
