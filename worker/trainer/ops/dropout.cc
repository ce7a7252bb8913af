#include "worker/trainer/ops/dropout.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {

int64_t DrawMaskSeed() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

Tensor Dropped(const Tensor& x_TI, int64_t seed, double drop) {
  if (drop == 0) return x_TI;
  const Tensor in_TI = x_TI.contiguous(), out_TI = at::empty_like(in_TI);
  const int64_t size = in_TI.size(1);
  Parallel(in_TI.size(0), RowGrain(size), [&](int64_t begin, int64_t end) {
    InputRows in_row(in_TI);
    OutputRows out_row(out_TI);
    for (int64_t t = begin; t < end; ++t) {
      kernels::Dropout(in_row(t), size, static_cast<uint64_t>(seed), t, static_cast<float>(drop), out_row(t));
      out_row.Done(t);
    }
  });
  return out_TI;
}

}  // namespace luthier::ops
