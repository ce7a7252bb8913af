#include "lib/dataset/assistant_turns.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

absl::Status Refuse(std::string_view message) { return absl::InvalidArgumentError(std::string(message)); }

// Without white space around it.
std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  return begin == std::string_view::npos ? "" : text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// Whether `text` begins with the words of a message: its content or its reasoning, which templates put into <think>.
bool BeginsWithWordsOf(const OrderedJson& message, std::string_view text) {
  text = Trimmed(text);
  std::string_view thought = text;
  if (constexpr std::string_view kThink = "<think>"; text.starts_with(kThink)) {
    thought = Trimmed(text.substr(kThink.size()));
  }
  for (const char* field : {"content", "reasoning_content", "reasoning", "thinking"}) {
    const auto found = message.find(field);
    if (found == message.end() || !found->is_string()) continue;
    const std::string_view words = Trimmed(found->get_ref<const std::string&>());
    if (!words.empty() && (text.starts_with(words) || thought.starts_with(words))) return true;
  }
  return false;
}

// The first `count` messages as the template should see them: `weight` is ours.
OrderedJson TemplateMessages(const ChatRow& row, size_t count) {
  OrderedJson messages = OrderedJson::array();
  for (size_t i = 0; i < count; ++i) {
    messages.push_back(row.messages[i]);
    messages.back().erase("weight");
  }
  return messages;
}

absl::StatusOr<std::vector<TextSpan>> SpansByTurnDifference(const ChatTemplate& chat_template, const ChatRow& row,
                                                            const RenderedChat& rendered, bool last_only) {
  std::vector<TextSpan> spans;
  for (size_t i = 0, turn = 0; i < row.messages.size(); ++i) {
    if (!IsAssistant(row.messages[i])) continue;
    ++turn;
    const bool is_last = std::none_of(row.messages.begin() + i + 1, row.messages.end(), IsAssistant);
    if (IsContextOnly(row.messages[i]) || (last_only && !is_last)) {
      spans.push_back({});
      continue;
    }
    LUTHIER_ASSIGN_OR_RETURN(const std::optional<TextSpan> span,
                             TurnDifference(chat_template, row, i, rendered, /*opened=*/true));
    if (!span) {
      return Refuse(absl::StrCat("the chat template renders assistant turn ", turn,
                                 " differently when it is the last one, so its tokens cannot be "
                                 "told apart; use training.loss_on: completion "
                                 "(the last turn only), or a template with {% generation %}"));
    }
    spans.push_back(*span);
  }
  return spans;
}

// A template may put its tags around anything. Each span has to begin with the words of its answer, or to lie within
// what the assistant's turn added to the text.
absl::Status CheckGenerationTags(const ChatTemplate& chat_template, const ChatRow& row, const RenderedChat& rendered) {
  if (!rendered.generation_in_place) {
    return Refuse(
        "the chat template has {% generation %} inside a macro or a {% set %} block, where its place in the text is "
        "not known; give a chat_template with the tags outside, or without them");
  }
  std::vector<size_t> turns;
  for (size_t i = 0; i < row.messages.size(); ++i) {
    if (IsAssistant(row.messages[i])) turns.push_back(i);
  }
  const bool one_a_turn = rendered.generation.size() == turns.size();
  for (size_t s = 0; s < rendered.generation.size(); ++s) {
    const TextSpan span = rendered.generation[s];
    const std::string_view text = Slice(rendered.text, span);
    if (IsBlank(text) || (one_a_turn && BeginsWithWordsOf(row.messages[turns[s]], text))) continue;
    const bool in_a_turn = std::any_of(turns.begin(), turns.end(), [&](size_t turn) {
      const auto added = TurnDifference(chat_template, row, turn, rendered, /*opened=*/true);
      return added.ok() && *added && (*added)->begin <= span.begin && span.end <= (*added)->end;
    });
    if (in_a_turn) continue;
    return Refuse(absl::StrCat(
        "the chat template marks as an answer, with {% generation %}, what is not the words of one: ",
        OrderedJson(std::string(text.substr(0, 60))).dump(-1, ' ', false, OrderedJson::error_handler_t::replace),
        "; give a chat_template whose tags are around the assistant's words only, or one without them"));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsAssistant(const OrderedJson& message) { return message["role"] == "assistant"; }

bool IsContextOnly(const OrderedJson& message) {
  const auto weight = message.find("weight");
  return weight != message.end() && *weight == 0;
}

bool IsBlank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

std::string_view Slice(std::string_view text, TextSpan span) { return text.substr(span.begin, span.end - span.begin); }

absl::StatusOr<RenderedChat> RenderPrefix(const ChatTemplate& chat_template, const ChatRow& row, size_t count,
                                          bool add_generation_prompt) {
  ChatTemplate::RenderOptions options{
      .add_generation_prompt = add_generation_prompt, .tools = row.tools, .variables = row.variables};
  return chat_template.Render(TemplateMessages(row, count), options);
}

absl::StatusOr<std::optional<TextSpan>> TurnDifference(const ChatTemplate& chat_template, const ChatRow& row, size_t i,
                                                       const RenderedChat& rendered, bool opened) {
  RenderedChat before;
  if (i > 0 || opened) {
    LUTHIER_ASSIGN_OR_RETURN(before, RenderPrefix(chat_template, row, i, opened));
  }
  LUTHIER_ASSIGN_OR_RETURN(const RenderedChat with, RenderPrefix(chat_template, row, i + 1, false));
  // Only if the three texts begin alike is what training shows also what the model will see when
  // it answers.
  if (!with.text.starts_with(before.text) || !rendered.text.starts_with(with.text)) return std::optional<TextSpan>();
  return std::optional<TextSpan>(
      TextSpan{static_cast<int64_t>(before.text.size()), static_cast<int64_t>(with.text.size())});
}

absl::StatusOr<std::vector<TextSpan>> TrainedTurns(const ChatTemplate& chat_template, const ChatRow& row,
                                                   const RenderedChat& rendered, bool last_only) {
  std::vector<bool> wanted;  // for each assistant message
  for (const OrderedJson& message : row.messages) {
    if (IsAssistant(message)) wanted.push_back(!IsContextOnly(message));
  }
  if (last_only) std::fill(wanted.begin(), wanted.end() - 1, false);
  const bool every_turn = std::find(wanted.begin(), wanted.end(), false) == wanted.end();
  const bool one_a_turn = rendered.generation.size() == wanted.size();
  std::vector<TextSpan> spans;
  if (one_a_turn || (!rendered.generation.empty() && every_turn)) {
    LUTHIER_RETURN_IF_ERROR(CheckGenerationTags(chat_template, row, rendered));
    if (every_turn) return rendered.generation;
    spans = rendered.generation;
  } else {
    LUTHIER_ASSIGN_OR_RETURN(spans, SpansByTurnDifference(chat_template, row, rendered, last_only));
  }
  std::vector<TextSpan> kept;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (wanted[i]) kept.push_back(spans[i]);
  }
  return kept;
}

}  // namespace luthier
