#include "worker/agent/memory_kills.h"

#include <fstream>
#include <utility>

#include "absl/strings/str_split.h"

namespace luthier {
namespace {

// 0 for a file that is absent or has no such line.
int64_t Count(const std::string& path) {
  std::ifstream file(path);
  std::string name;
  int64_t value = 0;
  while (file >> name >> value) {
    if (name == "oom_kill") return value;
  }
  return 0;
}

}  // namespace

MemoryKills::MemoryKills(std::vector<std::string> counters) : counters_(std::move(counters)) {
  for (const std::string& path : counters_) before_.push_back(Count(path));
}

bool MemoryKills::Happened() const {
  for (size_t i = 0; i < counters_.size(); ++i) {
    if (Count(counters_[i]) > before_[i]) return true;
  }
  return false;
}

std::vector<std::string> MemoryKills::Counters() {
  std::vector<std::string> counters = {"/proc/vmstat"};
  std::ifstream groups("/proc/self/cgroup");  // hierarchy:controllers:path
  for (std::string line; std::getline(groups, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() < 3) continue;
    if (parts[1].empty()) counters.push_back("/sys/fs/cgroup" + parts[2] + "/memory.events");
    if (parts[1] == "memory") counters.push_back("/sys/fs/cgroup/memory" + parts[2] + "/memory.oom_control");
  }
  return counters;
}

}  // namespace luthier
