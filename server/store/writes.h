// What a commit writes: the rows of a batch of decisions.
#pragma once

#include "server/core/state.h"
#include "server/store/connection.h"

namespace luthier {

// Requires: a transaction, which the caller commits. Throws SQLite::Exception.
void WriteAll(Connection& connection, const Writes& writes);

}  // namespace luthier
