#include "server/rows/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"

namespace luthier {
namespace {

constexpr size_t kMostOutput = size_t{1} << 20;

absl::Status CannotStart(absl::string_view what, int error) {
  return absl::UnavailableError(
      absl::StrCat("a process of the server cannot be started (", what, ": ", strerror(error), "); try again later"));
}

// A file in memory and not a pipe: the child may end before it has read everything, or never read.
absl::StatusOr<Descriptor> FileWith(const std::string& text) {
  Descriptor file(memfd_create("input", MFD_CLOEXEC));
  if (!file.is_open()) return CannotStart("memfd_create", errno);
  for (size_t written = 0; written < text.size();) {
    const ssize_t count = write(file.get(), text.data() + written, text.size() - written);
    if (count < 0 && errno != EINTR) return CannotStart("write", errno);
    written += static_cast<size_t>(std::max<ssize_t>(count, 0));
  }
  lseek(file.get(), 0, SEEK_SET);
  return file;
}

// Not fork: that copies the tables of all our memory, and until exec the child may not allocate.
absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& command, int input, int output) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) return CannotStart(command[0], error);
  return pid;
}

// Until the end of what it says, which is its own end. False if it has to be killed.
bool ReadOutput(int fd, absl::Time deadline, ChildEnd& end) {
  char buffer[4096];
  while (end.output.size() <= kMostOutput) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - SteadyNow());
    pollfd wanted = {fd, POLLIN, 0};
    const int ready = poll(&wanted, 1, static_cast<int>(std::clamp<int64_t>(left, 0, int64_t{1} << 30)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0 && SteadyNow() < deadline) continue;  // a wait of more than poll takes, or a rounded one
    if (ready <= 0) {
      end.out_of_time = true;
      return false;
    }
    const ssize_t count = read(fd, buffer, sizeof buffer);
    if (count == 0) return true;
    if (count < 0 && errno != EINTR) return false;
    end.output.append(buffer, static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }
  return false;
}

}  // namespace

absl::StatusOr<ChildEnd> RunChild(const std::vector<std::string>& command, const std::string& input,
                                  absl::Duration time, const std::stop_token& stop) {
  LUTHIER_ASSIGN_OR_RETURN(const Descriptor file, FileWith(input));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return CannotStart("pipe", errno);
  const Descriptor output(ends[0]);
  Descriptor output_of_child(ends[1]);
  LUTHIER_ASSIGN_OR_RETURN(const pid_t pid, Spawn(command, file.get(), output_of_child.get()));
  output_of_child.Close();  // else its end would never be seen
  ChildEnd end;
  {
    // Asked for before, it kills here; else on the thread that asks, and never once `pid` may be another process.
    const std::stop_callback kill_child(stop, [pid] { kill(pid, SIGKILL); });
    if (!ReadOutput(output.get(), SteadyNow() + time, end)) kill(pid, SIGKILL);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return CannotStart("waitpid", errno);
  }
  if (stop.stop_requested()) return absl::UnavailableError("the server is shutting down; try again");
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  return end;
}

}  // namespace luthier
