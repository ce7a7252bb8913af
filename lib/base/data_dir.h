// Where a program keeps its data if nobody says otherwise.
#pragma once

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace luthier {

// `~/.luthier/<program>`; below the working folder for a user without a home.
inline std::string DefaultDataDir(absl::string_view program) {
  const char* home = std::getenv("HOME");
  return absl::StrCat(home == nullptr ? "." : home, "/.luthier/", program);
}

}  // namespace luthier
