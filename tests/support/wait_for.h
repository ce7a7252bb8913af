// Waits for a condition instead of for a time.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace luthier {

// True as soon as `condition` holds; false if it does not within `deadline`.
inline bool WaitFor(const std::function<bool()>& condition,
                    std::chrono::milliseconds deadline = std::chrono::seconds(30)) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

}  // namespace luthier
