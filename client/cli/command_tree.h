// The commands of the program, as CLI11 holds them.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace luthier {

// Those directly below a command.
std::vector<const CLI::App*> Subcommands(const CLI::App& command);
std::vector<std::string> SubcommandNames(const CLI::App& command);

// Its long flags: `--output`.
std::vector<std::string> FlagsOf(const CLI::App& command);

// The command that the words so far have chosen.
const CLI::App& DeepestCommand(const CLI::App& app);

// `luthier job submit`.
std::string CommandPath(const CLI::App& command);

}  // namespace luthier
