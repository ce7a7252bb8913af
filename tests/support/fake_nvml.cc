// Two GPUs, and a third that fell off the bus, behind the names of NVIDIA's library.
#include <cstdio>
#include <cstring>

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 3;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = reinterpret_cast<void*>(static_cast<unsigned long>(index) + 1);
  return index == 1 ? 15 : 0;  // NVML_ERROR_GPU_IS_LOST
}
int nvmlDeviceGetName(void*, char* name, unsigned size) {
  std::snprintf(name, size, "Fake GPU");
  return 0;
}
int nvmlDeviceGetUUID(void* device, char* uuid, unsigned size) {
  std::snprintf(uuid, size, "GPU-%p", device);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void*, unsigned long long* memory) {  // total, free, used
  memory[0] = 80ULL << 30;
  memory[1] = 79ULL << 30;
  memory[2] = 1ULL << 30;
  return 0;
}

}  // extern "C"
