#include "server/local_worker.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/time/clock.h"

namespace luthier {
namespace {

// An agent that cannot start must not keep a core busy.
constexpr absl::Duration kPause = absl::Seconds(1);

pid_t Spawn(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) return child;
  // PDEATHSIG follows the thread that forked: it is the supervisor's, which lives as long as the server.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execv(argv[0], argv.data());
  _exit(127);
}

}  // namespace

LocalWorker::LocalWorker(std::vector<std::string> arguments)
    : arguments_(std::move(arguments)), thread_([this] { Supervise(); }) {}

LocalWorker::~LocalWorker() {
  stopping_ = true;
  if (const pid_t pid = pid_; pid > 0) kill(pid, SIGTERM);
  thread_.join();
}

void LocalWorker::Supervise() {
  while (!stopping_) {
    const pid_t pid = Spawn(arguments_);
    pid_ = pid;
    if (pid > 0) {
      if (stopping_) kill(pid, SIGTERM);
      int status = 0;
      waitpid(pid, &status, 0);
      pid_ = 0;
      if (!stopping_) {
        std::fprintf(stderr, "luthierd: the local agent %s ended (%d); starting it again\n", arguments_[0].c_str(), status);
      }
    }
    for (absl::Duration left = kPause; !stopping_ && left > absl::ZeroDuration(); left -= absl::Milliseconds(100)) {
      absl::SleepFor(absl::Milliseconds(100));
    }
  }
}

}  // namespace luthier
