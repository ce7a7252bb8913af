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
  auto* const block = static_cast<std::byte*>(
      std::aligned_alloc(static_cast<size_t>(sysconf(_SC_PAGESIZE)), static_cast<size_t>(bytes)));
  if (block == nullptr) return;
  ops::ParallelItems((bytes + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    madvise(block + begin, static_cast<size_t>(std::min(kPiece, bytes - begin)), kPopulateForWriting);
  });
  std::free(block);
}

}  // namespace luthier
