// `jobs/{job}/attempts/{number}` taken apart. Names come from the server and become folders, so nothing but an id
// passes.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace luthier {

struct AttemptPath {
  std::string job;
  int number = 0;  // from 1

  static std::optional<AttemptPath> Parse(absl::string_view text);
  std::string text() const;
};

}  // namespace luthier
