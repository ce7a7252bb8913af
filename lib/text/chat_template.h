// Conversations to text, as transformers' `apply_chat_template` renders them. The engine is
// minijinja in the Rust crate.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/text/json.h"
#include "lib/text/tokenizer.h"

struct LuthierTemplate;  // owned by the Rust crate, see rust/src/lib.rs

namespace luthier {

struct RenderedChat {
  std::string text;
  // What the template put into {% generation %} blocks: the assistant's words with the token that
  // ends its turn.
  std::vector<TextSpan> generation;
};

// Immutable once compiled: any number of threads may render with one template at the same time.
class ChatTemplate {
 public:
  struct RenderOptions {
    // Ends the text with the opening of an assistant turn, ready for the model to answer.
    bool add_generation_prompt = false;
    OrderedJson tools;      // array of tools, or null
    OrderedJson variables;  // object of further variables, such as {"enable_thinking": false}, or null
    // What `strftime_now` says: "YYYY-MM-DDTHH:MM:SS". Pinned, so that a data set is the same text
    // on every day.
    std::string now = "2024-07-26T12:34:56";
  };

  // Reads `folder`/chat_template.jinja, else `chat_template` of tokenizer_config.json (the one
  // named "default" if there are several). NOT_FOUND if the base model has none; INVALID_ARGUMENT
  // with file and line if it does not compile.
  static absl::StatusOr<ChatTemplate> Load(const std::string& folder);
  // `special_tokens`: object of the variables bos_token, eos_token, … that the template may use.
  static absl::StatusOr<ChatTemplate> Compile(const std::string& source, const OrderedJson& special_tokens);

  // `messages`: array of objects with `role` and `content` and, for tools, `tool_calls`. Keys whose
  // value is null are removed first, as transformers does. INVALID_ARGUMENT with the template's own
  // words if it refuses the conversation.
  absl::StatusOr<RenderedChat> Render(const OrderedJson& messages, const RenderOptions& options) const;
  // The same from one JSON object with `messages`, `tools`, `documents`, `add_generation_prompt`,
  // `kwargs`, `now` and `api`
  // (`render_jinja_template` keeps null keys).
  absl::StatusOr<RenderedChat> RenderRequest(std::string_view request_json) const;

  // True if the source marks the assistant's turns with {% generation %}.
  bool has_generation_tag() const { return has_generation_tag_; }

 private:
  struct Free {
    void operator()(LuthierTemplate* compiled) const;
  };
  explicit ChatTemplate(LuthierTemplate* handle) : handle_(handle) {}

  std::unique_ptr<LuthierTemplate, Free> handle_;
  bool has_generation_tag_ = false;
};

}  // namespace luthier
