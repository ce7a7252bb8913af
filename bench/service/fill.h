// Many jobs that wait, written as the server writes them but without one.
#pragma once

#include <cstdint>
#include <string>

#include "bench/service/installation.h"

namespace luthier {

// Stops the server, adds `jobs` copies of the installation's job to its record, and leaves it stopped.
void FillQueue(Installation& installation, int64_t jobs);

}  // namespace luthier
