#include "lib/dataset/score.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/json_shape.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

// Sorted keys, so that equal values have equal text.
using Json = nlohmann::json;
using Fields = std::map<std::pair<std::string, std::string>, int64_t>;

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// Removes one <tag>…</tag> around the text, such as <tool_call>.
std::string_view Unwrap(std::string_view text) {
  const size_t open_end = text.find('>');
  const size_t close = text.rfind("</");
  if (!text.starts_with('<') || !text.ends_with('>') || open_end == std::string_view::npos ||
      close == std::string_view::npos || close <= open_end) {
    return text;
  }
  const std::string_view open_name = text.substr(1, open_end - 1);
  const std::string_view close_name = text.substr(close + 2, text.size() - close - 3);
  return open_name == close_name ? Trim(text.substr(open_end + 1, close - open_end - 1)) : text;
}

// Whole numbers that JSON spells as others, such as 1.0 and 1e0, become whole: fields are compared as text.
void SpellNumbersAlike(Json& json) {
  if (json.is_structured()) {
    for (Json& child : json) SpellNumbersAlike(child);
    return;
  }
  constexpr double kAllExact = 9007199254740992;  // 2^53
  if (!json.is_number_float()) return;
  const double number = json.get<double>();
  if (std::abs(number) < kAllExact && number == std::trunc(number)) json = static_cast<int64_t>(number);
}

std::optional<Json> ParseJson(std::string_view text) {
  if (ShapeOfJson(text).depth > kMaxJsonDepth) return std::nullopt;
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return std::nullopt;
  SpellNumbersAlike(json);
  return json;
}

std::optional<Json> ParseAnswer(std::string_view text) { return ParseJson(Unwrap(text)); }

// Name and arguments alone: OpenAI's form puts them into `function`, beside an id, with the arguments as text.
Json Call(const Json& json) {
  Json call = json.is_object() && json.contains("function") && json["function"].is_object() ? json["function"] : json;
  if (call.is_object() && call.contains("arguments") && call["arguments"].is_string()) {
    std::optional<Json> arguments = ParseJson(call["arguments"].get_ref<const std::string&>());
    if (arguments) call["arguments"] = *std::move(arguments);
  }
  return call;
}

bool AddCalls(std::string_view text, std::vector<Json>& calls) {
  const std::optional<Json> json = ParseJson(text);
  if (!json || !json->is_structured()) return false;
  if (json->is_object()) {
    calls.push_back(Call(*json));
  } else {
    for (const Json& call : *json) calls.push_back(Call(call));
  }
  return true;
}

// The calls of an answer: one JSON value, a list of them, or several in tags such as <tool_call>. Nothing if it has
// other text.
std::optional<std::vector<Json>> ParseCalls(std::string_view text) {
  std::vector<Json> calls;
  while (text.starts_with('<')) {
    const size_t name_end = text.find('>');
    if (name_end == std::string_view::npos) return std::nullopt;
    const std::string close = "</" + std::string(text.substr(1, name_end));  // with its '>'
    const size_t end = text.find(close, name_end);
    if (end == std::string_view::npos || !AddCalls(text.substr(name_end + 1, end - name_end - 1), calls)) {
      return std::nullopt;
    }
    text = Trim(text.substr(end + close.size()));
  }
  if (!text.empty() && !AddCalls(text, calls)) return std::nullopt;
  if (calls.empty()) return std::nullopt;
  return calls;
}

void CollectFields(const Json& value, const std::string& path, Fields& fields) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) CollectFields(child, absl::StrCat(path, ".", key), fields);
  } else if (value.is_array()) {
    for (const Json& element : value) ++fields[{path + "[]", element.dump()}];
  } else {
    ++fields[{path, value.dump()}];
  }
}

// Calls `visit` with every part between any of the separators that is not blank, trimmed.
template <typename Visit>
void ForEachPart(std::string_view text, const char* separators, Visit visit) {
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of(separators), text.size());
    if (const std::string_view part = Trim(text.substr(0, end)); !part.empty()) visit(part);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// "person: Ann, Bo" gives (person, Ann) and (person, Bo); a line without a colon gives fields without a name.
void CollectLines(std::string_view text, Fields& fields) {
  ForEachPart(text, "\n", [&](std::string_view line) {
    const size_t colon = line.find(':');
    const std::string name(colon == std::string_view::npos ? "" : Trim(line.substr(0, colon)));
    ForEachPart(colon == std::string_view::npos ? line : line.substr(colon + 1), ",",
                [&](std::string_view value) { ++fields[{name, std::string(value)}]; });
  });
}

// The words of a free answer, as SQuAD (arXiv:1606.05250) compares them.
void CollectWords(std::string_view text, Fields& fields) {
  ForEachPart(text, " \t\r\n", [&](std::string_view word) { ++fields[{"", std::string(word)}]; });
}

int64_t Total(const Fields& fields) {
  int64_t total = 0;
  for (const auto& [field, count] : fields) total += count;
  return total;
}

void ScoreCalls(const std::vector<Json>& expected, std::string_view answer, AnswerScore& score, Fields& expected_fields,
                Fields& answer_fields) {
  for (const Json& call : expected) CollectFields(call, "", expected_fields);
  const std::optional<std::vector<Json>> calls = ParseCalls(answer);
  score.json_equal = calls && std::is_permutation(calls->begin(), calls->end(), expected.begin(), expected.end());
  if (!calls) return;
  for (const Json& call : *calls) CollectFields(call, "", answer_fields);
}

void ScoreJson(const Json& expected, std::string_view answer, AnswerScore& score, Fields& expected_fields,
               Fields& answer_fields) {
  CollectFields(expected, "", expected_fields);
  const std::optional<Json> json = ParseAnswer(answer);
  if (expected.is_structured()) score.json_equal = json && *json == expected;
  if (json) CollectFields(*json, "", answer_fields);
}

}  // namespace

AnswerScore ScoreAnswer(TaskType task, std::string_view expected, std::string_view answer) {
  expected = Trim(expected);
  answer = Trim(answer);
  AnswerScore score{.exact = expected == answer};
  if (!HasFields(task)) return score;
  Fields expected_fields, answer_fields;
  const std::optional<std::vector<Json>> calls = task == TaskType::kToolCalling ? ParseCalls(expected) : std::nullopt;
  if (task == TaskType::kQa) {
    CollectWords(expected, expected_fields);
    CollectWords(answer, answer_fields);
  } else if (calls) {
    ScoreCalls(*calls, answer, score, expected_fields, answer_fields);
  } else if (const std::optional<Json> json = ParseAnswer(expected)) {
    ScoreJson(*json, answer, score, expected_fields, answer_fields);
  } else {
    CollectLines(expected, expected_fields);
    CollectLines(answer, answer_fields);
  }
  score.fields_expected = Total(expected_fields);
  score.fields_answered = Total(answer_fields);
  for (const auto& [field, count] : answer_fields) {
    const auto found = expected_fields.find(field);
    if (found != expected_fields.end()) score.fields_right += std::min(count, found->second);
  }
  return score;
}

void ScoreTotals::Add(const AnswerScore& score) {
  ++rows_;
  exact_ += score.exact;
  json_rows_ += score.json_equal.has_value();
  json_equal_ += score.json_equal.value_or(false);
  expected_ += score.fields_expected;
  answered_ += score.fields_answered;
  right_ += score.fields_right;
}

double ScoreTotals::exact_match() const {
  return rows_ == 0 ? 0.0 : static_cast<double>(exact_) / static_cast<double>(rows_);
}

std::optional<double> ScoreTotals::json_equality() const {
  if (json_rows_ == 0) return std::nullopt;
  return static_cast<double>(json_equal_) / static_cast<double>(json_rows_);
}

double ScoreTotals::field_f1() const {
  const int64_t both = expected_ + answered_;
  return both == 0 ? 1.0 : 2.0 * static_cast<double>(right_) / static_cast<double>(both);
}

}  // namespace luthier
