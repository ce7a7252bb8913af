#include "worker/agent/inventory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/machine.h"

namespace luthier {
namespace {

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "model name"))
      return std::string(absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
  }
  return "";
}

std::string Hostname() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

}  // namespace

Inventory::Inventory(std::unique_ptr<Nvml> nvml, int shares) : nvml_(std::move(nvml)) {
  fixed_.set_shares(shares);
  fixed_.set_cpus(UsableCpus());
  fixed_.set_memory_bytes(UsableMemoryBytes());
  fixed_.set_hostname(Hostname());
  fixed_.set_cpu_model(CpuModel());
}

v1::Inventory Inventory::Read() const {
  v1::Inventory inventory = fixed_;
  if (nvml_ == nullptr) return inventory;
  for (const Nvml::Gpu& gpu : nvml_->Gpus()) {
    v1::Gpu& message = *inventory.add_gpus();
    message.set_index(gpu.index);
    message.set_uuid(gpu.uuid);
    message.set_model(gpu.model);
    message.set_memory_bytes(gpu.memory_bytes);
    message.set_memory_used_bytes(gpu.memory_used_bytes);
  }
  return inventory;
}

}  // namespace luthier
