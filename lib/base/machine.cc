#include "lib/base/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace luthier {
namespace {

constexpr char kGroups[] = "/sys/fs/cgroup";

// Folders of the control groups of `controller` that this process is in, from the innermost to the root: version 2 has
// one tree, version 1 one for each controller.
std::vector<std::string> ControlGroups(const std::string& controller) {
  std::vector<std::string> folders;
  std::ifstream groups("/proc/self/cgroup");  // hierarchy:controllers:path
  for (std::string line; std::getline(groups, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() < 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    const bool version1 = std::find(controllers.begin(), controllers.end(), controller) != controllers.end();
    if (!version1 && !parts[1].empty()) continue;
    const std::string root = version1 ? absl::StrCat(kGroups, "/", controller) : kGroups;
    for (std::string path = parts[2] == "/" ? "" : parts[2];; path = path.substr(0, path.rfind('/'))) {
      folders.push_back(root + path);
      if (path.empty()) break;
    }
  }
  return folders;
}

// The first numbers of a file; "max" and what cannot be read are infinite.
std::vector<double> Numbers(const std::string& path, size_t count) {
  std::ifstream file(path);
  std::vector<double> numbers;
  for (std::string word; numbers.size() < count && file >> word;) {
    double number = 0;
    numbers.push_back(absl::SimpleAtod(word, &number) ? number : std::numeric_limits<double>::infinity());
  }
  numbers.resize(count, std::numeric_limits<double>::infinity());
  return numbers;
}

}  // namespace

int64_t UsableMemoryBytes() {
  double bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  for (const std::string& group : ControlGroups("memory")) {
    bytes = std::min(bytes, Numbers(group + "/memory.max", 1)[0]);
    bytes = std::min(bytes, Numbers(group + "/memory.limit_in_bytes", 1)[0]);
  }
  return static_cast<int64_t>(bytes);
}

int UsableCpus() {
  double cpus = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cpus = CPU_COUNT(&allowed);
  for (const std::string& group : ControlGroups("cpu")) {
    const std::vector<double> limit = Numbers(group + "/cpu.max", 2);  // quota and period
    if (std::isfinite(limit[0]) && limit[1] > 0) cpus = std::min(cpus, limit[0] / limit[1]);
    const double quota = Numbers(group + "/cpu.cfs_quota_us", 1)[0],
                 period = Numbers(group + "/cpu.cfs_period_us", 1)[0];
    if (quota > 0 && std::isfinite(quota) && period > 0) cpus = std::min(cpus, quota / period);
  }
  return std::max(1, static_cast<int>(std::ceil(cpus)));
}

int64_t PeakMemoryBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace luthier
