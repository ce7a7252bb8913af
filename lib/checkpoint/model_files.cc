#include "lib/checkpoint/model_files.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/text/template_source.h"

namespace luthier {

bool BelongsToModel(absl::string_view path) {
  const bool named = absl::ConsumePrefix(&path, absl::StrCat(kNamedTemplates, "/"));
  if (absl::StrContains(path, '/')) return false;
  if (absl::EndsWith(path, ".jinja")) return true;
  return !named && (absl::EndsWith(path, ".safetensors") || absl::EndsWith(path, ".json") || IsForConverters(path));
}

bool IsForConverters(absl::string_view path) { return path == "tokenizer.model" || path == "merges.txt"; }

}  // namespace luthier
