// A wish to end, seen by whatever is being done at the moment. Thread-safe.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace luthier {

class Cancellation {
 public:
  void Cancel();
  bool cancelled() const;
  // Waits for `duration`; true as soon as it is cancelled.
  bool WaitFor(absl::Duration duration) const;

  // Runs `action` once when the wish comes, on the thread that wishes, or at once if it came before. Never after its
  // end.
  class Hook {
   public:
    Hook(Cancellation& cancellation, std::function<void()> action);
    ~Hook();
    Hook(const Hook&) = delete;
    Hook& operator=(const Hook&) = delete;

   private:
    Cancellation& cancellation_;
    std::list<std::function<void()>>::iterator place_;
  };

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool cancelled_ = false;
  std::list<std::function<void()>> actions_;
};

// How what an attempt was doing ends with it. CANCELLED.
inline absl::Status NotWanted() { return absl::CancelledError("the attempt is not wanted any more"); }

}  // namespace luthier
