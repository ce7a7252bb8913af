// The device of this process. GPUs are used through LibTorch's CUDA library, which is loaded when there is a driver:
// the same program serves nodes with and without GPUs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/plan/resolve.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// GPUs that this process may use, as CUDA_VISIBLE_DEVICES says. 0 without a driver. Errors: FAILED_PRECONDITION if
// CUDA_VISIBLE_DEVICES names GPUs that cannot be used.
absl::StatusOr<int> CountGpus();

// The GPU of a rank, by its number among the ranks of this node, or the CPU where there is none. What comes after is
// about that GPU in this thread.
absl::StatusOr<at::Device> DeviceOfRank(int local_rank);

// Puts copies in the place of tensors that are elsewhere.
void MoveTo(const at::Device& device, NamedTensors& tensors);

// What the plan needs to know of it; of a device that others use too (LUTHIER_DEVICE_SHARES) the part that is ours.
DeviceFacts FactsOf(const at::Device& device);

// Most memory that the process has had of it so far: of the GPU what was reserved, on a CPU what was resident.
int64_t PeakMemoryBytes(const at::Device& device);

// Of a GPU: most that tensors took at a time, without what LibTorch's allocator keeps for later ones. 0 for a CPU.
int64_t PeakAllocatedBytes(const at::Device& device);

}  // namespace luthier
