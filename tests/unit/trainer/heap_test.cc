#include "worker/trainer/train/heap.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>

namespace luthier {
namespace {

constexpr int64_t kBytes = int64_t{64} << 20, kPage = 4096;

// Of pages that were touched for the first time.
int64_t Faults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

// Of as many bytes from the heap, each page touched once.
int64_t FaultsOfTouching(int64_t bytes) {
  auto* const block = static_cast<volatile char*>(std::malloc(static_cast<size_t>(bytes)));
  const int64_t before = Faults();
  for (int64_t i = 0; i < bytes; i += kPage) block[i] = 1;
  const int64_t faults = Faults() - before;
  std::free(const_cast<char*>(block));
  return faults;
}

TEST(HeapTest, PagesThatWereAskedForAtOnceAreThereWhenTheyAreTouched) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer keeps freed memory away from the heap";
#endif
  KeepHeapPages();
  constexpr int kPopulateForReading = 22;  // MADV_POPULATE_READ, as old as the one for writing
  alignas(kPage) static char page[kPage];
  if (madvise(page, kPage, kPopulateForReading) != 0 && errno == EINVAL)
    GTEST_SKIP() << "this kernel cannot be asked for pages (Linux 5.14 can)";
  ASSERT_GT(FaultsOfTouching(kBytes), kBytes / kPage / 2) << "the heap had these pages before";
  FaultInHeap(2 * kBytes);
  EXPECT_LT(FaultsOfTouching(2 * kBytes), kBytes / kPage / 10);
}

}  // namespace
}  // namespace luthier
