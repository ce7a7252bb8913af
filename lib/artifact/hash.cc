#include "lib/artifact/hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// Reflected Castagnoli polynomial.
constexpr uint32_t kCastagnoli = 0x82F63B78;

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCastagnoli : 0);
    table[i] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

constexpr uint64_t kXxhPrimes[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                                   0x27D4EB2F165667C5};

uint64_t XxhRound(uint64_t lane, uint64_t word) { return std::rotl(lane + word * kXxhPrimes[1], 31) * kXxhPrimes[0]; }

// Little-endian, as every machine that this runs on.
template <typename Word>
Word Read(std::span<const std::byte> bytes) {
  Word word;
  std::memcpy(&word, bytes.data(), sizeof(Word));
  return word;
}

}  // namespace

struct Sha256::Context {
  Context() : evp(EVP_MD_CTX_new()) {
    // OpenSSL 3 searches its providers anew for every hash that is begun with EVP_sha256(), which takes longer than
    // hashing a request.
    static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    EVP_DigestInit_ex(evp, kSha256, nullptr);
  }
  ~Context() { EVP_MD_CTX_free(evp); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  EVP_MD_CTX* evp;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {}
Sha256::Sha256(const Sha256& other) : Sha256() { EVP_MD_CTX_copy_ex(context_->evp, other.context_->evp); }
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::span<const std::byte> bytes) { EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()); }

void Sha256::Update(absl::string_view text) { EVP_DigestUpdate(context_->evp, text.data(), text.size()); }

std::string Sha256::FinishHex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  EVP_DigestFinal_ex(context_->evp, digest.data(), &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

std::string Sha256Hex(absl::string_view text) {
  Sha256 hash;
  hash.Update(text);
  return hash.FinishHex();
}

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  Sha256 hash;
  std::vector<char> buffer(size_t{1} << 20);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || stream.gcount() > 0) {
    hash.Update(absl::string_view(buffer.data(), static_cast<size_t>(stream.gcount())));
  }
  if (stream.bad()) return absl::DataLossError(absl::StrCat(path, ": read: ", std::strerror(errno)));
  return hash.FinishHex();
}

bool IsSha256Hex(absl::string_view text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

uint64_t Xxh64(std::span<const std::byte> bytes) {
  const uint64_t size = bytes.size();
  uint64_t hash = kXxhPrimes[4];
  if (bytes.size() >= 32) {
    uint64_t lanes[] = {kXxhPrimes[0] + kXxhPrimes[1], kXxhPrimes[1], 0, 0 - kXxhPrimes[0]};
    for (; bytes.size() >= 32; bytes = bytes.subspan(32)) {
      for (size_t i = 0; i < 4; ++i) lanes[i] = XxhRound(lanes[i], Read<uint64_t>(bytes.subspan(8 * i)));
    }
    hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ XxhRound(0, lane)) * kXxhPrimes[0] + kXxhPrimes[3];
  }
  hash += size;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    hash = std::rotl(hash ^ XxhRound(0, Read<uint64_t>(bytes)), 27) * kXxhPrimes[0] + kXxhPrimes[3];
  }
  if (bytes.size() >= 4) {
    hash = std::rotl(hash ^ (Read<uint32_t>(bytes) * kXxhPrimes[0]), 23) * kXxhPrimes[1] + kXxhPrimes[2];
    bytes = bytes.subspan(4);
  }
  for (const std::byte byte : bytes) {
    hash = std::rotl(hash ^ (static_cast<uint64_t>(byte) * kXxhPrimes[4]), 11) * kXxhPrimes[0];
  }
  hash = (hash ^ (hash >> 33)) * kXxhPrimes[1];
  hash = (hash ^ (hash >> 29)) * kXxhPrimes[2];
  return hash ^ (hash >> 32);
}

uint32_t Crc32c(absl::string_view bytes, uint32_t crc) {
  crc = ~crc;
  for (const char byte : bytes) crc = kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

}  // namespace luthier
