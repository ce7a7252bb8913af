#include "lib/text/tokenizer_files.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/text/json_file.h"
#include "lib/text/rust_api.h"

namespace luthier {

absl::StatusOr<OrderedJson> ReadTokenizerFiles(const std::string& folder) {
  OrderedJson files = OrderedJson::object();
  for (const char* name : {"tokenizer_config", "special_tokens_map", "added_tokens", "config"}) {
    absl::StatusOr<OrderedJson> file = ReadJsonObject(absl::StrCat(folder, "/", name, ".json"));
    if (absl::IsNotFound(file.status())) file = OrderedJson();
    LUTHIER_RETURN_IF_ERROR(file.status());
    files[name] = *std::move(file);
  }
  const absl::StatusOr<std::string> tokenizer = ReadTextFile(folder + "/tokenizer.json");
  files["byte_level"] = tokenizer.ok() && tokenizer->find("\"ByteLevel\"") != std::string::npos;
  return files;
}

absl::StatusOr<OrderedJson> NamedTokens(const OrderedJson& files) {
  const std::string text = files.dump();
  LuthierBuffer named{};
  LuthierBuffer error{};
  if (luthier_named_tokens(text.data(), text.size(), &named, &error) != 0) {
    return absl::InvalidArgumentError(TakeText(error));
  }
  return OrderedJson::parse(TakeText(named));
}

}  // namespace luthier
