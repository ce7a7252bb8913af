#include "worker/trainer/ops/place.h"

#include <atomic>

namespace luthier::ops {
namespace {

std::atomic<int> without_kernels = 0;

}  // namespace

bool HasKernels(const Tensor& x) { return x.is_cpu() && without_kernels == 0; }

WithoutKernels::WithoutKernels() { ++without_kernels; }
WithoutKernels::~WithoutKernels() { --without_kernels; }

}  // namespace luthier::ops
