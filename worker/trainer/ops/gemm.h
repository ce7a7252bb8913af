// One matrix product in the memory of tensors, for operations that work on blocks of them.
#pragma once

#include <cstdint>

namespace luthier::ops {

// A row-major matrix inside a tensor, fp32 or bf16 (as its bits): `pitch` numbers lie between the starts of its rows.
template <typename T>
struct Matrix {
  const T* data;
  int64_t pitch;
  bool transposed = false;
};

// c[m, n] = alpha · a[m, k] · b[k, n] + beta · c, summed in fp32, by the BLAS that LibTorch carries. In a parallel
// region it uses one thread.
void Gemm(int64_t m, int64_t n, int64_t k, float alpha, const Matrix<float>& a, const Matrix<float>& b, float beta,
          float* c, int64_t c_pitch);
void Gemm(int64_t m, int64_t n, int64_t k, float alpha, const Matrix<uint16_t>& a, const Matrix<uint16_t>& b,
          float beta, float* c, int64_t c_pitch);

// Whether the second one is faster: the processor multiplies tiles of bf16 (AMX).
bool HasBf16Tiles();

}  // namespace luthier::ops
