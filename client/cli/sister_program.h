// Another program of Luthier, run on this machine in the place of a command.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace luthier {

// Runs `arguments` (the program's name first) on our own standard streams, to its end. The program is what
// $LUTHIER_TRAINER names (for luthier-trainer), else the one beside this program, else what PATH finds. Errors:
// INVALID_ARGUMENT if it was used wrongly, CANCELLED if Ctrl-C ended it, INTERNAL if it failed; it has said why.
absl::Status RunSisterProgram(std::vector<std::string> arguments);

// The same; what it writes to its standard output is returned.
absl::StatusOr<std::string> OutputOfSisterProgram(std::vector<std::string> arguments);

}  // namespace luthier
