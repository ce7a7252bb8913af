#include "lib/dataset/encode.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/assistant_turns.h"

namespace luthier {
namespace {

absl::Status Refuse(std::string_view message) { return absl::InvalidArgumentError(std::string(message)); }

// For a row that has no trained token: what its author has to change.
std::string_view WhyNothingIsTrained(const Row& row) {
  if (std::holds_alternative<TokenRow>(row.content)) {
    return "no token of this row is trained: `labels` is -100 everywhere behind the first token, which nothing "
           "predicts";
  }
  const auto* chat = std::get_if<ChatRow>(&row.content);
  if (chat != nullptr) {
    bool all_context = true, last_is_context = false;
    for (const OrderedJson& message : chat->messages) {
      if (!IsAssistant(message)) continue;
      last_is_context = IsContextOnly(message);
      all_context = all_context && last_is_context;
    }
    if (all_context) {
      return "no token of this row is trained: every assistant message has weight 0; give one of them weight 1, or "
             "leave the row out";
    }
    if (last_is_context) {
      return "no token of this row is trained: its last assistant message has weight 0 and training.loss_on: "
             "completion trains only "
             "that one; give it weight 1, or use training.loss_on: assistant";
    }
  }
  return "no token of this row is trained: every answer in it is empty";
}

// Encodes a text that no template has framed: BOS in front if the tokenizer adds one, never twice,
// and nothing behind.
absl::StatusOr<std::vector<int32_t>> EncodePlain(const Tokenizer& tokenizer, std::string_view text) {
  LUTHIER_ASSIGN_OR_RETURN(Encoding encoding, tokenizer.Encode(text, /*with_special_tokens=*/true));
  std::vector<int32_t> ids = std::move(encoding.ids);
  const std::optional<int32_t> bos = tokenizer.bos_id(), eos = tokenizer.eos_id();
  if (bos && ids.size() >= 2 && ids[0] == *bos && ids[1] == *bos) ids.erase(ids.begin());
  const bool ends_by_itself = eos && text.ends_with(tokenizer.special_tokens().eos);
  if (eos && ids.size() > 1 && ids.back() == *eos && !ends_by_itself) ids.pop_back();
  return ids;
}

void AppendEos(const Tokenizer& tokenizer, std::vector<int32_t>& ids) {
  const std::optional<int32_t> eos = tokenizer.eos_id();
  if (eos && (ids.empty() || ids.back() != *eos)) ids.push_back(*eos);
}

// Where a token holds the end of a prompt and the start of an answer, the two are encoded apart, as the model will be
// given the prompt alone. Refuses that if it stands for another text: some tokenizers put a space in front of each
// part.
absl::Status CheckSameText(const Tokenizer& tokenizer, const std::vector<int32_t>& whole,
                           const std::vector<int32_t>& parts) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string whole_text, tokenizer.Decode(whole, /*skip_special_tokens=*/false));
  LUTHIER_ASSIGN_OR_RETURN(const std::string parts_text, tokenizer.Decode(parts, /*skip_special_tokens=*/false));
  if (whole_text == parts_text) return absl::OkStatus();
  return Refuse(
      "the first token of an answer holds the end of the prompt as well; start the answer with another character, or "
      "end the prompt differently");
}

// Ends a span at the token that closes the turn: the line break that many templates put behind it
// is not the model's to say.
TextSpan UpToEndOfTurn(const Tokenizer& tokenizer, const Encoding& encoding, std::string_view text, TextSpan span) {
  for (size_t t = encoding.ids.size(); t-- > 0;) {
    const TextSpan offset = encoding.offsets[t];
    if (offset.end > span.end || offset.end <= offset.begin) continue;
    if (offset.begin < span.begin) break;
    if (tokenizer.IsSpecial(encoding.ids[t])) return {span.begin, offset.end};
    if (!IsBlank(Slice(text, offset))) break;
  }
  return span;
}

// The part of a span that has tokens behind the first one, which is never trained; empty if there is none. MaskOfSpans
// marks, as transformers does, all that comes behind an answer whose last byte has no token: other people's turns.
TextSpan PartWithTokens(const Encoding& encoding, TextSpan span) {
  TextSpan part{span.end, span.begin};
  for (size_t t = 1; t < encoding.offsets.size(); ++t) {
    const TextSpan offset = encoding.offsets[t];
    if (offset.begin >= offset.end || offset.end <= span.begin || span.end <= offset.begin) continue;
    part.begin = std::min(part.begin, std::max(offset.begin, span.begin));
    part.end = std::max(part.end, std::min(offset.end, span.end));
  }
  return part;
}

// Cuts to the last answer and what is directly in front of it; an answer that is too long by itself keeps its start.
void CutToAnswer(int64_t max_length, bool has_bos, Example& example) {
  const int32_t first_id = example.ids[0];
  const auto& trained = example.trained;
  const auto answer_end = static_cast<int64_t>(trained.rend() - std::find(trained.rbegin(), trained.rend(), 1));
  int64_t answer_begin = answer_end;
  while (answer_begin > 0 && trained[answer_begin - 1]) --answer_begin;
  const int64_t kept_in_front = has_bos ? 1 : 0;
  const int64_t room = max_length - kept_in_front;
  // At least one token in front of the answer: its first token has to be predicted from something.
  const int64_t begin = std::max(kept_in_front, std::min(answer_end - room, answer_begin - 1));
  const int64_t end = std::min(begin + room, static_cast<int64_t>(trained.size()));
  example.ids.assign(example.ids.begin() + begin, example.ids.begin() + end);
  example.trained.assign(example.trained.begin() + begin, example.trained.begin() + end);
  if (begin > kept_in_front) example.trained[0] = 0;  // what it would be predicted from is cut away
  if (has_bos) {
    example.ids.insert(example.ids.begin(), first_id);
    example.trained.insert(example.trained.begin(), 0);
  }
}

}  // namespace

EncodeOptions EncodeOptionsOf(std::string_view loss_on, std::string_view too_long, int64_t max_length) {
  EncodeOptions options;
  if (loss_on == "all") options.loss_on = EncodeOptions::LossOn::kAll;
  if (loss_on == "completion") options.loss_on = EncodeOptions::LossOn::kCompletion;
  if (too_long == "truncate") options.too_long = EncodeOptions::TooLong::kTruncate;
  if (too_long == "keep_answer") options.too_long = EncodeOptions::TooLong::kKeepAnswer;
  if (too_long == "drop") options.too_long = EncodeOptions::TooLong::kDrop;
  options.max_length = max_length;
  return options;
}

int64_t Example::TrainedTokens() const { return std::count(trained.begin(), trained.end(), uint8_t{1}); }

std::vector<uint8_t> MaskOfSpans(const Encoding& encoding, const std::vector<TextSpan>& spans) {
  const auto count = static_cast<int64_t>(encoding.ids.size());
  const auto token_at = [&](int64_t byte) -> int64_t {
    for (int64_t t = 0; t < count; ++t) {
      if (encoding.offsets[t].begin <= byte && byte < encoding.offsets[t].end) return t;
    }
    return -1;
  };
  std::vector<uint8_t> mask(count, 0);
  for (const TextSpan span : spans) {
    const int64_t first = token_at(span.begin);
    if (first < 0) break;
    const int64_t last = token_at(span.end - 1);
    const int64_t end = last > 0 ? last + 1 : count;
    for (int64_t t = first; t < end; ++t) mask[t] = 1;
  }
  return mask;
}

RowEncoder::RowEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat_template, EncodeOptions options)
    : tokenizer_(tokenizer), chat_template_(chat_template), options_(options), stop_ids_(tokenizer.stop_ids()) {
  if (chat_template_ == nullptr) return;
  // What follows an answer in a rendered turn closes it. A template that refuses this conversation
  // adds no stop id.
  constexpr std::string_view kAnswer = "answer";
  const absl::StatusOr<RenderedChat> turn = chat_template_->Render(
      {{{"role", "user"}, {"content", "question"}}, {{"role", "assistant"}, {"content", kAnswer}}}, {});
  if (!turn.ok() || turn->text.rfind(kAnswer) == std::string::npos) return;
  const auto behind = static_cast<int64_t>(turn->text.rfind(kAnswer) + kAnswer.size());
  const absl::StatusOr<Encoding> encoding = tokenizer_.Encode(turn->text, /*with_special_tokens=*/false);
  if (!encoding.ok()) return;
  for (size_t t = 0; t < encoding->ids.size(); ++t) {
    const int32_t id = encoding->ids[t];
    if (encoding->offsets[t].begin < behind || !tokenizer_.IsSpecial(id)) continue;
    if (std::find(stop_ids_.begin(), stop_ids_.end(), id) == stop_ids_.end()) stop_ids_.push_back(id);
    return;
  }
}

absl::StatusOr<Example> RowEncoder::Encode(const Row& row) const {
  absl::StatusOr<Example> example;
  if (const auto* chat = std::get_if<ChatRow>(&row.content)) {
    example = EncodeChat(*chat);
  } else if (const auto* completion = std::get_if<CompletionRow>(&row.content)) {
    example = EncodeCompletion(*completion);
  } else if (const auto* tokens = std::get_if<TokenRow>(&row.content)) {
    example = EncodeTokens(*tokens);
  } else {
    example = EncodeText(std::get<TextRow>(row.content));
  }
  LUTHIER_RETURN_IF_ERROR(example.status());
  example->line = row.line;
  example->unit = row.unit;
  if (!example->trained.empty()) example->trained[0] = 0;
  if (example->TrainedTokens() == 0) return Refuse(WhyNothingIsTrained(row));
  example->full_length = static_cast<int64_t>(example->ids.size());
  LUTHIER_RETURN_IF_ERROR(Shorten(*example));
  return example;
}

absl::Status RowEncoder::Shorten(Example& example) const {
  const auto length = static_cast<int64_t>(example.ids.size());
  if (options_.max_length == 0 || length <= options_.max_length) return absl::OkStatus();
  switch (options_.too_long) {
    case EncodeOptions::TooLong::kRefuse:
      return absl::OutOfRangeError(
          absl::StrCat("the row has ", length, " tokens, training.max_length is ", options_.max_length,
                       "; raise max_length, shorten the row, or set training.too_long: truncate, keep_answer or drop"));
    case EncodeOptions::TooLong::kTruncate:
      example.ids.resize(options_.max_length);
      example.trained.resize(options_.max_length);
      break;
    case EncodeOptions::TooLong::kKeepAnswer:
      CutToAnswer(options_.max_length, tokenizer_.bos_id() == example.ids[0], example);
      break;
    case EncodeOptions::TooLong::kDrop: std::fill(example.trained.begin(), example.trained.end(), 0); break;
  }
  return absl::OkStatus();
}

absl::StatusOr<Example> RowEncoder::EncodeText(const TextRow& row) const {
  Example example;
  LUTHIER_ASSIGN_OR_RETURN(example.ids, EncodePlain(tokenizer_, row.text));
  AppendEos(tokenizer_, example.ids);
  example.trained.assign(example.ids.size(), 1);
  return example;
}

absl::StatusOr<Example> RowEncoder::EncodeTokens(const TokenRow& row) const {
  const auto highest = std::max_element(row.ids.begin(), row.ids.end());
  if (!tokenizer_.IdToToken(*highest)) {
    return Refuse(absl::StrCat("`input_ids[", highest - row.ids.begin(), "]` is ", *highest,
                               ", for which the base model's tokenizer has no token; encode the row with that one"));
  }
  Example example;
  example.ids = row.ids;
  example.trained = row.trained;
  return example;
}

absl::StatusOr<Example> RowEncoder::EncodeCompletion(const CompletionRow& row) const {
  Example example;
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, EncodePlain(tokenizer_, row.prompt));
  LUTHIER_ASSIGN_OR_RETURN(example.ids, EncodePlain(tokenizer_, row.prompt + row.completion));
  // The model will see the prompt alone. Where its last token would merge with the completion, the
  // two are encoded apart.
  const bool prompt_survives =
      example.ids.size() > prompt.size() && std::equal(prompt.begin(), prompt.end(), example.ids.begin());
  if (!prompt_survives) {
    LUTHIER_ASSIGN_OR_RETURN(const Encoding completion, tokenizer_.Encode(row.completion, false));
    std::vector<int32_t> parts = prompt;
    parts.insert(parts.end(), completion.ids.begin(), completion.ids.end());
    LUTHIER_RETURN_IF_ERROR(CheckSameText(tokenizer_, example.ids, parts));
    example.ids = std::move(parts);
  }
  AppendEos(tokenizer_, example.ids);
  example.trained.assign(example.ids.size(), 1);
  if (options_.loss_on != EncodeOptions::LossOn::kAll) {
    std::fill_n(example.trained.begin(), std::min(prompt.size(), example.ids.size()), uint8_t{0});
  }
  return example;
}

absl::StatusOr<Example> RowEncoder::EncodeChat(const ChatRow& row) const {
  if (chat_template_ == nullptr) {
    return Refuse(
        "the row has `messages`, but the base model has no chat template; use prompt/completion or "
        "text rows, "
        "or put a chat_template.jinja into the model's folder");
  }
  LUTHIER_ASSIGN_OR_RETURN(const RenderedChat rendered,
                           RenderPrefix(*chat_template_, row, row.messages.size(), /*add_generation_prompt=*/false));
  Example example;
  if (options_.loss_on == EncodeOptions::LossOn::kAll) {
    LUTHIER_ASSIGN_OR_RETURN(const Encoding whole, tokenizer_.Encode(rendered.text, /*with_special_tokens=*/false));
    example.ids = whole.ids;
    example.trained.assign(whole.ids.size(), 1);
    LUTHIER_RETURN_IF_ERROR(LeaveOutWeightZero(row, rendered, whole, example));
    return example;
  }
  LUTHIER_ASSIGN_OR_RETURN(std::vector<TextSpan> spans,
                           TrainedTurns(*chat_template_, row, rendered,
                                        /*last_only=*/options_.loss_on == EncodeOptions::LossOn::kCompletion));
  const auto erase_empty = [&] { std::erase_if(spans, [](TextSpan span) { return span.begin >= span.end; }); };
  erase_empty();
  LUTHIER_ASSIGN_OR_RETURN(const Encoding encoding, EncodeAround(rendered.text, spans));
  for (TextSpan& span : spans) {
    if (rendered.generation.empty()) span = UpToEndOfTurn(tokenizer_, encoding, rendered.text, span);
    span = PartWithTokens(encoding, span);
  }
  erase_empty();
  example.ids = encoding.ids;
  example.trained = MaskOfSpans(encoding, spans);
  return example;
}

absl::Status RowEncoder::LeaveOutWeightZero(const ChatRow& row, const RenderedChat& rendered, const Encoding& encoding,
                                            Example& example) const {
  for (size_t i = 0; i < row.messages.size(); ++i) {
    if (!IsContextOnly(row.messages[i])) continue;
    LUTHIER_ASSIGN_OR_RETURN(const std::optional<TextSpan> span,
                             TurnDifference(*chat_template_, row, i, rendered, /*opened=*/false));
    if (!span) {
      return Refuse(
          absl::StrCat("messages[", i,
                       "] has weight 0, and the chat template renders it differently when it "
                       "is the last one, so its tokens cannot be told apart; use training.loss_on: assistant, "
                       "or remove the weight"));
    }
    for (size_t t = 0; t < encoding.offsets.size(); ++t) {
      if (encoding.offsets[t].begin < span->end && span->begin < encoding.offsets[t].end) example.trained[t] = 0;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Encoding> RowEncoder::EncodeAround(std::string_view text, const std::vector<TextSpan>& spans) const {
  LUTHIER_ASSIGN_OR_RETURN(Encoding whole, tokenizer_.Encode(text, /*with_special_tokens=*/false));
  std::vector<int64_t> cuts = {0};
  for (const TextSpan span : spans) {
    const bool straddled = std::any_of(whole.offsets.begin(), whole.offsets.end(), [&](TextSpan offset) {
      return offset.begin < span.begin && span.begin < offset.end;
    });
    if (straddled) cuts.push_back(span.begin);
  }
  if (cuts.size() == 1) return whole;
  cuts.push_back(static_cast<int64_t>(text.size()));
  Encoding parts;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    LUTHIER_ASSIGN_OR_RETURN(const Encoding part, tokenizer_.Encode(Slice(text, {cuts[i], cuts[i + 1]}), false));
    parts.ids.insert(parts.ids.end(), part.ids.begin(), part.ids.end());
    for (const TextSpan offset : part.offsets) parts.offsets.push_back({offset.begin + cuts[i], offset.end + cuts[i]});
  }
  LUTHIER_RETURN_IF_ERROR(CheckSameText(tokenizer_, whole.ids, parts.ids));
  return parts;
}

absl::StatusOr<Prompt> RowEncoder::EncodePrompt(const Row& row) const {
  Prompt prompt;
  prompt.line = row.line;
  if (const auto* completion = std::get_if<CompletionRow>(&row.content)) {
    prompt.text = completion->prompt;
    prompt.expected = completion->completion;
    LUTHIER_ASSIGN_OR_RETURN(prompt.ids, EncodePlain(tokenizer_, completion->prompt));
    return prompt;
  }
  const auto* chat = std::get_if<ChatRow>(&row.content);
  if (chat == nullptr) return absl::NotFoundError("a row of text or input_ids has no question and answer");
  if (chat_template_ == nullptr) return Refuse("the row has `messages`, but the base model has no chat template");
  size_t last = chat->messages.size();
  while (last > 0 && !IsAssistant(chat->messages[last - 1])) --last;
  if (last == 0) return Refuse("no message has the role `assistant`");
  const OrderedJson& answer = chat->messages[last - 1];
  LUTHIER_ASSIGN_OR_RETURN(RenderedChat before, RenderPrefix(*chat_template_, *chat, last - 1, true));
  LUTHIER_ASSIGN_OR_RETURN(const RenderedChat with, RenderPrefix(*chat_template_, *chat, last, false));
  LUTHIER_ASSIGN_OR_RETURN(Encoding encoding, tokenizer_.Encode(before.text, /*with_special_tokens=*/false));
  prompt.ids = std::move(encoding.ids);
  if (with.text.starts_with(before.text)) {
    // As the trainer decodes what the model generates: up to the end of the turn, without special
    // tokens.
    LUTHIER_ASSIGN_OR_RETURN(Encoding rest,
                             tokenizer_.Encode(std::string_view(with.text).substr(before.text.size()), false));
    const auto end = std::find_first_of(rest.ids.begin(), rest.ids.end(), stop_ids_.begin(), stop_ids_.end());
    rest.ids.erase(end, rest.ids.end());
    LUTHIER_ASSIGN_OR_RETURN(prompt.expected, tokenizer_.Decode(rest.ids, /*skip_special_tokens=*/true));
  } else {
    OrderedJson expected = answer.value("tool_calls", OrderedJson());
    if (expected.is_null()) expected = answer.value("content", OrderedJson());
    prompt.expected = expected.is_string() ? expected.get<std::string>() : expected.dump();
  }
  prompt.text = std::move(before.text);
  return prompt;
}

absl::StatusOr<std::vector<int32_t>> RowEncoder::EncodeMessages(const OrderedJson& messages,
                                                                const OrderedJson& tools) const {
  if (chat_template_ != nullptr) {
    LUTHIER_ASSIGN_OR_RETURN(const RenderedChat rendered,
                             chat_template_->Render(messages, {.add_generation_prompt = true, .tools = tools}));
    LUTHIER_ASSIGN_OR_RETURN(Encoding encoding, tokenizer_.Encode(rendered.text, /*with_special_tokens=*/false));
    return std::move(encoding.ids);
  }
  std::string text;
  for (const OrderedJson& message : messages) {
    if (!message.is_object() || !message.contains("content") || !message["content"].is_string()) {
      return Refuse("every message needs a text as `content`");
    }
    absl::StrAppend(&text, text.empty() ? "" : "\n", message["content"].get<std::string>());
  }
  return EncodePlain(tokenizer_, text);
}

}  // namespace luthier
