// The sources of chat templates as folders hold them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace luthier {

inline constexpr const char* kTemplateFile = "chat_template.jinja";
// transformers' folder of the other templates of a model, NAME.jinja each.
inline constexpr const char* kNamedTemplates = "additional_chat_templates";
inline constexpr const char* kToolUse = "tool_use";

struct TemplateSources {
  // Implicit: a job's own is one source for every conversation.
  TemplateSources(std::string of_all = "", std::string of_tools = "")
      : chat(std::move(of_all)), tool_use(std::move(of_tools)) {}

  std::string chat;      // empty: there is no template
  std::string tool_use;  // for conversations with tools; empty: `chat`
  bool empty() const { return chat.empty(); }
  friend bool operator==(const TemplateSources&, const TemplateSources&) = default;
};

// The files of `folder`: chat_template.jinja and additional_chat_templates/tool_use.jinja, as far as they are there.
absl::StatusOr<TemplateSources> ReadTemplateFiles(const std::string& folder);
// All of them that are named, by their paths inside `folder`: additional_chat_templates/NAME.jinja.
std::vector<std::string> NamedTemplateFiles(const std::string& folder);
// Those that are read, or where there is neither `chat_template` of tokenizer_config.json, of several the ones named
// "default" and "tool_use". Empty if there is none.
absl::StatusOr<TemplateSources> ReadTemplateSources(const std::string& folder);

// Whether what they render may depend on the date.
bool AsksForDate(const TemplateSources& sources);

// `source` behind a comment that pins `date` (YYYY-MM-DD): ChatTemplate::Compile takes the date from it, so that a
// tuned model is asked as it was trained. For everybody else it is a comment.
std::string WithPinnedDate(const std::string& source, const std::string& date);

}  // namespace luthier
