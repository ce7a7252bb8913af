// Ctrl-C: ends the command, unless the command has something to say first.
#pragma once

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace luthier {

// Make one at the start of main, before any other thread: it blocks SIGINT and SIGTERM, and a thread of its own waits
// for them until the process ends.
class Interrupts {
 public:
  Interrupts();

  // Runs `handler` at the first signal instead of ending the process; the next one ends it. Empty: back to ending at
  // once.
  void Handle(std::function<void()> handler) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Wait();

  absl::Mutex mutex_;
  std::function<void()> handler_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace luthier
