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

  // The matrix from a row, or a column, on.
  Matrix Rows(int64_t from) const { return {data + (transposed ? from : from * pitch), pitch, transposed}; }
  Matrix Columns(int64_t from) const { return {data + (transposed ? from * pitch : from), pitch, transposed}; }
};

// Where a product goes; it is added to what is there if `add`.
template <typename T>
struct Result {
  T* data;
  int64_t pitch;
  bool add = false;

  // The part that begins at a row and a column.
  Result At(int64_t row, int64_t column) const { return {data + row * pitch + column, pitch, add}; }
};

// c = a[m, k] · b[k, n] by the BLAS that LibTorch carries. In a parallel region it uses one thread.
void Multiply(int64_t m, int64_t n, int64_t k, const Matrix<float>& a, const Matrix<float>& b, const Result<float>& c);

}  // namespace luthier::ops
