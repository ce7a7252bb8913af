#include "client/cli/model_files.h"

#include "absl/strings/str_cat.h"
#include "client/cli/model_names.h"
#include "client/cli/output.h"
#include "client/cli/text.h"
#include "client/lib/model_download.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {

int64_t BytesOf(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files) {
  int64_t bytes = 0;
  for (const v1::ModelFile& file : files) bytes += file.size_bytes();
  return bytes;
}

std::string KindWord(v1::ModelVersion::Kind kind) {
  if (kind == v1::ModelVersion::FULL_MODEL) return "full model";
  return kind == v1::ModelVersion::GGUF_ADAPTER ? "GGUF adapter" : "adapter";
}

std::string FactsText(const v1::BaseModel& model) {
  return absl::StrCat(model.model_type(), ", ", FormatCount(model.parameters()), " parameters in ", model.dtype(),
                      ", context of ", FormatCount(model.context_length()), " tokens");
}

absl::Status WithBaseModelNamed(const absl::Status& status, Client& client, const std::string& given,
                                const std::string& remedy) {
  if (!absl::IsNotFound(status) || !client.GetBaseModel(FullName("baseModels", given)).ok()) return status;
  return absl::NotFoundError(absl::StrCat("'", given, "' is a base model; ", remedy));
}

absl::Status DownloadVersion(CommandContext& context, Client& client, const std::string& name,
                             const std::string& wanted_folder) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version, client.GetModelVersion(name));
  const std::string folder = wanted_folder.empty() ? ShortName(ModelOf(version.name())) : wanted_folder;
  LUTHIER_RETURN_IF_ERROR(DownloadFolder(client, ToRemoteFolder(version), folder, context.ShowTransfer("downloading")));
  if (context.ForPrograms()) {
    nlohmann::json out = MessageToJson(version);
    out["folder"] = folder;
    context.PrintForPrograms(out);
    return absl::OkStatus();
  }
  context.Say(absl::StrCat(version.name(), ", ", KindWord(version.kind()), " for ", ShortName(version.base_model()),
                           ", ", FormatBytes(BytesOf(version.files())), ", verified"));
  context.out() << folder << std::endl;
  return absl::OkStatus();
}

}  // namespace luthier
