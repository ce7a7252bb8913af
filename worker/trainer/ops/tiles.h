// Products of bf16 matrices where the processor multiplies tiles of them (Intel's AMX, "Intel Architecture Instruction
// Set Extensions", chapter 3) or vectors (AVX512-BF16, AMD's since Zen 4 too): sums in fp32, each rounded once. oneDNN,
// which LibTorch uses for bf16, is slower on the shapes of fine-tuning, and takes neither the two terms of an adapted
// layer nor a result in fp32.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "worker/trainer/ops/gemm.h"

namespace luthier::ops {

// Whether this processor multiplies bf16. Everything below needs it.
bool HasBf16Products();

// What one instruction of AMX takes of a right factor: rows 2i and 2i + 1 of 16 columns side by side, for i in [0, 16).
struct alignas(64) Tile {
  static constexpr int64_t kInner = 32, kColumns = 16;
  uint16_t numbers[kInner * kColumns];
};

// Tiles that so many numbers need along a side of `of_tile`.
constexpr int64_t TilesIn(int64_t numbers, int64_t of_tile) { return (numbers + of_tile - 1) / of_tile; }

// Tiles of a right factor b[k, n], those of the same columns one after the other.
struct RightTiles {
  const Tile* first;
  int64_t k;
  int64_t tiles_of_columns;  // from one 16 columns to the next

  // The factor from a row, a multiple of 32, or a column, a multiple of 16, on.
  RightTiles Rows(int64_t from) const { return {first + from / Tile::kInner, k - from, tiles_of_columns}; }
  RightTiles Columns(int64_t from) const {
    return {first + from / Tile::kColumns * tiles_of_columns, k, tiles_of_columns};
  }
};

// A right factor cut into tiles. Keeps its memory from one cut to the next.
class RightFactor {
 public:
  RightTiles Cut(int64_t k, int64_t n, const Matrix<uint16_t>& b);

 private:
  std::unique_ptr<Tile[]> tiles_;
  int64_t capacity_ = 0;
};

// a · b, a term of a sum; b.k is their common size.
struct Term {
  Matrix<uint16_t> a;
  RightTiles b;
};

// Of a sum: the gradient of what queries, keys, values and their adapters read has four.
constexpr size_t kMostTerms = 4;

// c[m, n] = the sum, on the calling thread. A result in bf16 cannot be added to.
void Multiply(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<float>& c);
void Multiply(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<uint16_t>& c);

// a[m, k] · b[k, n], a term of a sum of which nothing is cut yet.
struct Product {
  int64_t k;
  Matrix<uint16_t> a, b;
};

// The same on all threads. Every sum is formed in the same order whatever their number.
void ParallelMultiply(int64_t m, int64_t n, absl::Span<const Product> products, const Result<float>& c);
void ParallelMultiply(int64_t m, int64_t n, absl::Span<const Product> products, const Result<uint16_t>& c);

}  // namespace luthier::ops
