// One trainer: a process group of its own that is started, listened to, asked to stop, and ended without leaving
// anything.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/base/descriptor.h"
#include "worker/agent/lines.h"

namespace luthier {

// Processes carry this variable, so that every one of an attempt can be found, also one that left the group.
inline constexpr char kMarkVariable[] = "LUTHIER_ATTEMPT";

// Kills every process whose environment marks it with a value that starts with `mark`, until none is left.
// Errors: DEADLINE_EXCEEDED naming a process that does not die (it hangs in the kernel).
absl::Status EndMarkedProcesses(const std::string& mark, absl::Duration patience);

// One thread.
class TrainerProcess {
 public:
  struct Options {
    std::vector<std::string> arguments;    // program first
    std::vector<std::string> environment;  // "NAME=value", added to the agent's own
    std::string mark;                      // value of kMarkVariable, unique to the attempt
  };
  struct Output {
    std::function<void(std::string)> on_event_line;  // standard output, at most 1 MiB
    std::function<void(std::string)> on_log_line;    // standard error, and what is no event line
  };
  // How it ended.
  struct Exit {
    int code = -1;  // -1: by a signal
    int signal = 0;
    bool killed = false;  // by Kill()
  };

  // The thread that starts it must outlive it: the kernel kills the trainer when that thread ends (PR_SET_PDEATHSIG).
  // Errors: UNAVAILABLE if the program cannot be run.
  static absl::StatusOr<std::unique_ptr<TrainerProcess>> Start(const Options& options, Output output);
  ~TrainerProcess();  // kills what is left

  // Hands out lines as they come, for at most `patience`. False once the process is dead and everything is handed out.
  bool Listen(absl::Duration patience);
  // Writes the command `stop`; the trainer answers with a checkpoint and `stopped`.
  void AskToStop();
  // Writes the command `checkpoint`; the trainer answers with the event.
  void AskForCheckpoint();
  // SIGKILL to the whole group.
  void Kill();
  // After Listen() returned false: ends whatever else the attempt started and reaps.
  // Errors: DEADLINE_EXCEEDED if something cannot be killed.
  absl::StatusOr<Exit> End();

  pid_t pid() const { return pid_; }

 private:
  TrainerProcess(pid_t pid, Descriptor input, Descriptor output, Descriptor error, std::string mark, Output on);
  void Command(absl::string_view name);
  void Drain(Descriptor& from, LineSplitter& splitter, const LineSplitter::OnLine& on_line);
  bool Dead();
  // Whether more may come of what it writes.
  bool IsHeard() const { return output_.is_open() || error_.is_open(); }

  const pid_t pid_;  // and id of its group
  const Descriptor input_;
  Descriptor output_, error_;  // closed at their ends
  const std::string mark_;
  const LineSplitter::OnLine on_event_line_, on_log_line_;
  LineSplitter event_lines_, log_lines_;
  bool dead_ = false, reaped_ = false, killed_ = false;
};

}  // namespace luthier
