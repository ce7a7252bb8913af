#include "client/hub/git_blob.h"

#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "lib/artifact/durable_file.h"

namespace luthier {

absl::StatusOr<std::string> GitBlobIdOfFile(const std::string& path, int64_t bytes) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return FileError(path, "open", errno);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (EVP_DigestInit_ex(hash.get(), EVP_sha1(), nullptr) != 1)
    return absl::FailedPreconditionError("OpenSSL of this machine computes no SHA-1");
  const std::string header = absl::StrCat("blob ", bytes);
  EVP_DigestUpdate(hash.get(), header.c_str(), header.size() + 1);
  std::vector<char> buffer(1 << 16);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), stream.gcount() > 0)
    EVP_DigestUpdate(hash.get(), buffer.data(), static_cast<size_t>(stream.gcount()));
  if (stream.bad()) return FileError(path, "read", errno);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  EVP_DigestFinal_ex(hash.get(), digest.data(), &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

}  // namespace luthier
