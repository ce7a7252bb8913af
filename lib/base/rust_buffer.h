// Bytes that the Rust crate in rust/ gives out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" {

struct LuthierBuffer {
  uint8_t* data;
  size_t len;
};

void luthier_buffer_free(LuthierBuffer buffer);

}  // extern "C"

namespace luthier {

// The text of the buffer, which is freed.
inline std::string TakeText(LuthierBuffer buffer) {
  std::string text(reinterpret_cast<const char*>(buffer.data), buffer.len);
  luthier_buffer_free(buffer);
  return text;
}

}  // namespace luthier
