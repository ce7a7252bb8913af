#include "worker/trainer/export/export_place.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/text/template_source.h"
#include "worker/trainer/export/export.h"
#include "worker/trainer/train/events.h"
#include "worker/trainer/train/row_losses.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr char kUnfinished[] = ".unfinished-";

// Absolute, without links, `..` or a slash at the end, as far as it exists.
fs::path Resolved(const std::string& path) {
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) resolved = fs::absolute(path).lexically_normal();
  return resolved.has_filename() ? resolved : resolved.parent_path();
}

bool IsOrHolds(const fs::path& outer, const fs::path& inner) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

bool IsExportedFile(const fs::directory_entry& entry) {
  static const std::set<std::string> names = [] {
    std::set<std::string> all = {kAdapterConfigFile, kConfigFile, kGenerationConfigFile, kWeightsIndexFile};
    all.insert(std::begin(kTextFiles), std::end(kTextFiles));
    return all;
  }();
  if (entry.is_symlink() || !entry.is_regular_file()) return false;
  if (entry.path().extension() != ".safetensors") return names.contains(entry.path().filename());
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(entry.path());
  if (!file.ok()) return false;
  const auto producer = file->metadata().find(kProducerKey);
  return producer != file->metadata().end() && producer->second == kProducer;
}

bool HoldsNothingButTemplates(const fs::path& folder) {
  return std::all_of(fs::directory_iterator(folder), fs::directory_iterator(), [](const fs::directory_entry& entry) {
    return !entry.is_symlink() && entry.is_regular_file() && entry.path().extension() == ".jinja";
  });
}

bool IsExportedFolder(const fs::path& folder) {
  bool weights = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const bool templates = entry.path().filename() == kNamedTemplates && !entry.is_symlink() && entry.is_directory();
    if (templates ? !HoldsNothingButTemplates(entry) : !IsExportedFile(entry)) return false;
    weights = weights || entry.path().extension() == ".safetensors";
  }
  return weights;
}

bool IsExportedGguf(const fs::path& path) {
  const absl::StatusOr<GgufFile> file = ReadGguf(path);
  if (!file.ok()) return false;
  const auto producer = file->metadata.find(absl::StrCat("general.", kProducerKey));
  return producer != file->metadata.end() && producer->second == GgufValue(std::string(kProducer));
}

// Whether nothing is lost if `place` is replaced.
absl::Status CheckReplaceable(const std::string& flag, const fs::path& place) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(place, error))) return absl::OkStatus();
  const bool folder = fs::is_directory(place, error);
  if (folder ? fs::is_empty(place, error) || IsExportedFolder(place) : IsExportedGguf(place)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", place.string(), folder ? " is a folder" : " is a file",
                                                 " with other things than an earlier export, which are never "
                                                 "replaced; give a path where nothing is, or move it away"));
}

}  // namespace

const std::map<std::string, std::string>& SafetensorsMetadata() {
  static const std::map<std::string, std::string> metadata = {{"format", "pt"}, {kProducerKey, kProducer}};
  return metadata;
}

absl::Status CheckExportPlace(const std::string& flag, const std::string& place,
                              const std::vector<ExportInput>& inputs) {
  const fs::path resolved = Resolved(place);
  for (const auto& [input_flag, folder] : inputs) {
    const fs::path input = Resolved(folder);
    if (!IsOrHolds(resolved, input) && !IsOrHolds(input, resolved)) continue;
    const char* relation = resolved == input ? " is" : IsOrHolds(resolved, input) ? " holds" : " lies in";
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", place, relation, " ", input_flag, " ", folder,
                                                   ", which would be overwritten; give another folder"));
  }
  return CheckReplaceable(flag, resolved);
}

absl::Status CheckRunFolder(const std::string& out, const std::string& artifact,
                            const std::vector<ExportInput>& inputs) {
  LUTHIER_RETURN_IF_ERROR(CheckExportPlace("--out", out + "/" + artifact, inputs));
  const fs::path resolved = Resolved(out);
  for (const auto& [flag, folder] : inputs) {
    if (!IsOrHolds(Resolved(folder), resolved)) continue;
    return absl::InvalidArgumentError(absl::StrCat("--out: ", out, " is or lies in ", flag, " ", folder,
                                                   ", which a run must not change; give another folder"));
  }
  std::error_code error;
  if (fs::exists(resolved / kMetricsFile, error)) return absl::OkStatus();  // an earlier start of a run
  for (const char* name : {kCheckpointsFolder, kReportFile, kRowLossesFile}) {
    if (!fs::exists(resolved / name, error)) continue;
    // In the service the folder is the agent's choice: a fault of the node's storage, not of the job.
    return absl::PermissionDeniedError(absl::StrCat("--out: ", out, " holds ", name, ", but no ", kMetricsFile,
                                                    " of a run, so it is not ours to replace; give another folder"));
  }
  return absl::OkStatus();
}

absl::Status WriteExport(const std::string& place,
                         const std::function<absl::Status(const std::string& unfinished)>& write) {
  const fs::path target = Resolved(place);
  LUTHIER_RETURN_IF_ERROR(CheckReplaceable("--out", target));
  LUTHIER_RETURN_IF_ERROR(CreateFolders(target.parent_path()));
  const fs::path unfinished = target.parent_path() / (kUnfinished + target.filename().string());
  std::error_code error;
  fs::remove_all(unfinished, error);
  if (absl::Status status = write(unfinished); !status.ok()) {
    fs::remove_all(unfinished, error);
    return status;
  }
  fs::remove_all(target, error);
  if (!error) fs::rename(unfinished, target, error);
  if (error) return FileError(target, "replace", error.value());
  return SyncFolder(target.parent_path());
}

}  // namespace luthier
