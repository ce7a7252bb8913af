// Shell completion: a short script for each shell asks `luthier __complete` what may come next.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/cli/command.h"

namespace luthier {

// The hidden command that the scripts call: `luthier __complete WORD… PARTIAL`.
inline constexpr char kCompleteCommand[] = "__complete";

// What may stand for the last of `words` (which may be empty): commands, flags, values of -o, names that the server
// knows. Nothing means: names of files.
std::vector<std::string> Complete(const CLI::App& app, CommandContext& context, const std::vector<std::string>& words);

// Errors: INVALID_ARGUMENT for a shell other than bash, zsh, fish.
absl::StatusOr<std::string> CompletionScript(const std::string& shell);

}  // namespace luthier
