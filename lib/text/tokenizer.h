// Text to token ids and back, with the Rust crate `tokenizers` that wrote the tokenizer.json files.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/text/json.h"

struct LuthierTokenizer;  // owned by the Rust crate, see rust/src/lib.rs

namespace luthier {

// Half-open range of bytes of a UTF-8 text.
struct TextSpan {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const TextSpan&) const = default;
};

struct Encoding {
  std::vector<int32_t> ids;
  // The bytes of the text that each token stands for. Tokens that share one character (byte-level
  // BPE) all have that character's span; added special tokens (BOS) have {0, 0}.
  std::vector<TextSpan> offsets;
};

// The names a base model gives to its special tokens; empty where it has none.
struct SpecialTokens {
  std::string bos, eos, pad, unk;
};

// Immutable once loaded: any number of threads may use one tokenizer at the same time.
class Tokenizer {
 public:
  // Loads `folder`/tokenizer.json as transformers does with the files beside it (all optional, see
  // docs/text.md), and from generation_config.json and config.json which other tokens end a text.
  // NOT_FOUND without tokenizer.json, INVALID_ARGUMENT if a file cannot be read as what it should
  // be; the message names the file.
  static absl::StatusOr<Tokenizer> Load(const std::string& folder);

  // `with_special_tokens`: adds what the post-processor of the file adds (BOS in Llama). A text
  // that a chat template rendered has them already and must be encoded without. INVALID_ARGUMENT if
  // `text` is not UTF-8.
  absl::StatusOr<Encoding> Encode(std::string_view text, bool with_special_tokens) const;
  // `skip_special_tokens`: leaves out special tokens such as BOS and <|im_end|>. INVALID_ARGUMENT
  // for an id out of range.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // Number of ids, added tokens included.
  int64_t vocab_size() const;
  std::optional<int32_t> TokenToId(std::string_view token) const;
  std::optional<std::string> IdToToken(int32_t id) const;
  // True if the file marks the token as special (control tokens, which users do not see).
  bool IsSpecial(int32_t id) const;

  const SpecialTokens& special_tokens() const { return special_tokens_; }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // Ids at which generation stops: EOS, and every `eos_token_id` of generation_config.json and
  // config.json. May be empty.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 private:
  struct Free {
    void operator()(LuthierTokenizer* tokenizer) const;
  };
  explicit Tokenizer(LuthierTokenizer* handle) : handle_(handle) {}
  absl::Status ReadSpecialTokens(const std::string& folder, const OrderedJson& files);

  std::unique_ptr<LuthierTokenizer, Free> handle_;
  SpecialTokens special_tokens_;
  std::optional<int32_t> bos_id_, eos_id_;
  std::vector<int32_t> stop_ids_;
};

}  // namespace luthier
