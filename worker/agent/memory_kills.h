// Tells an out-of-memory kill from any other death by signal 9: the kernel counts its kills, for the machine and for
// the control group that the agent and its trainers live in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace luthier {

class MemoryKills {
 public:
  // Remembers how many there were until now. `counters`: files with a line `oom_kill N`.
  explicit MemoryKills(std::vector<std::string> counters = Counters());

  // Whether the kernel has killed something since.
  bool Happened() const;

  // /proc/vmstat, and memory.events (version 2) or memory.oom_control (version 1) of the own control group.
  static std::vector<std::string> Counters();

 private:
  std::vector<std::string> counters_;
  std::vector<int64_t> before_;
};

}  // namespace luthier
