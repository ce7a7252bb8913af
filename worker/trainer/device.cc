#include "worker/trainer/device.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <cstdlib>
#include <iostream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// Loads LibTorch's CUDA library, which registers itself. The reason if it cannot be used.
std::string LoadCuda() {
  if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) return "there is no NVIDIA driver";
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return absl::StrCat("LibTorch's CUDA library cannot be loaded (", dlerror(),
                        "); scripts/deps --cuda fetches what it needs");
  }
  if (at::detail::getCUDAHooks().deviceCount() == 0) return "the driver shows no GPU";
  return "";
}

// nvidia-smi's "compute capability": 8 and more have bf16 units. LibTorch's CPU library brings the CUDA runtime along.
bool HasBf16Units(int gpu) {
  constexpr int kComputeCapabilityMajor = 75;  // cudaDevAttrComputeCapabilityMajor
  using Attribute = int (*)(int* value, int attribute, int device);
  const auto attribute = reinterpret_cast<Attribute>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  int major = 0;
  return attribute != nullptr && attribute(&major, kComputeCapabilityMajor, gpu) == 0 && major >= 8;
}

// Index into each figure of the allocator.
constexpr auto kAllPools = static_cast<size_t>(c10::CachingDeviceAllocator::StatType::AGGREGATE);

// Attempts that the device is given to at a time, as the agent says.
int64_t Shares() {
  const char* const shares = std::getenv("LUTHIER_DEVICE_SHARES");
  int64_t number = 1;
  return shares != nullptr && absl::SimpleAtoi(shares, &number) && number > 1 ? number : 1;
}

}  // namespace

absl::StatusOr<int> CountGpus() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && *visible == '\0') return 0;
  static const std::string* unusable = new std::string(LoadCuda());
  if (unusable->empty()) return static_cast<int>(at::detail::getCUDAHooks().deviceCount());
  if (visible == nullptr) return 0;
  return absl::FailedPreconditionError(absl::StrCat("CUDA_VISIBLE_DEVICES: '", visible, "' gives GPUs, but ", *unusable,
                                                    "; set it to nothing to train on the CPU"));
}

absl::StatusOr<at::Device> DeviceOfRank(int local_rank) {
  LUTHIER_ASSIGN_OR_RETURN(const int gpus, CountGpus());
  if (gpus == 0) return at::Device(at::kCPU);
  const auto index = static_cast<at::DeviceIndex>(local_rank);
  at::globalContext().lazyInitDevice(at::kCUDA);
  at::globalContext().getAcceleratorHooksInterface(at::kCUDA).setCurrentDevice(index);
  return at::Device(at::kCUDA, index);
}

void MoveTo(const at::Device& device, NamedTensors& tensors) {
  for (auto& [name, tensor] : tensors) tensor = tensor.to(device);
}

DeviceFacts FactsOf(const at::Device& device) {
  DeviceFacts facts;
  facts.threads = at::get_num_threads();
  if (device.is_cpu()) {
    facts.memory_bytes = UsableMemoryBytes() / Shares();
    return facts;
  }
  facts.kind = DeviceFacts::Kind::kCuda;
  facts.memory_bytes =
      static_cast<int64_t>(c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(device.index()).second) / Shares();
  facts.bf16 = HasBf16Units(device.index());
  return facts;
}

int64_t PeakMemoryBytes(const at::Device& device) {
  if (device.is_cpu()) return PeakMemoryBytes();
  return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(device.index()).reserved_bytes[kAllPools].peak;
}

int64_t PeakAllocatedBytes(const at::Device& device) {
  if (device.is_cpu()) return 0;
  return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(device.index()).allocated_bytes[kAllPools].peak;
}

}  // namespace luthier
