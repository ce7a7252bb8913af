// Where in a rendered conversation the words of the assistant stand: by the template's own tags, or by what the text
// gains with each message.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/dataset/rows.h"
#include "lib/text/chat_template.h"
#include "lib/text/json.h"

namespace luthier {

bool IsAssistant(const OrderedJson& message);
// It has weight 0: the model sees it and does not learn to say it.
bool IsContextOnly(const OrderedJson& message);

bool IsBlank(std::string_view text);
std::string_view Slice(std::string_view text, TextSpan span);

// The first `count` messages of a row as its template renders them.
absl::StatusOr<RenderedChat> RenderPrefix(const ChatTemplate& chat_template, const ChatRow& row, size_t count,
                                          bool add_generation_prompt);

// What the text gains by message `i`; `opened`: without the opening of the assistant's turn. Nothing if the text in
// front of the message is another one when the message is there.
absl::StatusOr<std::optional<TextSpan>> TurnDifference(const ChatTemplate& chat_template, const ChatRow& row, size_t i,
                                                       const RenderedChat& rendered, bool opened);

// Spans of the assistant's turns that are trained, in order: of those without weight 0 all, or the last one
// (`last_only`). Errors: INVALID_ARGUMENT if the turns cannot be told apart, or if the template's tags are around
// something else.
absl::StatusOr<std::vector<TextSpan>> TrainedTurns(const ChatTemplate& chat_template, const ChatRow& row,
                                                   const RenderedChat& rendered, bool last_only);

}  // namespace luthier
