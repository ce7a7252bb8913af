#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace luthier {

// `models/m/versions/3` of `m/3`, `m@3`, `models/m/versions/3`; the latest version of `m` and `models/m`.
std::string VersionName(absl::string_view given);

// `models/m` of `models/m/versions/3`.
std::string ModelOf(const std::string& version);

// `m/3` of `models/m/versions/3`.
std::string ShortVersionName(absl::string_view name);

}  // namespace luthier
