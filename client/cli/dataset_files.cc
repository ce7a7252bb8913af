#include "client/cli/dataset_files.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr const char* kParts[] = {"train", "validation", "test"};

// `validation` of validation.jsonl and validation-2026.jsonl; empty if the name says nothing, as testimonials.jsonl.
std::string PartOfName(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const char* part : kParts) {
    absl::string_view rest = name;
    if (absl::ConsumePrefix(&rest, part) && (rest.empty() || !absl::ascii_isalpha(static_cast<unsigned char>(rest[0]))))
      return part;
  }
  return "";
}

absl::Status Add(const std::string& part, const std::string& path, std::vector<DatasetFile>& files) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    // A pipe could be read only once, and is read for the check and for the upload.
    const bool other = fs::exists(path, error);
    return absl::InvalidArgumentError(
        absl::StrCat(path, other ? ": is no regular file; write the rows into one" : ": there is no such file"));
  }
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
    for (const char* ending : {".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"}) {
      const std::string path = (fs::path(folder) / absl::StrCat(part, ending)).string();
      std::error_code error;
      if (fs::exists(path, error)) LUTHIER_RETURN_IF_ERROR(Add(part, path, files));
    }
  }
  if (files.size() > before) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      folder, ": holds no train.jsonl, validation.jsonl or test.jsonl (or .parquet); give the files themselves"));
}

}  // namespace

void AddDatasetPaths(CLI::App& command, DatasetPaths& paths) {
  command.add_option("PATH", paths.paths,
                     "Folder with train.jsonl, validation.jsonl, test.jsonl or .parquet; or files");
  command.add_option("--train", paths.train, "File of training rows")->type_name("FILE");
  command.add_option("--validation", paths.validation, "File of validation rows")->type_name("FILE");
  command.add_option("--test", paths.test, "File of held-out rows")->type_name("FILE");
}

std::vector<std::string> RowsLeftOut(const DatasetPaths& given) {
  std::vector<std::string> left_out;
  for (const std::string& folder : given.paths) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {  // none of what is no folder
      const std::string name = entry.path().filename().string();
      const size_t ending = std::min(name.find(".jsonl"), name.find(".parquet"));
      const bool is_part = std::find(std::begin(kParts), std::end(kParts), name.substr(0, ending)) != std::end(kParts);
      if (ending != std::string::npos && !is_part) left_out.push_back(entry.path().string());
    }
  }
  std::sort(left_out.begin(), left_out.end());
  return left_out;
}

void WarnOfRowsLeftOut(CommandContext& context, const DatasetPaths& given) {
  for (const std::string& path : RowsLeftOut(given)) {
    context.Say(
        absl::StrCat("warning: ", path, " is left out; --train, --validation or --test takes a file of any name"));
  }
}

absl::StatusOr<std::vector<DatasetFile>> FindDatasetFiles(const DatasetPaths& given) {
  std::vector<DatasetFile> files;
  for (const std::string& path : given.paths) {
    std::error_code error;
    if (fs::is_directory(path, error)) {
      LUTHIER_RETURN_IF_ERROR(AddFolder(path, files));
      continue;
    }
    std::string part = PartOfName(path);
    const bool alone = given.paths.size() == 1 && given.train.empty();
    if (part.empty() && alone) part = "train";
    if (part.empty() && fs::exists(path, error)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": is it train, validation or test? Say so with --train, --validation or --test"));
    }
    LUTHIER_RETURN_IF_ERROR(Add(part, path, files));
  }
  if (!given.train.empty()) LUTHIER_RETURN_IF_ERROR(Add("train", given.train, files));
  if (!given.validation.empty()) LUTHIER_RETURN_IF_ERROR(Add("validation", given.validation, files));
  if (!given.test.empty()) LUTHIER_RETURN_IF_ERROR(Add("test", given.test, files));
  if (files.empty())
    return absl::InvalidArgumentError("no files; give a folder with train.jsonl, or files of JSON lines or Parquet");
  std::stable_sort(files.begin(), files.end(), [](const DatasetFile& a, const DatasetFile& b) {
    const auto rank = [](const std::string& part) {
      return std::find(std::begin(kParts), std::end(kParts), part) - std::begin(kParts);
    };
    return rank(a.part) < rank(b.part);
  });
  return files;
}

}  // namespace luthier
