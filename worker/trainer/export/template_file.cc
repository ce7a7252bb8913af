#include "worker/trainer/export/template_file.h"

#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/text/json_file.h"
#include "lib/text/template_source.h"

namespace luthier {

absl::Status ExportTemplate(const std::string& source, const std::string& date, const std::string& base_folder,
                            const std::string& folder) {
  std::string text = source;
  if (text.empty() && !date.empty()) {
    absl::StatusOr<std::string> of_base = ReadTemplateSource(base_folder);
    if (!of_base.ok() && !absl::IsNotFound(of_base.status())) return of_base.status();
    text = of_base.value_or("");
  }
  if (text.empty()) return absl::OkStatus();
  if (!date.empty()) text = WithPinnedDate(text, date);
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(folder + "/chat_template.jinja", text));
  // Readers that do not know the file take it from here.
  const std::string path = folder + "/tokenizer_config.json";
  absl::StatusOr<OrderedJson> config = ReadJsonObject(path);
  if (absl::IsNotFound(config.status())) return absl::OkStatus();  // an adapter has no tokenizer of its own
  LUTHIER_RETURN_IF_ERROR(config.status());
  (*config)["chat_template"] = text;
  return WriteFileDurably(path, config->dump(2) + "\n");
}

}  // namespace luthier
