#include "worker/agent/trainer_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"

namespace luthier {
namespace {

// An evaluation event with examples takes some kilobytes; what is longer is no event.
constexpr size_t kMaxEventBytes = 1 << 20;
constexpr size_t kMaxLogBytes = 4096;
// What a killed group still has in its pipes is read for at most this long: a process outside may hold them open.
constexpr absl::Duration kDrain = absl::Milliseconds(500);
constexpr absl::Duration kKillPatience = absl::Seconds(10);
constexpr absl::Duration kScanPause = absl::Milliseconds(20);
constexpr int kExecFailed = 127;

// Both ends close on exec: a trainer inherits three descriptors and nothing else.
struct Pipe {
  Descriptor read, write;
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read = Descriptor(ends[0]);
    write = Descriptor(ends[1]);
    return true;
  }
};

bool IsMarked(const std::string& pid, const std::string& mark) {
  std::ifstream stream(absl::StrCat("/proc/", pid, "/environ"), std::ios::binary);
  const std::string wanted = absl::StrCat(kMarkVariable, "=", mark);
  for (std::string variable; std::getline(stream, variable, '\0');) {
    if (absl::StartsWith(variable, wanted)) return true;
  }
  return false;
}

// A zombie has no environment any more and is not found.
std::vector<pid_t> MarkedProcesses(const std::string& mark) {
  std::vector<pid_t> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid;
    if (absl::SimpleAtoi(name, &pid) && pid != getpid() && IsMarked(name, mark)) found.push_back(pid);
  }
  return found;
}

// Everything that the child needs, made before fork: between fork and exec it may not allocate.
struct Image {
  std::vector<std::string> arguments, environment;
  std::vector<char*> argv, envp;
};

Image MakeImage(const TrainerProcess::Options& options) {
  Image image;
  image.arguments = options.arguments;
  image.environment = options.environment;
  image.environment.push_back(absl::StrCat(kMarkVariable, "=", options.mark));
  // The first of two equal names counts.
  for (char** variable = environ; *variable != nullptr; ++variable) image.environment.emplace_back(*variable);
  for (std::string& argument : image.arguments) image.argv.push_back(argument.data());
  for (std::string& variable : image.environment) image.envp.push_back(variable.data());
  image.argv.push_back(nullptr);
  image.envp.push_back(nullptr);
  return image;
}

[[noreturn]] void BecomeTrainer(const Image& image, pid_t agent, int input, int output, int error, int failure) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != agent) _exit(kExecFailed);  // it died before the line above
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(error, STDERR_FILENO);
  // Whatever a library opened without the flag. An old kernel without this call is no reason to fail.
  close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  // If memory runs out the kernel should end the trainer, and not the agent or the server beside it.
  const Descriptor score(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  (void)!write(score.get(), "500", 3);
  execve(image.argv[0], image.argv.data(), image.envp.data());
  const int reason = errno;
  (void)!write(failure, &reason, sizeof reason);
  _exit(kExecFailed);
}

}  // namespace

absl::Status EndMarkedProcesses(const std::string& mark, absl::Duration patience) {
  const absl::Time deadline = SteadyNow() + patience;
  while (true) {
    const std::vector<pid_t> left = MarkedProcesses(mark);
    if (left.empty()) return absl::OkStatus();
    for (const pid_t pid : left) kill(pid, SIGKILL);
    if (SteadyNow() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("process ", left[0], " of ", mark, " does not die"));
    }
    absl::SleepFor(kScanPause);
  }
}

absl::StatusOr<std::unique_ptr<TrainerProcess>> TrainerProcess::Start(const Options& options, Output output) {
  const Image image = MakeImage(options);
  Pipe input, events, log, failure;
  if (!input.Open() || !events.Open() || !log.Open() || !failure.Open()) {
    return absl::UnavailableError(absl::StrCat("cannot open a pipe: ", std::strerror(errno)));
  }
  const pid_t agent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::UnavailableError(absl::StrCat("cannot start a process: ", std::strerror(errno)));
  if (pid == 0) BecomeTrainer(image, agent, input.read.get(), events.write.get(), log.write.get(), failure.write.get());
  setpgid(pid, pid);  // also here, so that the group exists before anybody kills it
  failure.write.Close();
  int reason = 0;
  if (read(failure.read.get(), &reason, sizeof reason) == sizeof reason) {
    waitpid(pid, nullptr, 0);
    return absl::UnavailableError(absl::StrCat("cannot run the trainer ", options.arguments[0], ": ",
                                               std::strerror(reason), "; install it there or give --trainer"));
  }
  for (const Descriptor* end : {&input.write, &events.read, &log.read}) fcntl(end->get(), F_SETFL, O_NONBLOCK);
  return std::unique_ptr<TrainerProcess>(new TrainerProcess(pid, std::move(input.write), std::move(events.read),
                                                            std::move(log.read), options.mark, std::move(output)));
}

TrainerProcess::TrainerProcess(pid_t pid, Descriptor input, Descriptor output, Descriptor error, std::string mark,
                               Output on)
    : pid_(pid),
      input_(std::move(input)),
      output_(std::move(output)),
      error_(std::move(error)),
      mark_(std::move(mark)),
      on_event_line_([on](std::string line, bool cut) {
        if (cut) {
          on.on_log_line(
              absl::StrCat("(a line of more than ", kMaxEventBytes, " bytes on standard output was dropped)"));
        } else {
          on.on_event_line(std::move(line));
        }
      }),
      on_log_line_([on](std::string line, bool) { on.on_log_line(std::move(line)); }),
      event_lines_(kMaxEventBytes),
      log_lines_(kMaxLogBytes) {}

TrainerProcess::~TrainerProcess() {
  if (reaped_) return;
  Kill();
  waitpid(pid_, nullptr, 0);
  (void)EndMarkedProcesses(mark_, kKillPatience);
}

bool TrainerProcess::Dead() {
  siginfo_t info = {};
  // WNOWAIT leaves a zombie, which keeps the number of the group from being given to another one.
  if (!dead_ && waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0)
    dead_ = info.si_pid == pid_;
  return dead_;
}

bool TrainerProcess::Listen(absl::Duration patience) {
  const bool dead = Dead();  // before reading: what it wrote is then in the pipes
  if (dead && IsHeard()) {
    Kill();  // the rest of the group; else a grandchild could keep the pipes open for ever
    patience = kDrain;
  }
  if (!IsHeard()) patience = std::min(patience, kScanPause);  // nothing to hear but its death
  const absl::Time deadline = SteadyNow() + patience;
  do {
    pollfd waits[2] = {{output_.get(), POLLIN, 0}, {error_.get(), POLLIN, 0}};  // a negative one is ignored
    const auto left = absl::ToInt64Milliseconds(std::max(deadline - SteadyNow(), absl::ZeroDuration()));
    if (poll(waits, 2, static_cast<int>(left)) <= 0) break;
    if (waits[0].revents != 0) Drain(output_, event_lines_, on_event_line_);
    if (waits[1].revents != 0) Drain(error_, log_lines_, on_log_line_);
  } while (dead && IsHeard() && SteadyNow() < deadline);
  return !dead;
}

void TrainerProcess::Drain(Descriptor& from, LineSplitter& splitter, const LineSplitter::OnLine& on_line) {
  char buffer[65536];
  const ssize_t count = read(from.get(), buffer, sizeof buffer);
  if (count > 0) {
    splitter.Add({buffer, static_cast<size_t>(count)}, on_line);
  } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    splitter.Finish(on_line);
    from.Close();
  }
}

void TrainerProcess::AskToStop() { Command("stop"); }

void TrainerProcess::AskForCheckpoint() { Command("checkpoint"); }

void TrainerProcess::Command(absl::string_view name) {
  const std::string line = absl::StrCat("{\"command\": \"", name, "\"}\n");
  // A few bytes always fit, unless the trainer does not read; then the grace ends it.
  (void)!write(input_.get(), line.data(), line.size());
}

void TrainerProcess::Kill() {
  if (!dead_) killed_ = true;
  kill(-pid_, SIGKILL);
}

absl::StatusOr<TrainerProcess::Exit> TrainerProcess::End() {
  kill(-pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
  reaped_ = true;
  LUTHIER_RETURN_IF_ERROR(EndMarkedProcesses(mark_, kKillPatience));
  Exit exit;
  exit.killed = killed_;
  if (WIFEXITED(status)) exit.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) exit.signal = WTERMSIG(status);
  return exit;
}

}  // namespace luthier
