// SHA-256 of artifacts, CRC32C of stream chunks, and a quick hash of large content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace luthier {

// SHA-256 over bytes that arrive in pieces (FIPS 180-4; OpenSSL uses the CPU's instructions). One thread.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256& other);  // goes on by itself from here
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  void Update(absl::string_view text);

  // Lower-case hexadecimal, 64 characters. Nothing may follow it.
  std::string FinishHex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(absl::string_view text);

// Reads the whole file. Errors: NOT_FOUND, DATA_LOSS, each naming the path.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

// Whether `text` has the form of FinishHex()'s result; the only names that blobs may have.
bool IsSha256Hex(absl::string_view text);

// CRC32C (Castagnoli, RFC 3720 appendix B.4). `crc` is the result for the bytes before, 0 at the start.
uint32_t Crc32c(absl::string_view bytes, uint32_t crc = 0);

// XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md): tells at the speed of memory whether content
// changed. SHA-256, which also holds against intent, takes seconds a GB where the CPU has no instructions for it.
uint64_t Xxh64(std::span<const std::byte> bytes);

}  // namespace luthier
