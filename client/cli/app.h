// The program as a function, so that tests run it with outputs of their own.
#pragma once

#include <string>
#include <vector>

#include "client/cli/command.h"

namespace luthier {

// Adds every command.
void AddCommands(CLI::App& app, CommandContext& context);

// Parses the arguments (without the program's name), runs the command they name and returns the exit code.
int RunApp(std::vector<std::string> arguments, CommandContext& context);

}  // namespace luthier
