// A row as tokens and loss mask. Every promise about masks (EOS trained, one BOS, answers not cut
// away) is kept here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/dataset/rows.h"
#include "lib/text/chat_template.h"
#include "lib/text/tokenizer.h"

namespace luthier {

// One row, ready for training. Labels are not shifted here: where trained[t] is 1, the loss is that
// of predicting ids[t] from ids[0..t). trained[0] is always 0, since nothing predicts the first
// token.
struct Example {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  // 0 or 1, same length as ids
  int64_t line = 0;              // in its file, 1-based
  int64_t full_length = 0;       // tokens before a cut at max_length
  int32_t file = 0;              // index among the files that were loaded together
  RowUnit unit = RowUnit::kLine;

  int64_t TrainedTokens() const;
};

// The beginning of a row up to where the model has to answer, and the answer it should give.
struct Prompt {
  std::vector<int32_t> ids;  // ends with the opening of the assistant turn
  std::string text;          // `ids` as text, special tokens included
  std::string expected;      // as text, without the token that ends the turn
  int64_t line = 0;
};

struct EncodeOptions {
  enum class LossOn {
    kAssistant,  // the assistant's turns; completions of prompt/completion rows; all of text rows
    kAll,        // every token but those of messages with weight 0
    kCompletion  // only the last assistant turn of a conversation
  };
  enum class TooLong {
    kRefuse,      // an error that names line, length and remedy
    kTruncate,    // keep the start of the row
    kKeepAnswer,  // keep its last answer and as much as fits of what is directly in front of it, behind BOS if it has
                  // one
    kDrop         // leave the row out
  };
  LossOn loss_on = LossOn::kAssistant;  // rows of input_ids say it themselves
  TooLong too_long = TooLong::kRefuse;
  int64_t max_length = 0;  // tokens of a row; 0: no limit
};

// From the words of a job file: `loss_on` is assistant, all or completion, `too_long` refuse, truncate, keep_answer or
// drop; other words read as the first.
EncodeOptions EncodeOptionsOf(std::string_view loss_on, std::string_view too_long, int64_t max_length);

// Encodes the rows of one job. Holds references: tokenizer and template must outlive it. Const use
// from several threads is safe.
class RowEncoder {
 public:
  // `chat_template` may be null; rows with messages are then refused.
  RowEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat_template, EncodeOptions options);

  // INVALID_ARGUMENT (without file and line): the template refuses the row, the assistant's turns
  // cannot be told apart, no token is trained, or the row is too long (OUT_OF_RANGE). A row that is too long may come
  // back without a trained token: the caller drops and counts it.
  absl::StatusOr<Example> Encode(const Row& row) const;
  // What Encode does last to an example that is longer than options().max_length. Errors: OUT_OF_RANGE if such rows are
  // refused.
  absl::Status Shorten(Example& example) const;

  // For scoring by generation: everything before the last assistant turn, or the prompt of a
  // prompt/completion row. NOT_FOUND if the row has no question and answer (text, input_ids);
  // INVALID_ARGUMENT if the template refuses what is in front of the answer.
  absl::StatusOr<Prompt> EncodePrompt(const Row& row) const;

  // A conversation that a user has with the model: `messages` and the opening of the assistant's
  // turn; without a chat template the plain text of the messages, behind BOS if the tokenizer adds
  // one.
  absl::StatusOr<std::vector<int32_t>> EncodeMessages(const OrderedJson& messages,
                                                      const OrderedJson& tools = nullptr) const;

  // Ids at which a generated answer ends: those of the tokenizer and the one with which the
  // template closes an assistant turn.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  const EncodeOptions& options() const { return options_; }

 private:
  absl::StatusOr<Example> EncodeChat(const ChatRow& row) const;
  absl::StatusOr<Example> EncodeCompletion(const CompletionRow& row) const;
  absl::StatusOr<Example> EncodeText(const TextRow& row) const;
  absl::StatusOr<Example> EncodeTokens(const TokenRow& row) const;
  absl::Status LeaveOutWeightZero(const ChatRow& row, const RenderedChat& rendered, const Encoding& encoding,
                                  Example& example) const;
  absl::StatusOr<Encoding> EncodeAround(std::string_view text, const std::vector<TextSpan>& spans) const;

  const Tokenizer& tokenizer_;
  const ChatTemplate* chat_template_;
  EncodeOptions options_;
  std::vector<int32_t> stop_ids_;
};

// Marks the tokens of each span as transformers' `return_assistant_tokens_mask` does: from the
// token that holds the first byte to the token that holds the last one. Returns one 0 or 1 for each
// token.
std::vector<uint8_t> MaskOfSpans(const Encoding& encoding, const std::vector<TextSpan>& spans);

}  // namespace luthier
