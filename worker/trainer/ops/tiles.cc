#include "worker/trainer/ops/tiles.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/ops/parallel.h"

// Of functions and not of the file: what it takes from headers must run on every processor.
#define LUTHIER_VECTORS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define LUTHIER_TILES __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

namespace luthier::ops {
namespace {

// A block of the result: 2 × 2 tiles, so that the eight registers of AMX hold it and four factors, and each factor that
// is read is used twice.
constexpr int64_t kTileRows = 16;
constexpr int64_t kBlockRows = 2 * kTileRows, kBlockColumns = 2 * Tile::kColumns;

// Bytes of a right factor that a thread cuts at a time: they stay in its second cache while it goes through the rows of
// the left one.
int64_t CutBytes() {
  constexpr int64_t kSmallest = int64_t{1} << 20;
  static const int64_t bytes = std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), kSmallest) / 2;
  return bytes;
}
// A longer sum is added up in pieces: of its right factor too few columns could be cut at a time, and the left one
// would be read anew for each few.
constexpr int64_t kLongestSum = 4096, kPieceOfSum = 2048, kRowsOfPieces = 512;

// Whether this processor multiplies tiles and the kernel lets this program. Linux gives these large registers only to
// programs that ask for them (Documentation/arch/x86/xstate.rst): the names are ARCH_REQ_XCOMP_PERM and
// XFEATURE_XTILEDATA, which headers before 5.16 do not have.
bool HasTileRegisters() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool has =
      __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return has;
}

// Memory layout of LDTILECFG: every register is a whole tile.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfiguration kWholeTiles;

// Sixteen rows of a tile, each 16 pairs of bf16 numbers.
struct TileRows {
  __m512i rows[kTileRows];
};

// Pairs as numbers of 32 bits: the pair in row i and column j goes to row j and column i.
LUTHIER_VECTORS inline void Transpose(TileRows& tile) {
  __m512i a[kTileRows], b[kTileRows];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(tile.rows[i], tile.rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(tile.rows[i], tile.rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xDD);
    }
  }
  for (int j = 0; j < 8; ++j) {
    tile.rows[j] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
    tile.rows[j + 8] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0xDD);
  }
}

// The first `count` numbers of a register, all of them if it has no more.
inline __mmask32 First(int64_t count) { return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1; }

// 16 × 32 numbers of a matrix as they lie; beyond `rows` and `columns` zero.
LUTHIER_VECTORS inline TileRows ReadRows(const uint16_t* matrix, int64_t pitch, int64_t rows, int64_t columns) {
  const __mmask32 inside = First(columns);
  TileRows tile;
  for (int64_t i = 0; i < kTileRows; ++i)
    tile.rows[i] = i < rows ? _mm512_maskz_loadu_epi16(inside, matrix + i * pitch) : _mm512_setzero_si512();
  return tile;
}

// 32 × 16 numbers of a matrix, rows 2i and 2i + 1 side by side, and the 32 × 16 that follow in the same rows; beyond
// `rows` and `columns` zero.
LUTHIER_VECTORS inline std::pair<TileRows, TileRows> ReadPairedRows(const uint16_t* matrix, int64_t pitch, int64_t rows,
                                                                    int64_t columns) {
  const __mmask32 inside = First(columns);
  const __m512i of_low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                          37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i of_high = _mm512_add_epi16(of_low, _mm512_set1_epi16(16));
  std::pair<TileRows, TileRows> tiles;
  for (int64_t i = 0; i < kTileRows; ++i) {
    const uint16_t* row = matrix + 2 * i * pitch;
    const __m512i even = 2 * i < rows ? _mm512_maskz_loadu_epi16(inside, row) : _mm512_setzero_si512();
    const __m512i odd = 2 * i + 1 < rows ? _mm512_maskz_loadu_epi16(inside, row + pitch) : _mm512_setzero_si512();
    tiles.first.rows[i] = _mm512_permutex2var_epi16(even, of_low, odd);
    tiles.second.rows[i] = _mm512_permutex2var_epi16(even, of_high, odd);
  }
  return tiles;
}

LUTHIER_VECTORS inline void Write(const TileRows& tile, Tile& to) {
  for (int64_t i = 0; i < kTileRows; ++i) _mm512_store_si512(to.numbers + i * Tile::kInner, tile.rows[i]);
}

// Cuts b[k, n]; `inner` tiles are of the same columns. Goes along the rows as they lie, so that the processor's
// prefetching follows.
LUTHIER_VECTORS void CutRight(const Matrix<uint16_t>& b, int64_t k, int64_t n, Tile* tiles) {
  const int64_t inner = TilesIn(k, Tile::kInner), outer = TilesIn(n, Tile::kColumns);
  if (b.transposed) {
    for (int64_t i = 0; i < outer; ++i) {
      for (int64_t j = 0; j < inner; ++j) {
        const int64_t column = i * Tile::kColumns, row = j * Tile::kInner;
        TileRows tile = ReadRows(b.data + column * b.pitch + row, b.pitch, n - column, k - row);
        Transpose(tile);
        Write(tile, tiles[i * inner + j]);
      }
    }
    return;
  }
  for (int64_t j = 0; j < inner; ++j) {
    for (int64_t i = 0; i < outer; i += 2) {
      const int64_t column = i * Tile::kColumns, row = j * Tile::kInner;
      const auto [low, high] = ReadPairedRows(b.data + row * b.pitch + column, b.pitch, k - row, n - column);
      Write(low, tiles[i * inner + j]);
      if (i + 1 < outer) Write(high, tiles[(i + 1) * inner + j]);
    }
  }
}

// Cuts rows of a left factor a[rows, k], two tiles of rows at most; `inner` tiles are of the same rows.
LUTHIER_VECTORS void CutLeft(const Matrix<uint16_t>& a, int64_t rows, int64_t k, Tile* tiles) {
  const int64_t inner = TilesIn(k, Tile::kInner);
  for (int64_t j = 0; j < inner; ++j) {
    const int64_t column = j * Tile::kInner;
    TileRows upper, lower;
    if (a.transposed) {
      std::tie(upper, lower) = ReadPairedRows(a.data + column * a.pitch, a.pitch, k - column, rows);
      Transpose(upper);
      if (rows > kTileRows) Transpose(lower);
    } else {
      upper = ReadRows(a.data + column, a.pitch, rows, k - column);
      if (rows > kTileRows)
        lower = ReadRows(a.data + kTileRows * a.pitch + column, a.pitch, rows - kTileRows, k - column);
    }
    Write(upper, tiles[j]);
    if (rows > kTileRows) Write(lower, tiles[inner + j]);
  }
}

// Where the tiles of some rows of a left factor lie: in the matrix itself, or cut.
struct LeftTiles {
  const uint16_t* first;
  int64_t row_bytes;          // between rows of a tile
  int64_t next_k, next_rows;  // numbers from a tile to the one beside it, and below it
};

// The tiles of rows [m, m + rows) of a left factor. They are read where they are if that reads nothing beyond them;
// otherwise `cut` gets them.
LeftTiles LeftTilesOf(const Matrix<uint16_t>& a, int64_t k, int64_t m, int64_t rows, std::vector<Tile>& cut) {
  if (!a.transposed && k % Tile::kInner == 0 && rows % kTileRows == 0)
    return {a.data + m * a.pitch, a.pitch * 2, Tile::kInner, kTileRows * a.pitch};
  const int64_t inner = TilesIn(k, Tile::kInner);
  const size_t needed = static_cast<size_t>(2 * std::max<int64_t>(inner, 1));
  if (cut.size() < needed) cut.resize(needed);
  CutLeft(a.Rows(m), rows, k, cut.data());
  constexpr int64_t kNumbers = Tile::kInner * Tile::kColumns;
  return {cut.front().numbers, Tile::kInner * 2, kNumbers, inner * kNumbers};
}

// A block that has left the registers, kBlockColumns in a row, and where it goes.
template <typename T>
struct alignas(64) BlockSums {
  float numbers[kBlockRows * kBlockColumns];
  int64_t rows = 0, columns = 0;
  Result<T> c = {};
};

LUTHIER_VECTORS inline void Store(const BlockSums<float>& sums) {
  const Result<float> c = sums.c;  // a local: the loop's stores cannot change it
  for (int64_t i = 0; i < sums.rows; ++i) {
    for (int64_t j = 0; j < sums.columns; j += 16) {
      const auto inside = static_cast<__mmask16>(First(sums.columns - j));
      __m512 value = _mm512_load_ps(sums.numbers + i * kBlockColumns + j);
      float* to = c.data + i * c.pitch + j;
      if (c.add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(inside, to));
      _mm512_mask_storeu_ps(to, inside, value);
    }
  }
}

LUTHIER_VECTORS inline void Store(const BlockSums<uint16_t>& sums) {
  const Result<uint16_t> c = sums.c;
  const __mmask32 inside = First(sums.columns);
  for (int64_t i = 0; i < sums.rows; ++i) {
    const float* row = sums.numbers + i * kBlockColumns;
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_load_ps(row + 16), _mm512_load_ps(row));
    _mm512_mask_storeu_epi16(c.data + i * c.pitch, inside, (__m512i)rounded);
  }
}

// How a block is formed where registers are whole tiles: 0 to 3 hold the block, row by row.
class TileRegisters {
 public:
  LUTHIER_TILES static void Begin() { _tile_loadconfig(&kWholeTiles); }
  LUTHIER_TILES static void End() { _tile_release(); }

  // Forms a block's sums, and meanwhile, while the tiles are still being multiplied, stores those of the block before.
  template <typename T>
  static void Multiply(const LeftTiles* left, const RightTiles* right, size_t terms, const BlockSums<T>& before,
                       BlockSums<T>& block) {
    const auto form = block.rows > kTileRows ? (block.columns > Tile::kColumns ? &Form<2, 2, T> : &Form<2, 1, T>)
                                             : (block.columns > Tile::kColumns ? &Form<1, 2, T> : &Form<1, 1, T>);
    form(left, right, terms, before, block.numbers);
  }

 private:
  template <int kRows, int kColumns, typename T>
  LUTHIER_TILES static void Form(const LeftTiles* left, const RightTiles* right, size_t terms,
                                 const BlockSums<T>& before, float* sums) {
    asm volatile("" ::: "memory");  // GCC's loads of tiles do not say that they read what was cut
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t term = 0; term < terms; ++term) AddTerm<kRows, kColumns>(left[term], right[term]);
    Store(before);
    StoreTiles<kRows, kColumns>(sums);
  }

  // The right factor's tiles are read without taking room in the first cache from those of the left one, which are read
  // again for every block of these rows.
  template <int kRows, int kColumns>
  LUTHIER_TILES static inline void AddTerm(const LeftTiles& a, const RightTiles& b) {
    const uint16_t *upper = a.first, *lower = a.first + a.next_rows;
    const Tile *left = b.first, *right = b.first + b.tiles_of_columns;
    for (int64_t tiles = TilesIn(b.k, Tile::kInner); tiles > 0; --tiles) {
      _tile_loadd(4, upper, a.row_bytes);
      _tile_stream_loadd(6, left, 64);
      if constexpr (kColumns == 2) _tile_stream_loadd(7, right, 64);
      if constexpr (kRows == 2) _tile_loadd(5, lower, a.row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRows == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRows == 2 && kColumns == 2) _tile_dpbf16ps(3, 5, 7);
      upper += a.next_k, lower += a.next_k;
      ++left, ++right;
    }
  }

  // kBlockColumns in a row.
  template <int kRows, int kColumns>
  LUTHIER_TILES static inline void StoreTiles(float* sums) {
    constexpr int64_t kRowBytes = kBlockColumns * sizeof(float);
    float* lower = sums + kTileRows * kBlockColumns;
    _tile_stored(0, sums, kRowBytes);
    if constexpr (kColumns == 2) _tile_stored(1, sums + Tile::kColumns, kRowBytes);
    if constexpr (kRows == 2) _tile_stored(2, lower, kRowBytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, lower + Tile::kColumns, kRowBytes);
  }
};

// How a block is formed where registers are vectors of 16 sums: eight rows of it at a time, each in one register or
// two.
class VectorRegisters {
 public:
  static void Begin() {}
  static void End() {}

  // The same as with tiles.
  template <typename T>
  LUTHIER_VECTORS static void Multiply(const LeftTiles* left, const RightTiles* right, size_t terms,
                                       const BlockSums<T>& before, BlockSums<T>& block) {
    Store(before);
    for (int64_t row = 0; row < block.rows; row += kRows) {
      if (block.columns > Tile::kColumns) {
        FormRows<2>(left, right, terms, row, block.numbers + row * kBlockColumns);
      } else {
        FormRows<1>(left, right, terms, row, block.numbers + row * kBlockColumns);
      }
    }
  }

 private:
  static constexpr int64_t kRows = 8;  // sixteen sums at a time, more than the steps that one multiplication takes

  template <int kColumns>
  LUTHIER_VECTORS static void FormRows(const LeftTiles* left, const RightTiles* right, size_t terms, int64_t row,
                                       float* to) {
    __m512 sums[kRows][kColumns];
    for (auto& of_row : sums) {
      for (__m512& sum : of_row) sum = _mm512_setzero_ps();
    }
    for (size_t term = 0; term < terms; ++term) {
      const int64_t pitch = left[term].row_bytes / 2;
      const uint16_t* a = left[term].first + row / kTileRows * left[term].next_rows + row % kTileRows * pitch;
      const Tile* b = right[term].first;
      for (int64_t k = right[term].k; k > 0; k -= Tile::kInner) {
        AddTile<kColumns>(a, pitch, b, right[term].tiles_of_columns, std::min(k, Tile::kInner), sums);
        a += left[term].next_k;
        ++b;
      }
    }
    for (int64_t i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) _mm512_store_ps(to + i * kBlockColumns + j * Tile::kColumns, sums[i][j]);
    }
  }

  // The first k numbers of a tile's rows.
  template <int kColumns>
  LUTHIER_VECTORS static inline void AddTile(const uint16_t* a, int64_t pitch, const Tile* b, int64_t next_columns,
                                             int64_t k, __m512 (&sums)[kRows][kColumns]) {
    for (int64_t pair = 0; 2 * pair < k; ++pair) {
      __m512i factors[kColumns];
      for (int j = 0; j < kColumns; ++j)
        factors[j] = _mm512_load_si512(b[j * next_columns].numbers + pair * Tile::kInner);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRows; ++i) {
        int32_t both;
        std::memcpy(&both, a + i * pitch + 2 * pair, sizeof both);
        const __m512i spread = _mm512_set1_epi32(both);
        for (int j = 0; j < kColumns; ++j)
          sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)spread, (__m512bh)factors[j]);
      }
    }
  }
};

template <class Registers, typename T>
LUTHIER_VECTORS void MultiplyHere(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<T>& c) {
  static thread_local std::array<std::vector<Tile>, kMostTerms> cut;
  std::array<LeftTiles, kMostTerms> left;
  std::array<RightTiles, kMostTerms> right;
  std::array<BlockSums<T>, 2> blocks;
  size_t turn = 0;
  Registers::Begin();
  for (int64_t i = 0; i < m; i += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, m - i);
    for (size_t term = 0; term < terms.size(); ++term)
      left[term] = LeftTilesOf(terms[term].a, terms[term].b.k, i, rows, cut[term]);
    for (int64_t j = 0; j < n; j += kBlockColumns) {
      for (size_t term = 0; term < terms.size(); ++term) right[term] = terms[term].b.Columns(j);
      const BlockSums<T>& before = blocks[turn];
      turn = 1 - turn;
      BlockSums<T>& block = blocks[turn];
      block.rows = rows, block.columns = std::min(kBlockColumns, n - j), block.c = c.At(i, j);
      Registers::Multiply(left.data(), right.data(), terms.size(), before, block);
    }
  }
  Store(blocks[turn]);
  Registers::End();
}

template <typename T>
void MultiplyHere(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<T>& c) {
  if (HasTileRegisters()) {
    MultiplyHere<TileRegisters>(m, n, terms, c);
  } else {
    MultiplyHere<VectorRegisters>(m, n, terms, c);
  }
}

// Columns [j, j + columns) of rows [i, i + rows) of a sum, and where they go.
template <typename T>
struct Part {
  absl::Span<const Product> products;
  int64_t i, rows, j, columns;
  Result<T> c;

  // Of one product the k numbers from `from` on; `factor` gets what is cut of it.
  Term Cut(const Product& product, int64_t from, int64_t k, RightFactor& factor) const {
    return {product.a.Rows(i).Columns(from), factor.Cut(k, columns, product.b.Rows(from).Columns(j))};
  }
};

template <typename T>
void MultiplyAtOnce(const Part<T>& part) {
  static thread_local std::array<RightFactor, kMostTerms> factors;
  std::array<Term, kMostTerms> terms;
  for (size_t term = 0; term < part.products.size(); ++term)
    terms[term] = part.Cut(part.products[term], 0, part.products[term].k, factors[term]);
  MultiplyHere(part.rows, part.columns, absl::MakeConstSpan(terms.data(), part.products.size()), part.c);
}

void MultiplyInPieces(const Part<float>& part) {
  static thread_local RightFactor factor;
  Result<float> c = part.c;
  for (const Product& product : part.products) {
    for (int64_t from = 0; from < product.k; from += kPieceOfSum) {
      const Term term = part.Cut(product, from, std::min(kPieceOfSum, product.k - from), factor);
      MultiplyHere(part.rows, part.columns, {&term, 1}, c);
      c.add = true;
    }
  }
}

void MultiplyInPieces(const Part<uint16_t>& part) {
  static thread_local std::vector<float> sums;
  sums.resize(static_cast<size_t>(part.rows * part.columns));
  MultiplyInPieces(Part<float>{part.products, part.i, part.rows, part.j, part.columns, {sums.data(), part.columns}});
  for (int64_t row = 0; row < part.rows; ++row)
    kernels::Narrow(sums.data() + row * part.columns, part.columns, part.c.At(row, 0).data);
}

struct PartSize {
  int64_t rows, columns;
};

// So large that every thread has one. Threads share the columns, since what they cut of the right factors is then cut
// once; where these are too few, the rows too.
PartSize SizeOfParts(int64_t m, int64_t n, int64_t sum) {
  const int64_t threads = ThreadCount(), blocks = TilesIn(n, kBlockColumns), row_blocks = TilesIn(m, kBlockRows);
  const int64_t that_fit = CutBytes() / ((sum > kLongestSum ? kPieceOfSum : sum) * kBlockColumns * 2);
  const int64_t columns = std::min(TilesIn(blocks, threads), that_fit);
  const int64_t parts_of_rows = std::min(row_blocks, TilesIn(threads, TilesIn(blocks, columns)));
  const int64_t rows = TilesIn(row_blocks, parts_of_rows) * kBlockRows;
  return {sum > kLongestSum ? std::min(rows, kRowsOfPieces) : rows, columns * kBlockColumns};
}

template <typename T>
void MultiplyOnAllThreads(int64_t m, int64_t n, absl::Span<const Product> products, const Result<T>& c) {
  if (m == 0 || n == 0) return;
  int64_t sum = 1;  // more than nothing, also where there is nothing to add up
  for (const Product& product : products) sum += product.k;
  const PartSize size = SizeOfParts(m, n, sum);
  const int64_t parts_of_rows = TilesIn(m, size.rows);
  ParallelItems(parts_of_rows * TilesIn(n, size.columns), [&](int64_t item) {
    const int64_t i = item % parts_of_rows * size.rows, j = item / parts_of_rows * size.columns;
    const Part<T> part = {products, i, std::min(size.rows, m - i), j, std::min(size.columns, n - j), c.At(i, j)};
    if (sum > kLongestSum) {
      MultiplyInPieces(part);
    } else {
      MultiplyAtOnce(part);
    }
  });
}

}  // namespace

bool HasBf16Products() {
  static const bool has =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
}

RightTiles RightFactor::Cut(int64_t k, int64_t n, const Matrix<uint16_t>& b) {
  const int64_t inner = TilesIn(k, Tile::kInner), outer = TilesIn(n, Tile::kColumns);
  if (capacity_ < inner * outer) {
    capacity_ = inner * outer;
    tiles_.reset(new Tile[static_cast<size_t>(capacity_)]);
  }
  CutRight(b, k, n, tiles_.get());
  return {tiles_.get(), k, inner};
}

void Multiply(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<float>& c) {
  MultiplyHere(m, n, terms, c);
}
void Multiply(int64_t m, int64_t n, absl::Span<const Term> terms, const Result<uint16_t>& c) {
  MultiplyHere(m, n, terms, c);
}

void ParallelMultiply(int64_t m, int64_t n, absl::Span<const Product> products, const Result<float>& c) {
  MultiplyOnAllThreads(m, n, products, c);
}
void ParallelMultiply(int64_t m, int64_t n, absl::Span<const Product> products, const Result<uint16_t>& c) {
  MultiplyOnAllThreads(m, n, products, c);
}

}  // namespace luthier::ops
