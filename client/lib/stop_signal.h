// Somebody's wish that a wait ends. absl::Notification waits by the wall clock: set back by a day, it waits a day
// longer.
#pragma once

#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace luthier {

// Any thread.
class StopSignal {
 public:
  void Notify() {
    const std::lock_guard lock(mutex_);
    notified_ = true;
    changed_.notify_all();
  }
  // True as soon as Notify() was called; false if it is not for so long. Requires: `longest` is finite.
  bool WaitFor(absl::Duration longest) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(longest), [this] { return notified_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool notified_ = false;
};

}  // namespace luthier
