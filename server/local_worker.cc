#include "server/local_worker.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace luthier {
namespace {

// An agent that cannot start must not keep a core busy.
constexpr absl::Duration kPause = absl::Seconds(1);
// An agent that is asked to end gives its trainers 20 s. With the 5 s that calls get after it, the server needs less
// than the 30 s after which services are killed.
constexpr absl::Duration kEndPatience = absl::Seconds(23);
constexpr int kNotStarted = 127;  // of a child that is no agent, as shells say it

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// The server's own, with the agent's token: not an argument, which every user of the machine could read.
std::vector<std::string> EnvironmentWith(const std::string& token) {
  std::vector<std::string> variables = {"LUTHIER_TOKEN=" + token};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "LUTHIER_TOKEN") && !absl::StartsWith(*variable, "LUTHIER_TLS_"))
      variables.emplace_back(*variable);
  }
  return variables;
}

pid_t Spawn(const std::vector<std::string>& arguments, const std::vector<std::string>& environment) {
  const std::vector<char*> argv = Pointers(arguments), envp = Pointers(environment);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) return child;
  // PDEATHSIG follows the thread that forked: it is the supervisor's, which lives as long as the server.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(argv[0], argv.data(), envp.data());
  _exit(kNotStarted);
}

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) return absl::StrCat("was ended by signal ", WTERMSIG(status));
  if (WEXITSTATUS(status) == kNotStarted) return "cannot be started";
  return absl::StrCat("ended with code ", WEXITSTATUS(status));
}

}  // namespace

LocalWorker::LocalWorker(const std::string& token, std::vector<std::string> arguments)
    : arguments_(std::move(arguments)), environment_(EnvironmentWith(token)), thread_([this] { Supervise(); }) {}

LocalWorker::~LocalWorker() {
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    const auto gone = [this] { return pid_ <= 0; };
    if (!gone()) kill(pid_, SIGTERM);
    if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(kEndPatience), gone)) {
      std::fprintf(stderr, "luthierd: the local agent has not ended in %d s and is killed\n",
                   static_cast<int>(absl::ToInt64Seconds(kEndPatience)));
      kill(pid_, SIGKILL);
    }
  }
  thread_.join();
}

void LocalWorker::Supervise() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    pid_ = Spawn(arguments_, environment_);
    if (pid_ > 0) {
      lock.unlock();
      siginfo_t ended;
      waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOWAIT);
      lock.lock();
      int status = 0;
      waitpid(pid_, &status, 0);  // its number may be another's from here on
      pid_ = 0;
      changed_.notify_all();
      if (!stopping_) {
        std::fprintf(stderr, "luthierd: the local agent %s %s; starting it again\n", arguments_[0].c_str(),
                     HowItEnded(status).c_str());
      }
    }
    changed_.wait_for(lock, absl::ToChronoMilliseconds(kPause), [this] { return stopping_; });
  }
}

}  // namespace luthier
