#include "worker/trainer/ops/gemm.h"

// Of libtorch_cpu.so; ATen's own wrappers are not exported.
extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
            const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
            const int* ldc);
void gemm_bf16bf16f32_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const uint16_t* a, const int* lda, const uint16_t* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);
}

namespace luthier::ops {
namespace {

template <typename T, typename Blas>
void RowMajor(Blas* blas, int64_t m, int64_t n, int64_t k, float alpha, const Matrix<T>& a, const Matrix<T>& b,
              float beta, float* c, int64_t c_pitch) {
  // BLAS counts by columns: it is told to compute the transpose, bᵀ · aᵀ.
  const char of_a = a.transposed ? 'T' : 'N', of_b = b.transposed ? 'T' : 'N';
  const auto rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const auto a_pitch = static_cast<int>(a.pitch), b_pitch = static_cast<int>(b.pitch),
             pitch = static_cast<int>(c_pitch);
  blas(&of_b, &of_a, &rows, &columns, &inner, &alpha, b.data, &b_pitch, a.data, &a_pitch, &beta, c, &pitch);
}

}  // namespace

void Gemm(int64_t m, int64_t n, int64_t k, float alpha, const Matrix<float>& a, const Matrix<float>& b, float beta,
          float* c, int64_t c_pitch) {
  RowMajor(&sgemm_, m, n, k, alpha, a, b, beta, c, c_pitch);
}

void Gemm(int64_t m, int64_t n, int64_t k, float alpha, const Matrix<uint16_t>& a, const Matrix<uint16_t>& b,
          float beta, float* c, int64_t c_pitch) {
  RowMajor(&gemm_bf16bf16f32_, m, n, k, alpha, a, b, beta, c, c_pitch);
}

bool HasBf16Tiles() {
  static const bool has = __builtin_cpu_supports("amx-bf16");
  return has;
}

}  // namespace luthier::ops
