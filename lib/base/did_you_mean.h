// The name that a typing mistake most likely meant.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace luthier {

// The name of `known` that is nearest to `name`; empty if none is near.
std::string DidYouMean(absl::string_view name, const std::vector<std::string>& known);

}  // namespace luthier
