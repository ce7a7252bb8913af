#include "client/cli/interrupts.h"

#include <signal.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "client/cli/exit_code.h"

namespace luthier {
namespace {

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

Interrupts::Interrupts() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([this] { Wait(); }).detach();
}

void Interrupts::Handle(std::function<void()> handler) {
  absl::MutexLock lock(&mutex_);
  handler_ = std::move(handler);
}

void Interrupts::Wait() {
  const sigset_t signals = Signals();
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    absl::MutexLock lock(&mutex_);
    // Nothing of a command needs undoing: what was sent is the server's, what was downloaded is resumed.
    if (!handler_) {
      // Behind a line of progress, so that the shell's prompt does not stand there.
      if (isatty(STDERR_FILENO) && write(STDERR_FILENO, "\n", 1) < 0) {
      }
      _exit(static_cast<int>(ExitCode::kCancelled));
    }
    std::exchange(handler_, {})();
  }
}

}  // namespace luthier
