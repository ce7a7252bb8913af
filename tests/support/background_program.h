// A real program that runs beside the test and dies with it.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

namespace luthier {

class BackgroundProgram {
 public:
  BackgroundProgram() = default;
  explicit BackgroundProgram(const std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(argv[0], argv.data());
    _exit(127);
  }
  BackgroundProgram(BackgroundProgram&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  BackgroundProgram& operator=(BackgroundProgram&& other) noexcept {
    std::swap(pid_, other.pid_);
    return *this;
  }
  ~BackgroundProgram() { End(SIGKILL); }

  // Sends the signal, waits for the end and returns the exit status as waitpid() gives it; -1 if it does not run.
  int End(int signal) {
    if (pid_ <= 0) return -1;
    kill(pid_, signal);
    int status = -1;
    waitpid(std::exchange(pid_, 0), &status, 0);
    return status;
  }
  bool Running() {
    if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = 0;
    return pid_ > 0;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

}  // namespace luthier
