// Conversations to text, as transformers' `apply_chat_template` renders them. The engine is
// minijinja in the Rust crate.
#pragma once

#include <memory>
#include <optional>
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
  // Whether those spans hold what the blocks wrote. A block inside a macro or a {% set %} block is listed where the
  // text stood when it ran, as transformers does, and may end up elsewhere.
  bool generation_in_place = true;
};

// Immutable once compiled: any number of threads may render with one template at the same time.
class ChatTemplate {
 public:
  struct RenderOptions {
    // Ends the text with the opening of an assistant turn, ready for the model to answer.
    bool add_generation_prompt = false;
    OrderedJson tools;      // array of tools, or null
    OrderedJson variables;  // object of further variables, such as {"enable_thinking": false}, or null
  };

  // Reads `folder`/chat_template.jinja, else `chat_template` of tokenizer_config.json (of several the one
  // named "default", and for conversations with tools the one named "tool_use"). NOT_FOUND if the base model has none;
  // INVALID_ARGUMENT with file and line if it does not compile.
  static absl::StatusOr<ChatTemplate> Load(const std::string& folder);
  // The template that a job renders with: `source` if it has one of its own, with the folder's special tokens, else the
  // folder's; nothing if there is neither. `date` (YYYY-MM-DD): what `strftime_now` says; empty: 2024-07-26.
  static absl::StatusOr<std::optional<ChatTemplate>> OfJob(const std::string& folder, const std::string& source,
                                                           const std::string& date);
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
  // Whether what is rendered may depend on the date, but for a template for tools.
  bool uses_date() const { return uses_date_; }

 private:
  struct Free {
    void operator()(LuthierTemplate* compiled) const;
  };
  explicit ChatTemplate(LuthierTemplate* handle) : handle_(handle) {}

  std::unique_ptr<LuthierTemplate, Free> handle_;
  std::unique_ptr<ChatTemplate> with_tools_;  // renders conversations with tools; null: this one does
  bool has_generation_tag_ = false;
  bool uses_date_ = false;
  // What `strftime_now` says. Pinned, so that a dataset is the same text on every day.
  std::string now_ = "2024-07-26T12:34:56";
};

// The template that a field of a job gives as text or as the path of a file: no template is without a brace.
// INVALID_ARGUMENT for a file that cannot be read or is no template.
absl::StatusOr<std::string> TemplateSource(const std::string& text_or_path);

}  // namespace luthier
