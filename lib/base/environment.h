// Variables of this process's environment.
#pragma once

#include <cstdlib>
#include <string>

namespace luthier {

// Empty if it is not set.
inline std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace luthier
