#include "server/store/store_error.h"

#include <sqlite3.h>

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
                                            "; check the disk of --data-dir, then start the server again"));
  }
  return absl::UnavailableError(absl::StrCat("the server's database cannot be used: ", error.what(), "; try again"));
}

}  // namespace luthier
