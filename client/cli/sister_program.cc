#include "client/cli/sister_program.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

std::string Find(const std::string& name) {
  const char* given = name == "luthier-trainer" ? std::getenv("LUTHIER_TRAINER") : nullptr;
  if (given != nullptr && *given != '\0') return given;
  std::error_code error;
  const fs::path sister = fs::read_symlink("/proc/self/exe", error).parent_path() / name;
  return fs::exists(sister, error) ? sister.string() : name;
}

}  // namespace

absl::Status RunSisterProgram(std::vector<std::string> arguments) {
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
  const int error = posix_spawnp(&pid, argv[0], nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return WithExitCode(absl::NotFoundError(absl::StrCat(
                            arguments[0], " cannot be started; it lies beside luthier in build/release/bin",
                            name == "luthier-trainer" ? ", or give its path in LUTHIER_TRAINER" : "")),
                        ExitCode::kFailure);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  if (WIFSIGNALED(status)) return absl::InternalError(absl::StrCat(name, " was ended by signal ", WTERMSIG(status)));
  return absl::InternalError(absl::StrCat(name, " failed; it says why above"));
}

}  // namespace luthier
