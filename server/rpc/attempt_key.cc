#include "server/rpc/attempt_key.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"
#include "server/rpc/access.h"

namespace luthier {
namespace {

// For nobody else's eyes from its first moment on, which a DurableFile is not.
absl::Status WriteSecret(const std::string& path, const std::string& secret) {
  const std::string temporary = path + ".tmp";
  const Descriptor file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!file.is_open()) return FileError(path, "create", errno);
  const ssize_t written = write(file.get(), secret.data(), secret.size());
  if (written != static_cast<ssize_t>(secret.size()) || fsync(file.get()) != 0) return FileError(path, "write", errno);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return FileError(path, "rename", errno);
  return SyncFolder(path.substr(0, path.rfind('/')));
}

}  // namespace

absl::StatusOr<std::string> AttemptKeyOf(const std::string& data_dir) {
  const std::string path = data_dir + "/attempt-key";
  std::string key;
  if (std::ifstream file(path); file) {
    file >> key;
    if (IsSha256Hex(key)) return key;
    return absl::DataLossError(absl::StrCat(
        path, ": holds no key; remove it: attempts that run will not be able to publish, and are made again"));
  }
  key = RandomSecret();
  LUTHIER_RETURN_IF_ERROR(WriteSecret(path, key));
  return key;
}

std::string AttemptCredential(absl::string_view key, absl::string_view attempt) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(attempt.data()),
       attempt.size(), digest, &size);
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest), size});
}

}  // namespace luthier
