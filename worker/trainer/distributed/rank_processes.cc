#include "worker/trainer/distributed/rank_processes.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "lib/base/descriptor.h"
#include "lib/base/trainer_words.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

struct RankProcess {
  bool leads = false;
  pid_t pid = -1;
  Descriptor output;      // of the rank, to read from
  std::string pending;    // of a line that is not complete yet
  std::string last_word;  // the event that says how it ended, if it has said so
  int status = 0;         // of waitpid, once it has ended
  bool killed = false;    // by this process
};

std::atomic<pid_t> leader = -1;

void TellLeader(int) {
  if (leader > 0) kill(leader, SIGTERM);
}

std::string EventOf(const std::string& line) {
  const nlohmann::json event = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  return event.is_object() ? event.value("event", "") : "";
}

[[noreturn]] void Become(const std::string& program, const std::vector<std::string>& arguments, int output, bool leads,
                         pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died in between, and no signal comes any more
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  dup2(output, STDOUT_FILENO);
  if (!leads) {
    // Commands are for the leader. A Ctrl-C reaches all processes of a terminal, and only the leader decides what it
    // means.
    if (const int nothing = open("/dev/null", O_RDONLY); nothing >= 0) dup2(nothing, STDIN_FILENO);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
  }
  execv(program.c_str(), argv.data());
  std::cerr << "error: cannot run " << program << ": " << std::strerror(errno) << std::endl;
  _exit(127);
}

bool Start(const std::string& program, const std::vector<std::string>& arguments, RankProcess& rank) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  const pid_t parent = getpid();
  rank.pid = fork();
  if (rank.pid == 0) Become(program, arguments, ends[1], rank.leads, parent);
  close(ends[1]);
  rank.output = Descriptor(ends[0]);
  return rank.pid > 0;
}

// Hands on what a rank has written. What is no event is log text (Gloo writes some).
void HandleLine(const std::string& line, RankProcess& rank, std::FILE* output) {
  const std::string event = EventOf(line);
  if (event.empty()) {
    std::cerr << line << std::endl;
    return;
  }
  if (IsLastWord(event)) rank.last_word = line;
  if (!rank.leads) return;
  std::fwrite((line + "\n").data(), 1, line.size() + 1, output);
  std::fflush(output);
}

// False at the end of its output.
bool Read(RankProcess& rank, std::FILE* output) {
  char buffer[65536];
  const ssize_t count = read(rank.output.get(), buffer, sizeof buffer);
  if (count < 0 && errno == EINTR) return true;
  if (count <= 0) {
    rank.output.Close();
    return false;
  }
  rank.pending.append(buffer, static_cast<size_t>(count));
  for (size_t end; (end = rank.pending.find('\n')) != std::string::npos; rank.pending.erase(0, end + 1)) {
    HandleLine(rank.pending.substr(0, end), rank, output);
  }
  return true;
}

void Kill(RankProcess& rank) {
  if (rank.pid <= 0 || waitpid(rank.pid, &rank.status, WNOHANG) == rank.pid) {
    rank.pid = -1;  // it had ended by itself
    return;
  }
  rank.killed = true;
  kill(rank.pid, SIGKILL);
}

// Until rank 0 has ended, or another one badly; without rank 0 until all have.
void Listen(std::vector<RankProcess>& ranks, std::FILE* output) {
  for (size_t running = ranks.size(); running > 0;) {
    std::vector<pollfd> waits;
    for (const RankProcess& rank : ranks) waits.push_back({rank.output.get(), POLLIN, 0});  // a negative one is ignored
    if (poll(waits.data(), waits.size(), -1) < 0) continue;
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (waits[i].revents == 0 || Read(ranks[i], output)) continue;
      waitpid(ranks[i].pid, &ranks[i].status, 0);
      ranks[i].pid = -1;
      --running;
      if (ranks[i].leads || ranks[i].status != 0) return;
    }
  }
}

// Ends what is left, and reads what it had to say.
void End(std::vector<RankProcess>& ranks, std::FILE* output) {
  for (RankProcess& rank : ranks) Kill(rank);
  for (RankProcess& rank : ranks) {
    while (rank.output.is_open() && Read(rank, output)) {
    }
    if (rank.pid > 0) waitpid(rank.pid, &rank.status, 0);
  }
}

// The first rank that ended badly by itself, and not since another one was gone.
const RankProcess* Culprit(const std::vector<RankProcess>& ranks) {
  for (const RankProcess& rank : ranks) {
    const bool lost_another = WIFEXITED(rank.status) && WEXITSTATUS(rank.status) == kLostRankExitCode;
    if (!rank.killed && rank.status != 0 && !lost_another) return &rank;
  }
  return nullptr;
}

// Without rank 0: whether it told the others that the run is over.
bool AllEndedWell(const std::vector<RankProcess>& ranks) {
  return std::all_of(ranks.begin(), ranks.end(), [](const RankProcess& rank) { return rank.status == 0; });
}

int Conclude(const LocalRanks& local, const std::vector<RankProcess>& ranks, std::FILE* output) {
  if (local.lead() && !ranks[0].last_word.empty()) return EventOf(ranks[0].last_word) == "failed" ? 1 : 0;
  const RankProcess* culprit = Culprit(ranks);
  if (culprit == nullptr) {
    if (!local.lead() && AllEndedWell(ranks)) return 0;
    std::cerr << "error: the ranks lost " << (local.are_all() ? "each other" : "those of another node") << std::endl;
    return local.are_all() ? 1 : kLostRankExitCode;
  }
  if (!culprit->last_word.empty()) {  // rank 0 had no time to say the same
    std::fprintf(output, "%s\n", culprit->last_word.c_str());
    std::fflush(output);
    return 1;
  }
  std::cerr << "error: rank " << local.first + (culprit - ranks.data()) << " of " << local.of;
  if (!WIFSIGNALED(culprit->status)) {
    std::cerr << " ended with code " << WEXITSTATUS(culprit->status) << "; all ranks were ended" << std::endl;
    return 1;
  }
  const int number = WTERMSIG(culprit->status);
  std::cerr << " was ended by signal " << number << " (" << strsignal(number) << "); all ranks were ended" << std::endl;
  signal(number, SIG_DFL);
  raise(number);
  return 1;
}

}  // namespace

int RunRanks(const LocalRanks& local, const std::function<std::vector<std::string>(int rank)>& arguments_of,
             std::FILE* output) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  std::vector<RankProcess> processes(static_cast<size_t>(local.count));
  processes[0].leads = local.lead();
  bool started = true;
  for (int i = 0; i < local.count && started; ++i) {
    started = Start(program, arguments_of(local.first + i), processes[static_cast<size_t>(i)]);
  }
  if (!started) {
    std::cerr << "error: cannot start " << local.count << " ranks: " << std::strerror(errno) << std::endl;
    for (RankProcess& process : processes) Kill(process);
    return 1;
  }
  if (local.lead()) leader = processes[0].pid;
  struct sigaction action = {};
  action.sa_handler = local.lead() ? TellLeader : SIG_IGN;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  Listen(processes, output);
  End(processes, output);
  return Conclude(local, processes, output);
}

}  // namespace luthier
