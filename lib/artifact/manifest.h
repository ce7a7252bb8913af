// The files of an artifact, and the paths that others may give them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// One file of an artifact.
struct ManifestFile {
  std::string path;    // relative, `/` between names
  std::string sha256;  // lower-case hexadecimal
  int64_t bytes = 0;
  friend bool operator==(const ManifestFile&, const ManifestFile&) = default;
};

// The files of an artifact, each path once.
struct Manifest {
  std::vector<ManifestFile> files;
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

nlohmann::json ToJson(const Manifest& manifest);

// Errors: INVALID_ARGUMENT for a bad path, hash or size, or a path given twice.
absl::StatusOr<Manifest> ParseManifest(const nlohmann::json& json);

// Paths that come from others: relative, of at most 1,024 bytes, names of 1 to 255 bytes that are neither `.` nor `..`
// and hold no NUL, backslash or control character. Errors: INVALID_ARGUMENT naming the path's fault.
absl::Status CheckRelativePath(absl::string_view path);

// One name of such a path.
absl::Status CheckName(absl::string_view name);

// Hashes every regular file beneath `folder` into a manifest, paths sorted. Errors: INVALID_ARGUMENT for links and odd
// files.
absl::StatusOr<Manifest> ManifestOfFolder(const std::string& folder);

}  // namespace luthier
