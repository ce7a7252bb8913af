#include "worker/agent/cancellation.h"

#include <utility>

namespace luthier {

void Cancellation::Cancel() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(cancelled_, true)) return;
  for (const auto& action : actions_) action();
  changed_.notify_all();
}

bool Cancellation::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

bool Cancellation::WaitFor(absl::Duration duration) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoMilliseconds(duration), [this] { return cancelled_; });
}

Cancellation::Hook::Hook(Cancellation& cancellation, std::function<void()> action) : cancellation_(cancellation) {
  const std::lock_guard lock(cancellation_.mutex_);
  if (cancellation_.cancelled_) action();
  place_ = cancellation_.actions_.insert(cancellation_.actions_.end(), std::move(action));
}

Cancellation::Hook::~Hook() {
  const std::lock_guard lock(cancellation_.mutex_);
  cancellation_.actions_.erase(place_);
}

}  // namespace luthier
