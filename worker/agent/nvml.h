// NVIDIA's management library, loaded at run time: the agent runs on machines without a driver, and needs no CUDA to
// build. Signatures: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/ (stable since the `_v2` names, driver
// 340).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace luthier {

// One thread at a time.
class Nvml {
 public:
  struct Gpu {
    int index = 0;
    std::string uuid;
    std::string model;
    int64_t memory_bytes = 0;
    int64_t memory_used_bytes = 0;
  };

  // Null if the library is absent or finds no driver, which is normal on a CPU node.
  static std::unique_ptr<Nvml> Load(const std::string& library = "libnvidia-ml.so.1");
  ~Nvml();

  // As the driver counts. A GPU that does not answer (it fell off the bus) is left out.
  std::vector<Gpu> Gpus() const;

 private:
  struct Functions;
  Nvml(void* library, std::unique_ptr<Functions> functions);
  void* library_;
  std::unique_ptr<Functions> functions_;
};

}  // namespace luthier
