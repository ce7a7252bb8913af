#include "server/rpc/job_filter.h"

#include <algorithm>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr size_t kMaxFilter = 4096;
constexpr size_t kMaxComparisons = 32;
constexpr char kLabels[] = "labels.";

struct Comparison {
  std::string field, op, value;
};

absl::Status Wrong(const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("filter: ", what, "; give comparisons such as state = RUNNING AND labels.team = \"search\""));
}

// Takes from the front of `text`.
class Reader {
 public:
  explicit Reader(absl::string_view text) : text_(text) {}
  bool AtEnd() {
    text_ = absl::StripLeadingAsciiWhitespace(text_);
    return text_.empty();
  }
  std::string Word() {
    const auto end = std::find_if_not(text_.begin(), text_.end(), [](char c) {
      return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-' || c == '/' || c == ':' || c == '+' || c == '*';
    });
    return Take(static_cast<size_t>(end - text_.begin()));
  }
  // A name. The key of a label may be anything, so it may stand in quotes: `labels."my key"`.
  std::string Field() {
    const auto end = std::find_if_not(text_.begin(), text_.end(), [](char c) {
      return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-' || c == '/';
    });
    std::string name = Take(static_cast<size_t>(end - text_.begin()));
    if (name == kLabels && absl::StartsWith(text_, "\"")) absl::StrAppend(&name, Value().value_or(""));
    return name;
  }
  std::string Operator() {
    for (const char* op : {">=", "<=", "=", ">", "<", ":"}) {
      if (absl::ConsumePrefix(&text_, op)) return op;
    }
    return "";
  }
  // A word, or text in double quotes, in which a backslash stands before a quote or a backslash.
  std::optional<std::string> Value() {
    if (!absl::ConsumePrefix(&text_, "\"")) {
      std::string word = Word();
      return word.empty() ? std::nullopt : std::optional(std::move(word));
    }
    std::string value;
    while (!text_.empty()) {
      const char c = text_.front();
      text_.remove_prefix(1);
      if (c == '"') return value;
      if (c != '\\') {
        value += c;
      } else if (!text_.empty()) {
        value += text_.front();
        text_.remove_prefix(1);
      }
    }
    return std::nullopt;
  }

 private:
  std::string Take(size_t size) {
    const std::string taken(text_.substr(0, size));
    text_.remove_prefix(size);
    return taken;
  }
  absl::string_view text_;
};

absl::StatusOr<std::vector<Comparison>> Split(const std::string& filter) {
  if (filter.size() > kMaxFilter)
    return Wrong(absl::StrCat("has ", filter.size(), " characters, and may have ", kMaxFilter));
  std::vector<Comparison> comparisons;
  for (Reader reader(filter); !reader.AtEnd();) {
    if (!comparisons.empty() && reader.Word() != "AND") return Wrong("comparisons are joined by AND only");
    Comparison& next = comparisons.emplace_back();
    if (reader.AtEnd()) return Wrong("does not end with a comparison");
    if (comparisons.size() > kMaxComparisons)
      return Wrong(absl::StrCat("has more than ", kMaxComparisons, " comparisons"));
    next.field = reader.Field();
    (void)reader.AtEnd();
    next.op = reader.Operator();
    (void)reader.AtEnd();
    const std::optional<std::string> value = reader.Value();
    if (next.field.empty() || next.op.empty() || !value)
      return Wrong(
          absl::StrCat(Shown(next.field), " is not followed by =, <, <=, >, >= or : and a value (there is no !=)"));
    next.value = *value;
  }
  return comparisons;
}

std::string StateNames() {
  const google::protobuf::EnumDescriptor& states = *v1::FineTuningJob::State_descriptor();
  std::vector<std::string> names;
  for (int i = 1; i < states.value_count(); ++i) names.push_back(states.value(i)->name());  // the first: unspecified
  return absl::StrJoin(names, ", ");
}

// Narrows [from, before) by one comparison; times have microseconds.
absl::Status Narrow(const Comparison& comparison, absl::Time& from, absl::Time& before) {
  absl::Time time;
  std::string error;
  const bool is_time = absl::ParseTime(absl::RFC3339_full, comparison.value, &time, &error);
  if (!is_time || time == absl::InfiniteFuture() || time == absl::InfinitePast()) {  // which Abseil has names for
    return Wrong(
        absl::StrCat(comparison.field, ": ", Shown(comparison.value), " is no time such as 2026-11-25T08:00:00Z"));
  }
  const absl::Duration tick = absl::Microseconds(1);
  if (comparison.op == ">=") from = std::max(from, time);
  if (comparison.op == ">") from = std::max(from, time + tick);
  if (comparison.op == "<") before = std::min(before, time);
  if (comparison.op == "<=") before = std::min(before, time + tick);
  if (comparison.op == "=" || comparison.op == ":")
    return Wrong(absl::StrCat(comparison.field, ": is compared with <, <=, > or >= only"));
  return absl::OkStatus();
}

absl::Status Apply(const Comparison& comparison, JobFilter& filter) {
  JobQuery& query = filter.query;
  if (comparison.field == "create_time") return Narrow(comparison, query.created_from, query.created_before);
  if (comparison.field == "end_time") {
    query.ended_from = std::max(query.ended_from, absl::UnixEpoch());  // what is not over has no end
    return Narrow(comparison, query.ended_from, query.ended_before);
  }
  absl::string_view key = comparison.field;
  if (absl::ConsumePrefix(&key, kLabels)) {
    if (key.empty()) return Wrong("labels.: names no label");
    const bool any = comparison.op == ":" && comparison.value == "*";
    if (!any && comparison.op != "=") return Wrong(absl::StrCat(comparison.field, ": is compared with = or :* only"));
    filter.labels.emplace_back(key, any ? std::nullopt : std::optional(comparison.value));
    return absl::OkStatus();
  }
  if (comparison.op != "=") return Wrong(absl::StrCat(comparison.field, ": is compared with = only"));
  if (comparison.field == "state") {
    v1::FineTuningJob::State state;
    const bool is_state = v1::FineTuningJob::State_Parse(absl::AsciiStrToUpper(comparison.value), &state);
    if (!is_state || state == v1::FineTuningJob::STATE_UNSPECIFIED)
      return Wrong(absl::StrCat("state: ", Shown(comparison.value), " is no state; there are ", StateNames()));
    const bool other = !query.states.empty() && query.states.count(static_cast<JobState>(state)) == 0;
    if (other) return Wrong("state: a job has one; use `states` for several");
    query.states = {static_cast<JobState>(state)};
    return absl::OkStatus();
  }
  std::string* const texts[] = {&query.base_model, &query.model, &query.of_tenant};
  const char* const names[] = {"base_model", "model", "tenant"};
  const char* const prefixes[] = {"baseModels/", "models/", "tenants/"};
  for (size_t i = 0; i < 3; ++i) {
    if (comparison.field != names[i]) continue;
    const std::string value(absl::StripPrefix(comparison.value, prefixes[i]));
    if (value.empty()) return Wrong(absl::StrCat(names[i], ": is compared with nothing"));
    if (!texts[i]->empty() && *texts[i] != value) return Wrong(absl::StrCat(names[i], ": a job has one"));
    *texts[i] = value;
    return absl::OkStatus();
  }
  return Wrong(absl::StrCat(Shown(comparison.field),
                            " cannot be filtered by; give state, base_model, model, tenant, create_time, end_time or "
                            "labels.KEY"));
}

absl::Status ApplyAll(const std::string& text, JobFilter& filter) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Comparison> comparisons, Split(text));
  for (const Comparison& comparison : comparisons) LUTHIER_RETURN_IF_ERROR(Apply(comparison, filter));
  return absl::OkStatus();
}

}  // namespace

bool JobFilter::MatchesLabels(const v1::FineTuningJob& job) const {
  return std::all_of(labels.begin(), labels.end(), [&](const auto& wanted) {
    const auto found = job.labels().find(wanted.first);
    return found != job.labels().end() && (!wanted.second || found->second == *wanted.second);
  });
}

absl::StatusOr<JobFilter> ParseJobFilter(const std::string& text, const std::string& order_by) {
  JobFilter filter;
  filter.query.oldest_first = order_by == "create_time" || order_by == "create_time asc";
  absl::Status order;
  if (!order_by.empty() && !filter.query.oldest_first && order_by != "create_time desc") {
    order = absl::InvalidArgumentError(
        absl::StrCat("order_by: ", Shown(order_by), " is no order; give create_time or create_time desc (default)"));
  }
  LUTHIER_RETURN_IF_ERROR(AllOf({ApplyAll(text, filter), order}));
  return filter;
}

}  // namespace luthier
