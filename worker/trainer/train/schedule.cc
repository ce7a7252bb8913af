#include "worker/trainer/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace luthier {

double LearningRate(const ScheduleOptions& options, int64_t step) {
  const auto total = static_cast<double>(options.total_steps);
  const double warmup = std::ceil(options.warmup_ratio * total);
  const auto now = static_cast<double>(step);
  if (now < warmup) return options.peak * (now + 1) / (warmup + 1);
  if (options.schedule == "constant") return options.peak;
  const double progress = (now - warmup) / std::max(1.0, total - warmup);
  if (options.schedule == "cosine") return options.peak * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return options.peak * (1 - progress);
}

}  // namespace luthier
