#include "client/cli/sister_program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

std::string Find(const std::string& name) {
  const std::string given = name == "luthier-trainer" ? Environment("LUTHIER_TRAINER") : "";
  if (!given.empty()) return given;
  std::error_code error;
  const fs::path sister = fs::read_symlink("/proc/self/exe", error).parent_path() / name;
  return fs::exists(sister, error) ? sister.string() : name;
}

// Starts it with `actions` on its descriptors.
absl::StatusOr<pid_t> Start(std::vector<std::string> arguments, const posix_spawn_file_actions_t* actions) {
  const std::string name = arguments[0];
  arguments[0] = Find(name);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // Ctrl-C has to reach it: our own mask blocks the signal.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = 0;
  const int error = posix_spawnp(&pid, argv[0], actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (error == 0) return pid;
  return WithExitCode(
      absl::NotFoundError(absl::StrCat(arguments[0], " cannot be started; it lies beside luthier in build/release/bin",
                                       name == "luthier-trainer" ? ", or give its path in LUTHIER_TRAINER" : "")),
      ExitCode::kFailure);
}

absl::Status Await(pid_t pid, const std::string& name) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  constexpr int kWrongUsage = 2;  // docs/trainer-protocol.md
  if (WIFEXITED(status) && WEXITSTATUS(status) == kWrongUsage)
    return absl::InvalidArgumentError(absl::StrCat(name, " refused what it was given; it says why above"));
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) return absl::CancelledError(name + " was interrupted");
  if (WIFSIGNALED(status)) return absl::InternalError(absl::StrCat(name, " was ended by signal ", WTERMSIG(status)));
  return absl::InternalError(absl::StrCat(name, " failed; it says why above"));
}

}  // namespace

absl::Status RunSisterProgram(std::vector<std::string> arguments) {
  const std::string name = arguments[0];
  LUTHIER_ASSIGN_OR_RETURN(const pid_t pid, Start(std::move(arguments), nullptr));
  return Await(pid, name);
}

absl::StatusOr<std::string> OutputOfSisterProgram(std::vector<std::string> arguments) {
  const std::string name = arguments[0];
  int ends[2] = {};
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "a pipe to another program cannot be made");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  const absl::StatusOr<pid_t> pid = Start(std::move(arguments), &actions);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);  // else the output would never end
  std::string output;
  char buffer[4096];
  for (ssize_t size; pid.ok() && (size = read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (size > 0) output.append(buffer, static_cast<size_t>(size));
    if (size < 0 && errno != EINTR) break;
  }
  close(ends[0]);
  LUTHIER_RETURN_IF_ERROR(pid.status());
  LUTHIER_RETURN_IF_ERROR(Await(*pid, name));
  return output;
}

}  // namespace luthier
