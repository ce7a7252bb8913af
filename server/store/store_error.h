// The border to SQLite, which throws.
#pragma once

#include <SQLiteCpp/SQLiteCpp.h>

#include <string>

#include "absl/status/status.h"

namespace luthier {

// UNAVAILABLE if the disk is full (nothing was written); DATA_LOSS if it failed: what is on it is not known any more.
absl::Status StoreError(const SQLite::Exception& error);

// The same for a change of the database at `path`: UNAVAILABLE also if its disk has become read-only.
absl::Status WriteError(const SQLite::Exception& error, const std::string& path);

// Runs `work`, which returns a Status or StatusOr, and turns what SQLite throws into a status.
template <typename Work>
auto Guard(Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const SQLite::Exception& error) {
    return StoreError(error);
  }
}

}  // namespace luthier
