#include "worker/trainer/export/template_file.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/text/json_file.h"

namespace luthier {
namespace {

absl::Status WriteToolTemplate(const std::string& source, const std::string& folder) {
  const std::string templates = absl::StrCat(folder, "/", kNamedTemplates);
  std::error_code error;
  std::filesystem::remove_all(templates, error);
  if (source.empty()) return absl::OkStatus();
  LUTHIER_RETURN_IF_ERROR(CreateFolders(templates));
  return WriteFileDurably(absl::StrCat(templates, "/", kToolUse, ".jinja"), source);
}

OrderedJson InConfig(const TemplateSources& sources) {
  if (sources.tool_use.empty()) return sources.chat;
  return OrderedJson::array(
      {{{"name", "default"}, {"template", sources.chat}}, {{"name", kToolUse}, {"template", sources.tool_use}}});
}

}  // namespace

absl::Status ExportTemplate(const TemplateSources& own, const std::string& date, const std::string& base_folder,
                            const std::string& folder) {
  TemplateSources sources = own;
  if (own.empty() && !date.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(sources, ReadTemplateSources(base_folder));
  }
  if (sources.empty()) return absl::OkStatus();
  if (!date.empty()) {
    for (std::string* source : {&sources.chat, &sources.tool_use})
      if (!source->empty()) *source = WithPinnedDate(*source, date);
  }
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(folder, "/", kTemplateFile), sources.chat));
  LUTHIER_RETURN_IF_ERROR(WriteToolTemplate(sources.tool_use, folder));
  // Readers that do not know the files take them from here.
  const std::string path = folder + "/tokenizer_config.json";
  absl::StatusOr<OrderedJson> config = ReadJsonObject(path);
  if (absl::IsNotFound(config.status())) return absl::OkStatus();  // an adapter has no tokenizer of its own
  LUTHIER_RETURN_IF_ERROR(config.status());
  (*config)["chat_template"] = InConfig(sources);
  return WriteFileDurably(path, config->dump(2) + "\n");
}

}  // namespace luthier
