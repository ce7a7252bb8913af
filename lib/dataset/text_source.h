// The lines of a file piece by piece: decompressed if it is gzip or zstd, and one for each row if it is Parquet. Which
// of them it is, its first bytes tell: stored files have no names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace luthier {

// What the numbers of a file count.
enum class RowUnit : uint8_t { kLine, kRow };

class TextSource {
 public:
  struct Limits {
    // A compressed or Parquet file that gives more than so many times its bytes is refused, so that a small upload
    // cannot keep a server busy for hours. The first 16 MiB are free.
    int64_t max_expansion = 0;
    // A line that is made of a row of Parquet is cut behind one byte more.
    int64_t max_line_bytes = 0;
  };
  // NOT_FOUND if it cannot be opened, INVALID_ARGUMENT if only its name is that of a Parquet file.
  static absl::StatusOr<std::unique_ptr<TextSource>> Open(const std::string& path, Limits limits);
  virtual ~TextSource() = default;

  // The next piece, which is valid until the next call; empty at the end. INVALID_ARGUMENT if compressed data or a
  // Parquet file are damaged or expand too far, DATA_LOSS if the file cannot be read on; nothing more comes after an
  // error.
  virtual absl::StatusOr<std::string_view> Next() = 0;

  virtual RowUnit unit() const { return RowUnit::kLine; }
};

}  // namespace luthier
