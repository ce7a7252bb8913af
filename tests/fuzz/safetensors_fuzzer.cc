#include "lib/checkpoint/safetensors.h"
#include "tests/fuzz/input.h"

namespace luthier {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputFile input(data, size);
  const auto file = SafetensorsFile::Open(input.path());
  if (!file.ok()) {
    Require(!file.status().message().empty(), "a refusal has a reason");
    return 0;
  }
  size_t bytes = 0;
  uint8_t all = 0;
  for (const auto& [name, view] : file->tensors()) {
    Require(view.bytes.size() == DtypeSize(view.dtype) * static_cast<size_t>(NumElements(view.shape)),
            "a tensor has the bytes of its shape");
    bytes += view.bytes.size();
    for (const std::byte byte : view.bytes) all |= static_cast<uint8_t>(byte);
  }
  Require(bytes < size, "no byte belongs to two tensors");
  static volatile uint8_t read = 0;
  read = read | all;
  return 0;
}

}  // namespace luthier
