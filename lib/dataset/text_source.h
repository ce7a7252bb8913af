// The bytes of a file piece by piece, decompressed if it is gzip or zstd. Which of them it is, its first bytes tell:
// stored files have no names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace luthier {

class TextSource {
 public:
  // NOT_FOUND if it cannot be opened. `max_expansion`: a compressed file that gives more than so many times its bytes
  // is refused, so that a small upload cannot keep a server busy for hours. The first 16 MiB are free.
  static absl::StatusOr<std::unique_ptr<TextSource>> Open(const std::string& path, int64_t max_expansion);
  virtual ~TextSource() = default;

  // The next piece, which is valid until the next call; empty at the end. INVALID_ARGUMENT if the compressed data are
  // damaged or expand too far, DATA_LOSS if the file cannot be read on; nothing more comes after an error.
  virtual absl::StatusOr<std::string_view> Next() = 0;
};

}  // namespace luthier
