// Work of an operation, divided among LibTorch's threads.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace luthier::ops {

// Threads among which work is divided: 1 inside of such work.
int64_t ThreadCount();

// Calls body(begin, end) on pieces of [0, n) of at least `grain`, in parallel. at::parallel_for is a template that runs
// in parallel only in files compiled with OpenMP; this is that file, so that no other needs the flag.
void Parallel(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body);

// Calls body(i) for every i in [0, n), each thread taking the next one when it is free: for items of unequal cost.
void ParallelItems(int64_t n, absl::FunctionRef<void(int64_t item)> body);

}  // namespace luthier::ops
