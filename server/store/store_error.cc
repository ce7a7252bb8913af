#include "server/store/store_error.h"

#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace luthier {

absl::Status StoreError(const SQLite::Exception& error) {
  const int code = error.getErrorCode() & 0xff;
  if (code == SQLITE_FULL || error.getExtendedErrorCode() == SQLITE_IOERR_SHMSIZE) {
    return WithReason(
        absl::UnavailableError(
            "the disk of --data-dir is full and nothing new can be recorded; free space on it and try again"),
        "DISK_FULL");
  }
  if (code == SQLITE_IOERR || code == SQLITE_CORRUPT || code == SQLITE_NOTADB) {
    return absl::DataLossError(absl::StrCat("the server's database failed: ", error.what(),
                                            "; check the disk of --data-dir and start the server again; if that does "
                                            "not help, bring a backup back with `luthierd restore --from BACKUP`"));
  }
  return absl::UnavailableError(absl::StrCat("the server's database cannot be used: ", error.what(), "; try again"));
}

// A write that the kernel refuses leaves nothing in doubt, unlike a flush that fails: what was acknowledged is there,
// and can be read.
absl::Status WriteError(const SQLite::Exception& error, const std::string& path) {
  const int code = error.getExtendedErrorCode();
  const bool refused = code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_TRUNCATE;
  if (!refused || access(path.c_str(), W_OK) == 0 || errno != EROFS) return StoreError(error);
  return WithReason(
      absl::UnavailableError("the disk of --data-dir is read-only and nothing new can be recorded; mount it "
                             "for writing and try again"),
      "DISK_READ_ONLY");
}

}  // namespace luthier
