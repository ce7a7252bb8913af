#include "worker/agent/nvml.h"

#include <dlfcn.h>

#include <utility>

namespace luthier {
namespace {

constexpr int kSuccess = 0;          // NVML_SUCCESS
constexpr unsigned kNameBytes = 96;  // NVML_DEVICE_NAME_V2_BUFFER_SIZE, as that of a UUID

using Device = void*;
struct Memory {  // nvmlMemory_t
  unsigned long long total, free, used;
};

}  // namespace

struct Nvml::Functions {
  int (*init)();
  int (*shutdown)();
  int (*count)(unsigned*);
  int (*handle)(unsigned, Device*);
  int (*name)(Device, char*, unsigned);
  int (*uuid)(Device, char*, unsigned);
  int (*memory)(Device, Memory*);
};

std::unique_ptr<Nvml> Nvml::Load(const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return nullptr;
  auto functions = std::make_unique<Functions>();
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    complete &= function != nullptr;
  };
  find(functions->init, "nvmlInit_v2");
  find(functions->shutdown, "nvmlShutdown");
  find(functions->count, "nvmlDeviceGetCount_v2");
  find(functions->handle, "nvmlDeviceGetHandleByIndex_v2");
  find(functions->name, "nvmlDeviceGetName");
  find(functions->uuid, "nvmlDeviceGetUUID");
  find(functions->memory, "nvmlDeviceGetMemoryInfo");
  if (!complete || functions->init() != kSuccess) {
    dlclose(handle);
    return nullptr;
  }
  return std::unique_ptr<Nvml>(new Nvml(handle, std::move(functions)));
}

Nvml::Nvml(void* library, std::unique_ptr<Functions> functions) : library_(library), functions_(std::move(functions)) {}

Nvml::~Nvml() {
  functions_->shutdown();
  dlclose(library_);
}

std::vector<Nvml::Gpu> Nvml::Gpus() const {
  std::vector<Gpu> gpus;
  unsigned count = 0;
  if (functions_->count(&count) != kSuccess) return gpus;
  for (unsigned index = 0; index < count; ++index) {
    Device device = nullptr;
    Memory memory = {};
    char name[kNameBytes] = "", uuid[kNameBytes] = "";
    if (functions_->handle(index, &device) != kSuccess || functions_->memory(device, &memory) != kSuccess) continue;
    (void)functions_->name(device, name, kNameBytes);
    (void)functions_->uuid(device, uuid, kNameBytes);
    gpus.push_back(
        {static_cast<int>(index), uuid, name, static_cast<int64_t>(memory.total), static_cast<int64_t>(memory.used)});
  }
  return gpus;
}

}  // namespace luthier
