#include "lib/artifact/manifest.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxPath = 1024;
constexpr size_t kMaxName = 255;  // what ext4 and XFS allow

}  // namespace

json ToJson(const Manifest& manifest) {
  json files = json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"path", file.path}, {"sha256", file.sha256}, {"bytes", file.bytes}});
  }
  return {{"version", 1}, {"files", files}};
}

absl::StatusOr<Manifest> ParseManifest(const json& json) {
  Manifest manifest;
  try {
    if (json.at("version") != 1) return absl::InvalidArgumentError("manifest: version is not 1");
    for (const auto& file : json.at("files")) {
      manifest.files.push_back({file.at("path"), file.at("sha256"), file.at("bytes")});
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("manifest: ", error.what()));
  }
  std::set<std::string> paths;
  for (const ManifestFile& file : manifest.files) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path));
    if (!IsSha256Hex(file.sha256))
      return absl::InvalidArgumentError(absl::StrCat("manifest: '", file.path, "' has no SHA-256"));
    if (file.bytes < 0)
      return absl::InvalidArgumentError(absl::StrCat("manifest: '", file.path, "' has a negative size"));
    if (!paths.insert(file.path).second) {
      return absl::InvalidArgumentError(absl::StrCat("manifest: '", file.path, "' is listed twice"));
    }
  }
  return manifest;
}

absl::Status CheckName(absl::string_view name) {
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(absl::StrCat("has the name '", name, "' in it; give plain names"));
  }
  if (name.size() > kMaxName) {
    return absl::InvalidArgumentError(absl::StrCat("has a name of ", name.size(), " bytes; give at most ", kMaxName));
  }
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\' || c == '/') {
      return absl::InvalidArgumentError("has a control character, slash or backslash in a name; give plain names");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRelativePath(absl::string_view path) {
  if (path.size() > kMaxPath) {
    return absl::InvalidArgumentError(absl::StrCat("a path has ", path.size(), " bytes; give at most ", kMaxPath));
  }
  for (const absl::string_view name : absl::StrSplit(path, '/')) {
    if (absl::Status status = CheckName(name); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("path '", path, "' ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> ManifestOfFolder(const std::string& folder) {
  Manifest manifest;
  std::error_code error;
  fs::recursive_directory_iterator entries(folder, error);
  if (error) return FileError(folder, "list", error.value());
  for (; entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    const fs::directory_entry& entry = *entries;
    const std::string path = entry.path().lexically_relative(folder).generic_string();
    if (!entry.is_symlink() && entry.is_directory()) continue;
    if (entry.is_symlink() || !entry.is_regular_file()) {
      return absl::InvalidArgumentError(
          absl::StrCat(entry.path().string(), ": is a link or no regular file; copy the file there"));
    }
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(path));
    LUTHIER_ASSIGN_OR_RETURN(std::string sha256, Sha256OfFile(entry.path().string()));
    manifest.files.push_back({path, std::move(sha256), static_cast<int64_t>(entry.file_size())});
  }
  if (error) return FileError(folder, "list", error.value());
  std::sort(manifest.files.begin(), manifest.files.end(),
            [](const ManifestFile& a, const ManifestFile& b) { return a.path < b.path; });
  return manifest;
}

}  // namespace luthier
