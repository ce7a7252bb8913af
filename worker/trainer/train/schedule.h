// The learning rate of each step.
#pragma once

#include <cstdint>
#include <string>

namespace luthier {

struct ScheduleOptions {
  double peak = 0;
  double warmup_ratio = 0;  // part of all steps
  std::string schedule;     // linear, cosine, constant
  int64_t total_steps = 1;
};

// Learning rate of step 0 … total_steps - 1: rises linearly to the peak over the warm-up, then falls to 0 after the
// last step (as transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, except that step 0
// already learns).
double LearningRate(const ScheduleOptions& options, int64_t step);

}  // namespace luthier
