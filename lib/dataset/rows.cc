#include "lib/dataset/rows.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/json_shape.h"
#include "lib/base/status_macros.h"
#include "lib/base/utf8.h"

namespace luthier {
namespace {

// Objects that keep the order of their keys are searched from the front: a million keys would take hours.
constexpr int64_t kMaxKeys = 10'000;

// Whole characters up to about `most` bytes: what is quoted of a row may be megabytes long, and the parser quotes it up
// to a byte in the middle of a character. A status has to fit into a header, and its text into JSON.
std::string Shortened(std::string_view text, size_t most) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= most) return out + "…";
    const size_t length = CharacterBytes(text.substr(i));
    out.append(length > 0 ? text.substr(i, length) : std::string_view("…"));
    i += std::max<size_t>(length, 1);
  }
  return out;
}

absl::Status Invalid(std::string_view message) {
  constexpr size_t kMost = 500;
  return absl::InvalidArgumentError(Shortened(message, kMost));
}

absl::Status CheckBytes(std::string_view line) {
  if (line.starts_with("\xFF\xFE") || line.starts_with("\xFE\xFF")) {
    return Invalid("the file is UTF-16; save it as UTF-8");
  }
  const size_t nul = line.find('\0'), wrong = FirstIllFormed(line);
  if (nul < wrong) return Invalid(absl::StrCat("NUL byte at byte ", nul + 1, "; the file must be UTF-8 text"));
  if (wrong == std::string_view::npos) return absl::OkStatus();
  return Invalid(absl::StrCat("invalid UTF-8 at byte ", wrong + 1, "; save the file as UTF-8"));
}

// Before parsing, so that a line of brackets costs no memory.
absl::Status CheckShape(const JsonShape& shape, const RowLimits& limits) {
  if (shape.depth > limits.max_depth) {
    return Invalid(absl::StrCat("JSON is nested deeper than ", limits.max_depth, " levels"));
  }
  if (shape.keys > kMaxKeys) {
    return Invalid(absl::StrCat("JSON has ", shape.keys, " keys; a row may have ", kMaxKeys));
  }
  return absl::OkStatus();
}

absl::Status CheckIntegers(const JsonShape& shape) {
  if (shape.huge_integer.empty()) return absl::OkStatus();
  return Invalid(absl::StrCat("the whole number ", Shortened(shape.huge_integer, 40),
                              " would not be kept exactly; write it as a text, in quotes"));
}

// For lines of files that usually come up: JSON that is no JSON lines, and what an editor has made of quotes.
const char* Remedy(std::string_view line, std::string_view fault) {
  if (line.starts_with('[')) return "; is the file one array? Write each of its elements on a line of its own";
  if (line.find("“") != std::string_view::npos && fault.find("invalid literal") != std::string_view::npos)
    return "; are its quotes typographic (“ ”)? JSON has plain ones";
  if (fault.find("unexpected end of input") != std::string_view::npos) return "; a row must be whole on its line";
  return "";
}

absl::StatusOr<OrderedJson> ParseObject(std::string_view line) {
  try {
    OrderedJson json = OrderedJson::parse(line);
    if (json.is_object()) return json;
    return Invalid(absl::StrCat("a row must be a JSON object, this is: ", json.type_name(), Remedy(line, "")));
  } catch (const OrderedJson::exception& error) {
    const std::string_view what = error.what();
    constexpr size_t kMost = 300;  // leaves room for the remedy
    const size_t detail = what.find("column ");
    return Invalid(absl::StrCat("malformed JSON at ",
                                Shortened(detail == std::string_view::npos ? what : what.substr(detail), kMost),
                                Remedy(line, what)));
  }
}

absl::StatusOr<std::string> StringField(const OrderedJson& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end()) return Invalid(absl::StrCat("`", key, "` is missing"));
  if (!found->is_string()) {
    return Invalid(absl::StrCat("`", key, "` must be a string, this is: ", found->type_name()));
  }
  return found->get<std::string>();
}

// What a string of JSON stands for; discarded if it is none. What is no object or array stays a text, digit by digit.
absl::StatusOr<OrderedJson> ParseText(const std::string& text, const std::string& where, const RowLimits& limits) {
  const auto refused = [&](const absl::Status& status) { return Invalid(absl::StrCat(where, ": ", status.message())); };
  const JsonShape shape = ShapeOfJson(text);
  if (const absl::Status checked = CheckShape(shape, limits); !checked.ok()) return refused(checked);
  OrderedJson parsed = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_structured()) return parsed;
  if (const absl::Status checked = CheckIntegers(shape); !checked.ok()) return refused(checked);
  return parsed;
}

// OpenAI writes `arguments` as a string of JSON, templates expect the object.
absl::Status NormalizeToolCalls(OrderedJson& message, const std::string& where, const RowLimits& limits) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || calls->is_null()) return absl::OkStatus();
  if (!calls->is_array()) return Invalid(absl::StrCat(where, ".tool_calls must be an array"));
  for (OrderedJson& call : *calls) {
    if (!call.is_object()) return Invalid(absl::StrCat(where, ".tool_calls must hold objects"));
    OrderedJson& function = call.contains("function") ? call["function"] : call;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) {
      return Invalid(absl::StrCat(where, ".tool_calls: a call needs `function` with a `name`"));
    }
    const auto arguments = function.find("arguments");
    if (arguments == function.end() || !arguments->is_string()) continue;
    LUTHIER_ASSIGN_OR_RETURN(OrderedJson parsed, ParseText(arguments->get<std::string>(),
                                                           absl::StrCat(where, ".tool_calls: `arguments`"), limits));
    if (parsed.is_object()) *arguments = std::move(parsed);
  }
  return absl::OkStatus();
}

// Of a list of parts, a template for texts leaves out what is none, or prints it, without a word.
absl::Status CheckParts(const OrderedJson& content, const std::string& where) {
  static const std::set<std::string> media = {"image",       "image_url", "input_image", "audio", "audio_url",
                                              "input_audio", "video",     "video_url",   "file",  "input_file"};
  for (size_t i = 0; i < content.size(); ++i) {
    if (!content[i].is_object()) continue;
    const auto type = content[i].find("type");
    if (type == content[i].end() || !type->is_string() || !media.contains(type->get<std::string>())) continue;
    return Invalid(absl::StrCat(where, ".content[", i, "] is of type ", type->get<std::string>(),
                                "; models learn from texts only: leave the part out, or the row"));
  }
  return absl::OkStatus();
}

absl::Status CheckMessage(OrderedJson& message, const std::string& where, const RowLimits& limits) {
  if (!message.is_object()) return Invalid(absl::StrCat(where, " must be an object with `role` and `content`"));
  const auto role = message.find("role");
  if (role == message.end() || !role->is_string()) {
    return Invalid(absl::StrCat(where, ".role is missing; use system, user, assistant or tool"));
  }
  // A misspelt `assistant` would be context that nothing is learnt from.
  if (*role != "system" && *role != "user" && *role != "assistant" && *role != "tool") {
    return Invalid(absl::StrCat(where, ".role is ", role->dump(), "; use system, user, assistant or tool"));
  }
  if (const auto call = message.find("function_call"); call != message.end() && !call->empty())
    return Invalid(absl::StrCat(where, ".function_call is an older form, which templates do not know; use tool_calls"));
  const auto content = message.find("content");
  const bool has_content = content != message.end() && !content->is_null();
  if (has_content && !content->is_string() && !content->is_array()) {
    return Invalid(absl::StrCat(where, ".content must be a string, this is: ", content->type_name()));
  }
  if (has_content && content->is_array()) LUTHIER_RETURN_IF_ERROR(CheckParts(*content, where));
  const auto calls = message.find("tool_calls");
  if (!has_content && (calls == message.end() || calls->is_null()))
    return Invalid(absl::StrCat(where, ".content is missing; give a text, or leave the message out"));
  const auto weight = message.find("weight");
  if (weight != message.end() && !weight->is_null() && *weight != 0 && *weight != 1) {
    return Invalid(absl::StrCat(where, ".weight must be 0 or 1, this is: ", weight->dump()));
  }
  return NormalizeToolCalls(message, where, limits);
}

absl::StatusOr<ChatRow> ParseChat(OrderedJson& row, const RowLimits& limits) {
  ChatRow chat;
  chat.messages = std::move(row["messages"]);
  if (!chat.messages.is_array()) {
    return Invalid(absl::StrCat("`messages` must be an array of messages, this is: ", chat.messages.type_name()));
  }
  if (chat.messages.empty()) return Invalid("`messages` is empty; give at least a message of the role `assistant`");
  bool has_answer = false;
  for (size_t i = 0; i < chat.messages.size(); ++i) {
    LUTHIER_RETURN_IF_ERROR(CheckMessage(chat.messages[i], absl::StrCat("messages[", i, "]"), limits));
    has_answer |= chat.messages[i]["role"] == "assistant";
  }
  if (!has_answer) return Invalid("no message has the role `assistant`, so there is nothing to learn from this row");
  if (row.contains("functions") && !row["functions"].empty())
    return Invalid("`functions` is an older form, which templates do not know; use `tools`");
  if (row.contains("tools")) chat.tools = std::move(row["tools"]);
  if (chat.tools.is_string()) {
    LUTHIER_ASSIGN_OR_RETURN(OrderedJson parsed, ParseText(chat.tools.get<std::string>(), "`tools`", limits));
    if (parsed.is_array()) chat.tools = std::move(parsed);
  }
  if (!chat.tools.is_null() && !chat.tools.is_array()) return Invalid("`tools` must be an array");
  if (row.contains("chat_template_kwargs")) chat.variables = std::move(row["chat_template_kwargs"]);
  if (!chat.variables.is_null() && !chat.variables.is_object()) {
    return Invalid("`chat_template_kwargs` must be an object");
  }
  return chat;
}

absl::StatusOr<std::vector<int64_t>> IntegersField(const OrderedJson& row, const char* key) {
  const OrderedJson& values = row[key];
  if (!values.is_array() || values.empty()) {
    return Invalid(absl::StrCat("`", key, "` must be an array of whole numbers, this is: ",
                                values.is_array() ? "an empty one" : values.type_name()));
  }
  std::vector<int64_t> numbers;
  numbers.reserve(values.size());
  for (const OrderedJson& value : values) {
    if (!value.is_number_integer()) {
      return Invalid(absl::StrCat("`", key, "[", numbers.size(), "]` must be a whole number, this is: ", value.dump()));
    }
    numbers.push_back(value.get<int64_t>());
  }
  return numbers;
}

// A field beside `input_ids` with a number for each token.
absl::StatusOr<std::vector<int64_t>> NumbersOfTokens(const OrderedJson& row, const char* key, size_t tokens) {
  LUTHIER_ASSIGN_OR_RETURN(std::vector<int64_t> numbers, IntegersField(row, key));
  if (numbers.size() == tokens) return numbers;
  return Invalid(absl::StrCat("`", key, "` has ", numbers.size(), " numbers and `input_ids` has ", tokens,
                              "; give one for each token"));
}

absl::StatusOr<TokenRow> ParseTokens(const OrderedJson& row) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<int64_t> ids, IntegersField(row, "input_ids"));
  TokenRow tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] > std::numeric_limits<int32_t>::max()) {
      return Invalid(absl::StrCat("`input_ids[", i, "]` is ", ids[i], ", which is no token id"));
    }
    tokens.ids.push_back(static_cast<int32_t>(ids[i]));
  }
  tokens.trained.assign(ids.size(), 1);
  if (row.contains("labels")) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<int64_t> labels, NumbersOfTokens(row, "labels", ids.size()));
    for (size_t i = 0; i < ids.size(); ++i) {
      tokens.trained[i] = labels[i] == ids[i];
      if (labels[i] == ids[i] || labels[i] == -100) continue;
      return Invalid(absl::StrCat("`labels[", i, "]` is ", labels[i], " where `input_ids` has ", ids[i],
                                  "; give the same id to train the token, or -100 (labels are not shifted)"));
    }
  }
  if (row.contains("attention_mask")) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<int64_t> mask, NumbersOfTokens(row, "attention_mask", ids.size()));
    if (std::any_of(mask.begin(), mask.end(), [](int64_t seen) { return seen != 1; })) {
      return Invalid("`attention_mask` is not 1 everywhere; remove the padding, rows are packed without any");
    }
  }
  return tokens;
}

std::string Keys(const OrderedJson& row) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : row.items()) keys.push_back(absl::StrCat("`", key, "`"));
  return keys.empty() ? "nothing" : absl::StrJoin(keys, ", ");
}

}  // namespace

std::string UnitName(RowUnit unit) { return unit == RowUnit::kRow ? "row" : "line"; }

std::string RowPosition(std::string_view file, int64_t number, RowUnit unit) {
  const std::string name(file);
  return unit == RowUnit::kRow ? absl::StrCat(name, ", row ", number) : absl::StrCat(name, ":", number);
}

absl::StatusOr<Row> ParseRow(std::string_view line, int64_t line_number, const RowLimits& limits) {
  LUTHIER_RETURN_IF_ERROR(CheckBytes(line));
  const JsonShape shape = ShapeOfJson(line);
  LUTHIER_RETURN_IF_ERROR(CheckShape(shape, limits));
  LUTHIER_RETURN_IF_ERROR(CheckIntegers(shape));
  LUTHIER_ASSIGN_OR_RETURN(OrderedJson json, ParseObject(line));
  const bool completion = json.contains("prompt") || json.contains("completion");
  const bool tokens = json.contains("input_ids");
  const int kinds = json.contains("messages") + json.contains("text") + completion + tokens;
  if (kinds != 1) {
    return Invalid(absl::StrCat(
        "a row needs `messages`, or `prompt` and `completion`, or `text`, or `input_ids`; this one has ", Keys(json)));
  }
  Row row{.line = line_number};
  if (json.contains("messages")) {
    LUTHIER_ASSIGN_OR_RETURN(row.content, ParseChat(json, limits));
  } else if (completion) {
    CompletionRow content;
    LUTHIER_ASSIGN_OR_RETURN(content.prompt, StringField(json, "prompt"));
    LUTHIER_ASSIGN_OR_RETURN(content.completion, StringField(json, "completion"));
    if (content.completion.empty()) return Invalid("`completion` is empty, so there is nothing to learn from this row");
    row.content = std::move(content);
  } else if (tokens) {
    LUTHIER_ASSIGN_OR_RETURN(row.content, ParseTokens(json));
  } else {
    TextRow content;
    LUTHIER_ASSIGN_OR_RETURN(content.text, StringField(json, "text"));
    if (content.text.empty()) return Invalid("`text` is empty");
    row.content = std::move(content);
  }
  return row;
}

absl::StatusOr<RowReader> RowReader::Open(const std::string& path, std::string name, RowLimits limits) {
  const TextSource::Limits source_limits = {.max_expansion = limits.max_expansion,
                                            .max_line_bytes = limits.max_line_bytes};
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<TextSource> source, TextSource::Open(path, source_limits));
  if (name.empty()) name = std::filesystem::path(path).filename().string();
  return RowReader(std::move(source), std::move(name), limits);
}

absl::StatusOr<bool> RowReader::ReadLine() {
  line_.clear();
  too_long_ = false;
  bool started = false;
  while (!at_end_) {
    if (piece_.empty()) {
      absl::StatusOr<std::string_view> piece = input_->Next();
      at_end_ = !piece.ok() || piece->empty();
      if (!piece.ok()) ++line_number_;
      if (absl::IsInvalidArgument(piece.status())) return LineError(std::string(piece.status().message()));
      if (!piece.ok()) return absl::DataLossError(absl::StrCat(name_, ": ", piece.status().message()));
      piece_ = *piece;
      if (at_end_) break;
    }
    started = true;
    const size_t newline = piece_.find('\n');
    const std::string_view part = piece_.substr(0, newline);
    const size_t room = static_cast<size_t>(limits_.max_line_bytes) - line_.size();
    too_long_ |= part.size() > room;
    line_.append(part.substr(0, room));
    piece_.remove_prefix(newline == std::string_view::npos ? piece_.size() : newline + 1);
    if (newline != std::string_view::npos) break;
  }
  if (!started) return false;
  ++line_number_;
  if (line_number_ == 1 && line_.starts_with("\xEF\xBB\xBF")) line_.erase(0, 3);
  if (line_.ends_with('\r')) line_.pop_back();
  return true;
}

absl::Status RowReader::LineError(std::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(RowPosition(name_, line_number_, unit()), ": ", std::string(message)));
}

absl::StatusOr<std::optional<Row>> RowReader::Next() {
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const bool found, ReadLine());
    if (!found) return std::optional<Row>();
    if (too_long_) {
      const char* const hint =
          unit() == RowUnit::kLine ? "; is the file JSON lines, one row on each line?" : " of JSON";
      return LineError(
          absl::StrCat("the ", UnitName(unit()), " is longer than ", limits_.max_line_bytes, " bytes", hint));
    }
    const bool blank = std::all_of(line_.begin(), line_.end(), [](char c) { return c == ' ' || c == '\t'; });
    if (blank) continue;
    absl::StatusOr<Row> row = ParseRow(line_, line_number_, limits_);
    if (!row.ok()) return LineError(std::string(row.status().message()));
    row->unit = unit();
    return std::optional<Row>(*std::move(row));
  }
}

}  // namespace luthier
