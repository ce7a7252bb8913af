#include "worker/trainer/ops/gemm.h"

// Of libtorch_cpu.so; ATen's own wrapper is not exported.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace luthier::ops {

void Multiply(int64_t m, int64_t n, int64_t k, const Matrix<float>& a, const Matrix<float>& b, const Result<float>& c) {
  // BLAS counts by columns: it is told to compute the transpose, bᵀ · aᵀ.
  const char of_a = a.transposed ? 'T' : 'N', of_b = b.transposed ? 'T' : 'N';
  const auto rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const auto a_pitch = static_cast<int>(a.pitch), b_pitch = static_cast<int>(b.pitch),
             c_pitch = static_cast<int>(c.pitch);
  const float scale = 1, kept = c.add ? 1 : 0;
  sgemm_(&of_b, &of_a, &rows, &columns, &inner, &scale, b.data, &b_pitch, a.data, &a_pitch, &kept, c.data, &c_pitch);
}

}  // namespace luthier::ops
