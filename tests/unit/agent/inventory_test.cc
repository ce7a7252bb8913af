#include "worker/agent/inventory.h"

#include <gtest/gtest.h>
#include <sched.h>

#include "lib/base/machine.h"

namespace luthier {
namespace {

TEST(InventoryTest, TellsWhatThisMachineHas) {
  const v1::Inventory inventory = Inventory(nullptr).Read();
  EXPECT_GE(inventory.cpus(), 1);
  EXPECT_GT(inventory.memory_bytes(), int64_t{64} << 20);
  EXPECT_NE(inventory.hostname(), "");
  EXPECT_EQ(inventory.gpus_size(), 0);
}

TEST(InventoryTest, CountsOnlyTheCpusThatItMayUse) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(UsableCpus(), 1);
  sched_setaffinity(0, sizeof before, &before);
}

TEST(NvmlTest, IsAbsentOnAMachineWithoutDriver) { EXPECT_EQ(Nvml::Load("libno-such-library.so.1"), nullptr); }

TEST(NvmlTest, ReadsEveryGpuThatAnswers) {
  std::unique_ptr<Nvml> nvml = Nvml::Load(LUTHIER_FAKE_NVML);
  ASSERT_NE(nvml, nullptr);
  const v1::Inventory inventory = Inventory(std::move(nvml)).Read();
  ASSERT_EQ(inventory.gpus_size(), 2);
  EXPECT_EQ(inventory.gpus(0).index(), 0);
  EXPECT_EQ(inventory.gpus(1).index(), 2);
  EXPECT_EQ(inventory.gpus(1).uuid(), "GPU-0x3");
  EXPECT_EQ(inventory.gpus(1).model(), "Fake GPU");
  EXPECT_EQ(inventory.gpus(1).memory_bytes(), int64_t{80} << 30);
  EXPECT_EQ(inventory.gpus(1).memory_used_bytes(), int64_t{1} << 30);
}

// On a machine with a GPU: that the signatures are right.
TEST(NvmlTest, ReadsTheRealDriverIfThereIsOne) {
  const std::unique_ptr<Nvml> nvml = Nvml::Load();
  if (nvml == nullptr) GTEST_SKIP() << "no NVIDIA driver";
  const auto gpus = nvml->Gpus();
  ASSERT_FALSE(gpus.empty());
  for (const Nvml::Gpu& gpu : gpus) {
    EXPECT_EQ(gpu.uuid.rfind("GPU-", 0), 0u) << gpu.uuid;
    EXPECT_NE(gpu.model, "");
    EXPECT_GT(gpu.memory_bytes, int64_t{1} << 30);
    EXPECT_LE(gpu.memory_used_bytes, gpu.memory_bytes);
    std::printf("%s %s %lld %lld\n", gpu.model.c_str(), gpu.uuid.c_str(), static_cast<long long>(gpu.memory_bytes),
                static_cast<long long>(gpu.memory_used_bytes));
  }
}

}  // namespace
}  // namespace luthier
