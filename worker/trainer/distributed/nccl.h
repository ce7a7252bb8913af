// Sums over the GPUs of ranks, by NVIDIA's library. LibTorch's CUDA library has brought it along by then; c10d's own
// wrapper would have to be linked with that one, which a node without GPUs does not have.
#pragma once

#include "worker/trainer/torch.h"

namespace luthier {

// One thread, on the device of the tensors.
class Nccl {
 public:
  static constexpr int64_t kMeetingBytes = 128;
  // What ranks meet by: the leading rank makes one and gives it to the others. Bytes on the CPU.
  static Tensor NewMeeting();
  // Waits until all ranks are there, each with its own GPU as the current device. Throws std::runtime_error.
  Nccl(int rank, int size, const Tensor& meeting);
  ~Nccl();
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  // Adds up fp32 or fp64 tensors, in place. It is put behind what the GPU has to do; nothing waits for it here.
  void Sum(const Tensor& tensor) const;
  // Waits until all sums on that GPU are done. Throws std::runtime_error if another rank is gone.
  void Wait(const at::Device& gpu) const;

 private:
  void* communicator_ = nullptr;
};

}  // namespace luthier
