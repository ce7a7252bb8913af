// The files beside a folder's tokenizer.json that have a say in how it is read.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/text/json.h"

namespace luthier {

// An object with `tokenizer_config`, `special_tokens_map`, `added_tokens` and `config`: the JSON of the file of that
// name, or null without it; and `byte_level`: whether tokenizer.json has a part of that name. rust/src/classes.rs reads
// them as transformers does. INVALID_ARGUMENT if one is not a JSON object.
absl::StatusOr<OrderedJson> ReadTokenizerFiles(const std::string& folder);

// The texts of the tokens that have names (`eos_token`), as transformers gives them to a chat template.
absl::StatusOr<OrderedJson> NamedTokens(const OrderedJson& files);

}  // namespace luthier
