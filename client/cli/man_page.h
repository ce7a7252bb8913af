// The manual page luthier(1), written from the table of commands that the parser uses.
#pragma once

#include <string>

#include "CLI/CLI.hpp"

namespace luthier {

// The hidden command that prints it while Luthier is built.
inline constexpr char kManPageCommand[] = "__man";

// In roff, for `man`. `app`: with every command added.
std::string ManPage(const CLI::App& app);

}  // namespace luthier
