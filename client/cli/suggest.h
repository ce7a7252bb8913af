#pragma once

#include <string>

#include "CLI/CLI.hpp"

namespace luthier {

// What is wrong with a command line that CLI11 refused, with what was probably meant and where the help is.
std::string UsageError(const CLI::App& app, const CLI::ParseError& error);

// Whether the first word that was not understood is in the place of a command.
bool NamesUnknownCommand(const CLI::App& app);

}  // namespace luthier
