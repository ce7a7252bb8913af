// What this process may use of its machine, and has used.
#pragma once

#include <cstdint>

namespace luthier {

// Memory that it and its children may use: that of the machine, or a limit of a control group above them.
int64_t UsableMemoryBytes();
// CPUs that they may use, at least 1: those of the affinity mask, or the quota of a control group, rounded up.
int UsableCpus();
// Most memory that this process has had at a time so far.
int64_t PeakMemoryBytes();

}  // namespace luthier
