// Where operations run. On a CPU they are loops of their own over the numbers (kernels.h); on any other device they are
// composed of LibTorch's operations, with the same backward passes.
#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Whether the loops work on `x`.
bool HasKernels(const Tensor& x);

// While one exists, CPUs do without the loops too: what runs on a GPU is compared in this way where there is none.
class WithoutKernels {
 public:
  WithoutKernels();
  ~WithoutKernels();
  WithoutKernels(const WithoutKernels&) = delete;
  WithoutKernels& operator=(const WithoutKernels&) = delete;
};

}  // namespace luthier::ops
