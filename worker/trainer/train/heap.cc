#include "worker/trainer/train/heap.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "worker/trainer/ops/parallel.h"

namespace luthier {
namespace {

constexpr int kPopulateForWriting = 23;  // MADV_POPULATE_WRITE, which headers before 5.14 do not have
// Of one call: the kernel holds the lock of the address space meanwhile, which the other threads wait for.
constexpr int64_t kPiece = int64_t{8} << 20;

}  // namespace

void FaultInHeap(int64_t bytes) {
  void* const block = std::malloc(static_cast<size_t>(bytes));
  if (block == nullptr) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(block);
  const uintptr_t first = (start + page - 1) / page * page;
  const auto whole =
      static_cast<int64_t>((start + static_cast<uintptr_t>(bytes)) / page * page) - static_cast<int64_t>(first);
  ops::ParallelItems((whole + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    madvise(reinterpret_cast<std::byte*>(first) + begin, static_cast<size_t>(std::min(kPiece, whole - begin)),
            kPopulateForWriting);
  });
  std::free(block);
}

}  // namespace luthier
