// How fast a run is.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <utility>

namespace luthier {

inline double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Steps over which speed is averaged for progress: long enough to be steady, short enough to follow a change.
inline constexpr size_t kSpeedWindow = 20;

// Speed and time left, from the last steps.
class Progress {
 public:
  void StepDone(double seconds, int64_t tokens) {
    window_.push_back({seconds, tokens});
    if (window_.size() > kSpeedWindow) window_.pop_front();
    total_seconds_ += seconds;
    ++steps_;
  }
  double step_seconds() const {
    double seconds = 0;
    for (const auto& [step_seconds, tokens] : window_) seconds += step_seconds;
    return seconds / static_cast<double>(std::max<size_t>(window_.size(), 1));
  }
  double tokens_per_second() const {
    double seconds = 0, tokens = 0;
    for (const auto& [step_seconds, step_tokens] : window_) {
      seconds += step_seconds;
      tokens += static_cast<double>(step_tokens);
    }
    return seconds > 0 ? tokens / seconds : 0;
  }
  double mean_step_seconds() const { return steps_ > 0 ? total_seconds_ / static_cast<double>(steps_) : 0; }

 private:
  std::deque<std::pair<double, int64_t>> window_;
  double total_seconds_ = 0;
  int64_t steps_ = 0;
};

}  // namespace luthier
