// Bytes that the Rust crate in rust/ gives out.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct LuthierBuffer {
  uint8_t* data;
  size_t len;
};

void luthier_buffer_free(LuthierBuffer buffer);

}  // extern "C"
