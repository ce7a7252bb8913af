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
#include "lib/text/template_source.h"
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

  // The template that a job renders with: `own` if it has one, with the folder's special tokens, else the folder's
  // (ReadTemplateSources), of which that for tools renders conversations with tools; nothing if there is neither.
  // `date` (YYYY-MM-DD): what `strftime_now` says; empty: 2024-07-26. INVALID_ARGUMENT naming field or folder, and the
  // line, if a template does not compile.
  static absl::StatusOr<std::optional<ChatTemplate>> OfJob(const std::string& folder, const TemplateSources& own,
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

 private:
  struct Free {
    void operator()(LuthierTemplate* compiled) const;
  };
  explicit ChatTemplate(LuthierTemplate* handle) : handle_(handle) {}
  static absl::StatusOr<ChatTemplate> CompileAll(const TemplateSources& sources, const OrderedJson& special_tokens);

  std::unique_ptr<LuthierTemplate, Free> handle_;
  std::unique_ptr<ChatTemplate> with_tools_;  // renders conversations with tools; null: this one does
  bool has_generation_tag_ = false;
  // What `strftime_now` says. Pinned, so that a dataset is the same text on every day.
  std::string now_ = "2024-07-26T12:34:56";
};

// The template that a field of a job gives as text or as the path of a file: no template is without a brace.
// INVALID_ARGUMENT for a file that cannot be read or is no template.
absl::StatusOr<std::string> TemplateSource(const std::string& text_or_path);

}  // namespace luthier
