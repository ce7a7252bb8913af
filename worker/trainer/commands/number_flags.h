// What numbers a flag takes. CLI11 puts the flag in front of what these say of another one.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

#include "lib/plan/block_reader.h"

namespace luthier {

CLI::Validator Within(const NumberRange& range);
// From `low` to `high`, both included.
CLI::Validator WholeNumber(int64_t low, int64_t high);

}  // namespace luthier
