// Runs a real program and keeps both of its outputs apart.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace luthier {

struct CapturedResult {
  int exit_code = -1;  // -1: ended by a signal
  std::string out;
  std::string err;
};

struct CaptureOptions {
  std::string input;                                             // standard input
  std::vector<std::pair<std::string, std::string>> environment;  // added to the test's own
  std::string folder;                                            // working folder; empty: the test's
  // Sees everything written so far after each read, and the process id, to which it may send signals.
  std::function<void(const CapturedResult&, pid_t)> on_output;
};

// `arguments`: the path of the program first. Returns once it has ended: 126 without its working folder, 127 if it
// cannot be run.
inline CapturedResult RunCaptured(const std::vector<std::string>& arguments, const CaptureOptions& options = {}) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const auto& [name, value] : options.environment) setenv(name.c_str(), value.c_str(), 1);
    if (!options.folder.empty() && chdir(options.folder.c_str()) != 0) _exit(126);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  for (const int end : {in[0], out[1], err[1]}) close(end);
  signal(SIGPIPE, SIG_IGN);  // a program that does not read its input is no reason to die
  if (write(in[1], options.input.data(), options.input.size()) < 0) {
  }
  close(in[1]);
  CapturedResult result;
  pollfd ends[] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  for (int open = 2; open > 0 && poll(ends, 2, -1) > 0;) {
    for (pollfd& end : ends) {
      if (end.revents == 0) continue;
      char buffer[4096];
      const ssize_t count = read(end.fd, buffer, sizeof buffer);
      if (count > 0) {
        (end.fd == out[0] ? result.out : result.err).append(buffer, static_cast<size_t>(count));
        if (options.on_output) options.on_output(result, child);
      } else {
        close(end.fd);
        end.fd = -1;
        --open;
      }
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

}  // namespace luthier
