// One matrix product in the memory of tensors, for operations that work on blocks of them.
#pragma once

#include <cstdint>

namespace luthier::ops {

// A row-major matrix inside a tensor: `pitch` numbers lie between the starts of its rows.
struct Matrix {
  const float* data;
  int64_t pitch;
  bool transposed = false;
};

// c[m, n] = alpha · a[m, k] · b[k, n] + beta · c, by the BLAS that LibTorch carries. In a parallel region it uses one
// thread.
void Gemm(int64_t m, int64_t n, int64_t k, float alpha, const Matrix& a, const Matrix& b, float beta, float* c,
          int64_t c_pitch);

}  // namespace luthier::ops
