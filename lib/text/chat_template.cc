#include "lib/text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/json_text.h"
#include "lib/base/status_macros.h"
#include "lib/text/json_file.h"
#include "lib/text/rust_api.h"
#include "lib/text/template_source.h"
#include "lib/text/tokenizer_files.h"

namespace luthier {
namespace {

constexpr char kDefault[] = "default";

// `chat_template` is one source, the default, or a list of {name, template}.
std::string TemplateOfConfig(const OrderedJson& config, std::string_view name) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return "";
  if (found->is_string()) return name == kDefault ? found->get<std::string>() : "";
  if (!found->is_array()) return "";
  for (const OrderedJson& entry : *found) {
    if (TextOf(entry, "name") == name) return TextOf(entry, "template");
  }
  return "";
}

constexpr char kPinStart[] = "{# template_date: ", kPinEnd[] = " #}\n";

// The date that the comment in front of a source pins; empty if there is none.
std::string PinnedDate(const std::string& source) {
  constexpr size_t kDate = sizeof("YYYY-MM-DD") - 1, kStart = sizeof(kPinStart) - 1;
  const bool pinned = source.starts_with(kPinStart) &&
                      source.compare(std::min(source.size(), kStart + kDate), sizeof(kPinEnd) - 1, kPinEnd) == 0;
  return pinned ? source.substr(kStart, kDate) : "";
}

absl::StatusOr<std::string> TextIfThere(const std::string& path) {
  absl::StatusOr<std::string> text = ReadTextFile(path);
  if (absl::IsNotFound(text.status())) return "";
  return text;
}

// `config`: that of the folder. As in transformers, files take the place of everything that it has.
absl::StatusOr<TemplateSources> SourcesOf(const std::string& folder, const OrderedJson& config) {
  LUTHIER_ASSIGN_OR_RETURN(TemplateSources files, ReadTemplateFiles(folder));
  if (!files.chat.empty() || !files.tool_use.empty()) return files;
  return TemplateSources(TemplateOfConfig(config, kDefault), TemplateOfConfig(config, kToolUse));
}

}  // namespace

absl::StatusOr<TemplateSources> ReadTemplateFiles(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(std::string chat, TextIfThere(absl::StrCat(folder, "/", kTemplateFile)));
  LUTHIER_ASSIGN_OR_RETURN(std::string tool_use,
                           TextIfThere(absl::StrCat(folder, "/", kNamedTemplates, "/", kToolUse, ".jinja")));
  return TemplateSources(std::move(chat), std::move(tool_use));
}

std::vector<std::string> NamedTemplateFiles(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat(folder, "/", kNamedTemplates), none)) {
    std::error_code unknown;
    if (entry.is_regular_file(unknown) && entry.path().extension() == ".jinja")
      files.push_back(absl::StrCat(kNamedTemplates, "/", entry.path().filename().string()));
  }
  return files;
}

absl::StatusOr<TemplateSources> ReadTemplateSources(const std::string& folder) {
  absl::StatusOr<OrderedJson> config = ReadJsonObject(folder + "/tokenizer_config.json");
  if (absl::IsNotFound(config.status())) config = OrderedJson();
  LUTHIER_RETURN_IF_ERROR(config.status());
  return SourcesOf(folder, *config);
}

bool AsksForDate(const TemplateSources& sources) {
  const auto asks = [](const std::string& source) { return source.find("strftime_now") != std::string::npos; };
  return !sources.empty() && (asks(sources.chat) || asks(sources.tool_use));
}

std::string WithPinnedDate(const std::string& source, const std::string& date) {
  const size_t pinned = PinnedDate(source).empty() ? 0 : source.find('\n') + 1;
  // The line break goes with the comment, as behind a block.
  return absl::StrCat(kPinStart, date, kPinEnd, source.substr(pinned));
}

void ChatTemplate::Free::operator()(LuthierTemplate* compiled) const { luthier_template_free(compiled); }

absl::StatusOr<ChatTemplate> ChatTemplate::CompileAll(const TemplateSources& sources,
                                                      const OrderedJson& special_tokens) {
  LUTHIER_ASSIGN_OR_RETURN(ChatTemplate compiled, Compile(sources.chat, special_tokens));
  if (sources.tool_use.empty()) return compiled;
  LUTHIER_ASSIGN_OR_RETURN(ChatTemplate with_tools, Compile(sources.tool_use, special_tokens));
  compiled.with_tools_ = std::make_unique<ChatTemplate>(std::move(with_tools));
  return compiled;
}

absl::StatusOr<std::optional<ChatTemplate>> ChatTemplate::OfJob(const std::string& folder, const TemplateSources& own,
                                                                const std::string& date) {
  LUTHIER_ASSIGN_OR_RETURN(const OrderedJson files, ReadTokenizerFiles(folder));
  TemplateSources sources = own;
  if (own.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(sources, SourcesOf(folder, files.at("tokenizer_config")));
  }
  if (sources.empty()) return std::optional<ChatTemplate>();
  LUTHIER_ASSIGN_OR_RETURN(const OrderedJson special_tokens, NamedTokens(files));
  absl::StatusOr<ChatTemplate> compiled = CompileAll(sources, special_tokens);
  if (!compiled.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(own.empty() ? folder : "chat_template", ": ", compiled.status().message()));
  }
  if (!date.empty()) compiled->now_ = absl::StrCat(date, "T12:34:56");
  return std::optional<ChatTemplate>(*std::move(compiled));
}

absl::StatusOr<std::string> TemplateSource(const std::string& text_or_path) {
  if (text_or_path.find('{') != std::string::npos || text_or_path.empty()) return text_or_path;
  constexpr size_t kMostBytes = size_t{1} << 20;  // a device has no end
  absl::StatusOr<std::string> source = ReadTextFile(text_or_path, kMostBytes + 1);
  if (!source.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("chat_template: ", source.status().message(),
                                                   "; give a template, or the path of a file with one"));
  }
  if (source->size() > kMostBytes || source->find('{') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("chat_template: ", text_or_path, " holds no template"));
  }
  return source;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Compile(const std::string& source, const OrderedJson& special_tokens) {
  const std::string variables = special_tokens.is_null() ? "{}" : special_tokens.dump();
  LuthierTemplate* handle = nullptr;
  LuthierBuffer error{};
  bool has_generation_tag = false;
  if (luthier_template_new(source.data(), source.size(), variables.data(), variables.size(), &handle,
                           &has_generation_tag, &error) != 0) {
    return absl::InvalidArgumentError(TakeText(error));
  }
  ChatTemplate compiled(handle);
  compiled.has_generation_tag_ = has_generation_tag;
  if (const std::string date = PinnedDate(source); !date.empty()) compiled.now_ = absl::StrCat(date, "T12:34:56");
  return compiled;
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const OrderedJson& messages, const RenderOptions& options) const {
  const OrderedJson request = {{"messages", messages},        {"tools", options.tools},
                               {"documents", nullptr},        {"add_generation_prompt", options.add_generation_prompt},
                               {"kwargs", options.variables}, {"now", now_},
                               {"api", "apply_chat_template"}};
  const ChatTemplate& chosen = with_tools_ != nullptr && !options.tools.is_null() ? *with_tools_ : *this;
  return chosen.RenderRequest(request.dump());
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderRequest(std::string_view request_json) const {
  LuthierRendered raw{};
  LuthierBuffer error{};
  if (luthier_template_render(handle_.get(), request_json.data(), request_json.size(), &raw, &error) != 0) {
    return absl::InvalidArgumentError(TakeText(error));
  }
  RenderedChat rendered;
  rendered.text.assign(reinterpret_cast<const char*>(raw.text.data), raw.text.len);
  for (size_t i = 0; i < raw.span_count; ++i) {
    rendered.generation.push_back({raw.spans[2 * i], raw.spans[2 * i + 1]});
  }
  rendered.generation_in_place = raw.spans_in_place;
  luthier_rendered_free(raw);
  return rendered;
}

}  // namespace luthier
