#include "client/cli/dataset_files.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr const char* kParts[] = {"train", "validation", "test"};

// `validation` of validation.jsonl and validation-2026.jsonl; empty if the name says nothing.
std::string PartOfName(const fs::path& path) {
  for (const char* part : kParts) {
    if (absl::StartsWith(path.filename().string(), part)) return part;
  }
  return "";
}

absl::Status Add(const std::string& part, const std::string& path, std::vector<DatasetFile>& files) {
  if (!fs::is_regular_file(path)) return absl::InvalidArgumentError(absl::StrCat(path, ": there is no such file"));
  for (const DatasetFile& other : files) {
    if (other.part == part) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", part, " is given already by ", other.path,
                                                     "; say which is which with --train, --validation and --test"));
    }
  }
  files.push_back({part, path});
  return absl::OkStatus();
}

absl::Status AddFolder(const std::string& folder, std::vector<DatasetFile>& files) {
  const size_t before = files.size();
  for (const char* part : kParts) {
    for (const char* ending : {".jsonl", ".jsonl.gz", ".jsonl.zst"}) {
      const std::string path = (fs::path(folder) / absl::StrCat(part, ending)).string();
      if (fs::exists(path)) LUTHIER_RETURN_IF_ERROR(Add(part, path, files));
    }
  }
  if (files.size() > before) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(folder, ": holds no train.jsonl, validation.jsonl or test.jsonl; give the files themselves"));
}

}  // namespace

absl::StatusOr<std::vector<DatasetFile>> FindDatasetFiles(const DatasetPaths& given) {
  std::vector<DatasetFile> files;
  for (const std::string& path : given.paths) {
    if (fs::is_directory(path)) {
      LUTHIER_RETURN_IF_ERROR(AddFolder(path, files));
      continue;
    }
    std::string part = PartOfName(path);
    const bool alone = given.paths.size() == 1 && given.train.empty();
    if (part.empty() && alone) part = "train";
    if (part.empty() && fs::exists(path)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": is it train, validation or test? Say so with --train, --validation or --test"));
    }
    LUTHIER_RETURN_IF_ERROR(Add(part, path, files));
  }
  if (!given.train.empty()) LUTHIER_RETURN_IF_ERROR(Add("train", given.train, files));
  if (!given.validation.empty()) LUTHIER_RETURN_IF_ERROR(Add("validation", given.validation, files));
  if (!given.test.empty()) LUTHIER_RETURN_IF_ERROR(Add("test", given.test, files));
  if (files.empty())
    return absl::InvalidArgumentError("no files; give a folder with train.jsonl, or files of JSON lines");
  std::stable_sort(files.begin(), files.end(), [](const DatasetFile& a, const DatasetFile& b) {
    const auto rank = [](const std::string& part) {
      return std::find(std::begin(kParts), std::end(kParts), part) - std::begin(kParts);
    };
    return rank(a.part) < rank(b.part);
  });
  return files;
}

}  // namespace luthier
