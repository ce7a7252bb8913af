#include "worker/trainer/distributed/nccl.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

namespace luthier {
namespace {

// As in nccl.h of NCCL 2, whose values and signatures do not change within version 2.
struct UniqueId {
  char bytes[Nccl::kMeetingBytes];
};
constexpr int kFloat32 = 7, kFloat64 = 8, kSum = 0;

struct Library {
  int (*get_unique_id)(UniqueId*);
  int (*init_rank)(void** communicator, int ranks, UniqueId id, int rank);
  int (*all_reduce)(const void* from, void* to, size_t count, int type, int operation, void* communicator,
                    void* stream);
  int (*asynchronous_error)(void* communicator, int* error);
  int (*abort)(void* communicator);
  const char* (*error)(int);

  static const Library& Get() {
    static const Library library = Load();
    return library;
  }

 private:
  static Library Load() {
    void* file = dlopen("libnccl.so.2", RTLD_NOW);
    if (file == nullptr) throw std::runtime_error(std::string("NCCL cannot be loaded: ") + dlerror());
    Library library;
    const auto find = [file](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(file, name));
      if (function == nullptr) throw std::runtime_error(std::string("NCCL has no ") + name);
    };
    find("ncclGetUniqueId", library.get_unique_id);
    find("ncclCommInitRank", library.init_rank);
    find("ncclAllReduce", library.all_reduce);
    find("ncclCommGetAsyncError", library.asynchronous_error);
    find("ncclCommAbort", library.abort);
    find("ncclGetErrorString", library.error);
    return library;
  }
};

void Check(int result, const char* what) {
  if (result != 0) throw std::runtime_error(std::string("NCCL: ") + what + ": " + Library::Get().error(result));
}

}  // namespace

Tensor Nccl::NewMeeting() {
  UniqueId id;
  Check(Library::Get().get_unique_id(&id), "no meeting");
  Tensor bytes = at::empty({kMeetingBytes}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), &id, sizeof id);
  return bytes;
}

Nccl::Nccl(int rank, int size, const Tensor& meeting) {
  UniqueId id;
  std::memcpy(&id, meeting.const_data_ptr(), sizeof id);
  Check(Library::Get().init_rank(&communicator_, size, id, rank), "the ranks do not meet");
}

// Its other way to end waits for ranks that may be gone. What was summed has been read.
Nccl::~Nccl() { Library::Get().abort(communicator_); }

void Nccl::Sum(const Tensor& tensor) const {
  const int type = tensor.scalar_type() == at::kDouble ? kFloat64 : kFloat32;
  if (type == kFloat32 && tensor.scalar_type() != at::kFloat) throw std::runtime_error("NCCL: neither fp32 nor fp64");
  void* data = tensor.mutable_data_ptr();
  // The stream that LibTorch uses unless it is told otherwise, which this program does nowhere.
  void* stream = nullptr;
  Check(Library::Get().all_reduce(data, data, static_cast<size_t>(tensor.numel()), type, kSum, communicator_, stream),
        "sum");
}

void Nccl::Wait(const at::Device& gpu) const {
  const c10::impl::VirtualGuardImpl gpus(at::kCUDA);
  const c10::Stream stream(c10::Stream::DEFAULT, gpu);
  while (!gpus.queryStream(stream)) {
    int error = 0;
    Check(Library::Get().asynchronous_error(communicator_, &error), "no answer");
    Check(error, "sum");
    std::this_thread::sleep_for(std::chrono::microseconds(50));  // far less than a sum over nodes takes
  }
}

}  // namespace luthier
