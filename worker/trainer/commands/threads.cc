#include "worker/trainer/commands/threads.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "lib/base/machine.h"
#include "worker/trainer/torch.h"

namespace luthier {

absl::Status UseThreads(const ResourceSpec& resources, int ranks) {
  // More threads than CPUs only wait for each other; that so few are let through everywhere keeps specs portable.
  constexpr int64_t kAlways = 4;
  const int64_t most = std::max<int64_t>(kAlways, UsableCpus());
  if (resources.threads.value_or(1) > most) {
    return absl::InvalidArgumentError(absl::StrCat("resources.threads: ", *resources.threads,
                                                   " is more than this machine has CPUs; give at most ", most,
                                                   ", or auto"));
  }
  const auto threads = static_cast<int>(resources.threads.value_or(at::get_num_threads()));
  at::set_num_threads(std::max(1, threads / ranks));
  return absl::OkStatus();
}

}  // namespace luthier
