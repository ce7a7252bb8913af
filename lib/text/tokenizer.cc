#include "lib/text/tokenizer.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/text/json.h"
#include "lib/text/json_file.h"
#include "lib/text/rust_api.h"
#include "lib/text/tokenizer_files.h"

namespace luthier {
namespace {

void AddIds(const OrderedJson& config, std::vector<int32_t>& ids) {
  const auto found = config.find("eos_token_id");
  if (found == config.end()) return;
  const OrderedJson list = found->is_array() ? *found : OrderedJson::array({*found});
  for (const OrderedJson& id : list) {
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() > kMost) continue;
    const auto value = id.get<int32_t>();
    if (std::find(ids.begin(), ids.end(), value) == ids.end()) ids.push_back(value);
  }
}

}  // namespace

void Tokenizer::Free::operator()(LuthierTokenizer* tokenizer) const { luthier_tokenizer_free(tokenizer); }

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  const absl::StatusOr<std::string> json = ReadTextFile(path);
  if (absl::IsNotFound(json.status())) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     ": not found; give a model folder that has one, as "
                     "transformers writes it: AutoTokenizer.from_pretrained(…).save_pretrained(…)"));
  }
  LUTHIER_RETURN_IF_ERROR(json.status());
  LUTHIER_ASSIGN_OR_RETURN(const OrderedJson files, ReadTokenizerFiles(folder));
  const std::string files_text = files.dump();
  LuthierTokenizer* handle = nullptr;
  LuthierBuffer error{};
  if (luthier_tokenizer_new(json->data(), json->size(), files_text.data(), files_text.size(), &handle, &error) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, " ", TakeText(error)));
  }
  Tokenizer tokenizer(handle);
  LUTHIER_RETURN_IF_ERROR(tokenizer.ReadSpecialTokens(folder, files));
  return tokenizer;
}

absl::Status Tokenizer::ReadSpecialTokens(const std::string& folder, const OrderedJson& files) {
  LUTHIER_ASSIGN_OR_RETURN(const OrderedJson named, NamedTokens(files));
  special_tokens_ = {.bos = named.value("bos_token", ""),
                     .eos = named.value("eos_token", ""),
                     .pad = named.value("pad_token", ""),
                     .unk = named.value("unk_token", "")};
  if (!special_tokens_.bos.empty()) bos_id_ = TokenToId(special_tokens_.bos);
  if (!special_tokens_.eos.empty()) eos_id_ = TokenToId(special_tokens_.eos);
  if (eos_id_) stop_ids_.push_back(*eos_id_);
  for (const char* name : {"generation_config.json", "config.json"}) {
    const absl::StatusOr<OrderedJson> config = ReadJsonObject(absl::StrCat(folder, "/", name));
    if (absl::IsNotFound(config.status())) continue;
    LUTHIER_RETURN_IF_ERROR(config.status());
    AddIds(*config, stop_ids_);
  }
  if (!eos_id_ && !stop_ids_.empty()) eos_id_ = stop_ids_.front();
  return absl::OkStatus();
}

absl::StatusOr<Encoding> Tokenizer::Encode(std::string_view text, bool with_special_tokens) const {
  LuthierEncoding raw{};
  LuthierBuffer error{};
  if (luthier_tokenizer_encode(handle_.get(), text.data(), text.size(), with_special_tokens, &raw, &error) != 0) {
    return absl::InvalidArgumentError(TakeText(error));
  }
  Encoding encoding;
  encoding.ids.assign(raw.ids, raw.ids + raw.len);
  encoding.offsets.reserve(raw.len);
  for (size_t i = 0; i < raw.len; ++i) encoding.offsets.push_back({raw.offsets[2 * i], raw.offsets[2 * i + 1]});
  luthier_encoding_free(raw);
  return encoding;
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  for (const int32_t id : ids) {
    if (id < 0) return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is negative"));
  }
  LuthierBuffer text{}, error{};
  if (luthier_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special_tokens, &text, &error) != 0) {
    return absl::InvalidArgumentError(TakeText(error));
  }
  return TakeText(text);
}

int64_t Tokenizer::vocab_size() const { return luthier_tokenizer_vocab_size(handle_.get()); }

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const int64_t id = luthier_tokenizer_token_to_id(handle_.get(), token.data(), token.size());
  if (id < 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  LuthierBuffer token{};
  if (!luthier_tokenizer_id_to_token(handle_.get(), id, &token)) return std::nullopt;
  return TakeText(token);
}

bool Tokenizer::IsSpecial(int32_t id) const { return luthier_tokenizer_is_special(handle_.get(), id); }

}  // namespace luthier
