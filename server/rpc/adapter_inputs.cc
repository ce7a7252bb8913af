#include "server/rpc/adapter_inputs.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "lib/base/status_macros.h"
#include "lib/plan/adapter_plan.h"
#include "server/rpc/validate.h"

namespace luthier {

absl::StatusOr<v1::AttemptInput> StartAdapter(Store& store, ArtifactStore& artifacts, const std::string& base_model,
                                              LoraSpec& lora) {
  const auto refuse = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat("lora.start_from: ", lora.start_from, " ", why));
  };
  LUTHIER_ASSIGN_OR_RETURN(const VersionName name, ParseVersionName(lora.start_from));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store.Versions(name.model));
  const auto version = std::find_if(versions.begin(), versions.end(),
                                    [&](const ModelVersion& one) { return one.version == name.number; });
  if (version == versions.end()) return refuse("does not exist any more; give another version");
  v1::ArtifactStored stored;
  stored.ParseFromString(version->payload);
  if (stored.kind() != v1::ModelVersion::ADAPTER) return refuse("is no adapter; give the version of a LoRA job");
  if (version->base_model != base_model) {
    return refuse(absl::StrCat("is an adapter of baseModels/", version->base_model, ", and the job tunes baseModels/",
                               base_model, "; give a version that was trained on that"));
  }
  v1::AttemptInput input;
  input.set_role("start_adapter");
  for (const v1::ModelFile& file : stored.files()) {
    if (file.path() != kAdapterConfigFile && file.path() != kAdapterWeightsFile) continue;
    *input.add_files() = file;
  }
  if (input.files_size() != 2) return refuse("lacks its configuration or its weights; give another version");
  LUTHIER_ASSIGN_OR_RETURN(const AdapterConfig adapter,
                           ConfigOfAdapter(absl::StrCat("lora.start_from: ", lora.start_from), input, artifacts));
  TakeShapeOf(adapter, lora);
  return input;
}

absl::StatusOr<v1::AttemptInput> AdapterToExport(const v1::ModelVersion& version) {
  v1::AttemptInput input;
  input.set_role("start_adapter");
  int needed = 2;
  for (const v1::ModelFile& file : version.files()) {
    const bool of_adapter = file.path() == kAdapterConfigFile || file.path() == kAdapterWeightsFile;
    if (of_adapter) --needed;
    if (of_adapter || absl::EndsWith(file.path(), ".jinja")) *input.add_files() = file;
  }
  if (needed == 0) return input;
  return absl::InvalidArgumentError(absl::StrCat("model_export.model_version: ", version.name(),
                                                 " lacks its configuration or its weights; give another version"));
}

absl::StatusOr<AdapterConfig> ConfigOfAdapter(const std::string& named_by, const v1::AttemptInput& adapter,
                                              ArtifactStore& artifacts) {
  const auto file = std::find_if(adapter.files().begin(), adapter.files().end(),
                                 [](const v1::ModelFile& one) { return one.path() == kAdapterConfigFile; });
  LUTHIER_ASSIGN_OR_RETURN(const LocalBlob config, artifacts.MakeLocal(file->sha256()));
  absl::StatusOr<AdapterConfig> read = ReadAdapterConfigFile(config.path);
  if (!absl::IsInvalidArgument(read.status())) return read;
  // Each line is a violation, and none shows where the server keeps the file.
  constexpr const char* kRemedy = "; give another version";
  const std::string violations =
      absl::StrReplaceAll(read.status().message(),
                          {{config.path, kAdapterConfigFile}, {"\n", absl::StrCat(kRemedy, "\n", named_by, ": ")}});
  return absl::InvalidArgumentError(absl::StrCat(named_by, ": ", violations, kRemedy));
}

}  // namespace luthier
