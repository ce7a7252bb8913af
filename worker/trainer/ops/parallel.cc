#include "worker/trainer/ops/parallel.h"

#include <ATen/Parallel.h>

#include <atomic>

namespace luthier::ops {

int64_t ThreadCount() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void Parallel(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  at::parallel_for(0, n, grain, [body](int64_t begin, int64_t end) { body(begin, end); });
}

void ParallelItems(int64_t n, absl::FunctionRef<void(int64_t item)> body) {
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, at::get_num_threads(), 1, [&next, n, body](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item = next++; item < n; item = next++) body(item);
    }
  });
}

}  // namespace luthier::ops
