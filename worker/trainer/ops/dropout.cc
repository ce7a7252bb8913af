#include "worker/trainer/ops/dropout.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {

int64_t DrawMaskSeed() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

namespace {

// What is kept, as 1, of a device without kernels.
Tensor Kept(const Tensor& x, int64_t seed, double drop) {
  at::Generator generator =
      x.is_cpu()
          ? at::detail::createCPUGenerator()
          : at::globalContext().getAcceleratorHooksInterface(x.device().type()).getNewGenerator(x.device().index());
  generator.set_current_seed(static_cast<uint64_t>(seed));
  return at::empty_like(x).bernoulli_(1 - drop, generator);
}

}  // namespace

Tensor Dropped(const Tensor& x_TI, int64_t seed, double drop) {
  if (drop == 0) return x_TI;
  if (!HasKernels(x_TI)) return (x_TI * Kept(x_TI, seed, drop)).div_(1 - drop);
  const Tensor in_TI = x_TI.contiguous(), out_TI = at::empty_like(in_TI);
  const int64_t size = in_TI.size(1);
  Parallel(in_TI.size(0), RowGrain(size), [&](int64_t begin, int64_t end) {
    InputRows in_row(in_TI);
    OutputRows out_row(out_TI);
    for (int64_t t = begin; t < end; ++t) {
      kernels::Dropout(in_row(t), size, static_cast<uint64_t>(seed), t, drop, out_row(t));
      out_row.Done(t);
    }
  });
  return out_TI;
}

Tensor Dropout(const Tensor& x, double drop) {
  if (HasKernels(x)) return at::dropout(x, drop, /*train=*/true);
  return x * Dropped(at::ones_like(x), DrawMaskSeed(), drop);
}

}  // namespace luthier::ops
