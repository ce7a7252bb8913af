#include "lib/checkpoint/field_reader.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 30;

bool IsPositive(const json& value) {
  // Below the normal numbers 1 / value is infinite.
  return value.is_number() && value.get<double>() > 0 && std::isnormal(value.get<double>());
}

}  // namespace

bool FieldReader::Has(const char* field) { return !Raw(field).is_null(); }

const json& FieldReader::Raw(const char* field) {
  static const json absent;
  read_.insert(field);
  const auto found = object_.find(field);
  return found == object_.end() ? absent : *found;
}

int64_t FieldReader::Size(const char* field) {
  if (!Has(field)) Violation(field, "is missing");
  return SizeOr(field, 1);
}

int64_t FieldReader::SizeOr(const char* field, int64_t fallback) { return OptionalSize(field).value_or(fallback); }

std::optional<int64_t> FieldReader::OptionalSize(const char* field) {
  const json& value = Raw(field);
  if (value.is_null()) return std::nullopt;
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMaxSize) {
    Violation(field, absl::StrCat(value.dump(), " is not a whole number from 1 to ", kMaxSize));
    return 1;
  }
  return value.get<int64_t>();
}

std::optional<int64_t> FieldReader::NullableSize(const char* field, int64_t if_absent) {
  return object_.contains(field) ? OptionalSize(field) : if_absent;
}

std::optional<double> FieldReader::NullablePositive(const char* field, double if_absent) {
  return object_.contains(field) ? OptionalPositive(field) : if_absent;
}

double FieldReader::Positive(const char* field) {
  if (!Has(field)) Violation(field, "is missing");
  return PositiveOr(field, 1);
}

double FieldReader::PositiveOr(const char* field, double fallback) {
  return OptionalPositive(field).value_or(fallback);
}

std::optional<double> FieldReader::OptionalPositive(const char* field) {
  const json& value = Raw(field);
  if (value.is_null()) return std::nullopt;
  if (!IsPositive(value)) {
    Violation(field, absl::StrCat(value.dump(), " is not a number above 0"));
    return 1;
  }
  return value.get<double>();
}

double FieldReader::FractionOr(const char* field, double fallback) {
  const json& value = Raw(field);
  if (value.is_null()) return fallback;
  if (!value.is_number() || !(value.get<double>() >= 0 && value.get<double>() < 1)) {
    Violation(field, absl::StrCat(value.dump(), " is not a number from 0 up to, but not including, 1"));
    return fallback;
  }
  return value.get<double>();
}

bool FieldReader::FlagOr(const char* field, bool fallback) {
  const json& value = Raw(field);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) {
    Violation(field, absl::StrCat(value.dump(), " is not true or false"));
    return fallback;
  }
  return value.get<bool>();
}

std::string FieldReader::TextOr(const char* field, std::string fallback) {
  const json& value = Raw(field);
  if (value.is_null()) return fallback;
  if (!value.is_string()) {
    Violation(field, absl::StrCat(value.dump(), " is not a string"));
    return fallback;
  }
  return value.get<std::string>();
}

std::vector<double> FieldReader::PositiveList(const char* field, size_t size) {
  std::vector<double> numbers;
  const json& value = Raw(field);
  if (value.is_array() && value.size() == size) {
    for (const json& number : value) {
      if (IsPositive(number)) numbers.push_back(number.get<double>());
    }
  }
  if (numbers.size() == size) return numbers;
  Violation(field, value.is_null() ? "is missing" : absl::StrCat("is not a list of ", size, " numbers above 0"));
  return std::vector<double>(size, 1.0);
}

std::vector<std::string> FieldReader::TextList(const char* field) {
  std::vector<std::string> texts;
  const json& value = Raw(field);
  if (value.is_null()) return texts;
  if (!value.is_array()) Violation(field, absl::StrCat(value.dump(), " is not a list"));
  for (const json& text : value.is_array() ? value : json::array()) {
    if (text.is_string()) {
      texts.push_back(text.get<std::string>());
    } else {
      Violation(field, absl::StrCat(text.dump(), " is not a string"));
    }
  }
  return texts;
}

void FieldReader::Require(const char* field, const json& supported) {
  const json& value = Raw(field);
  if (!value.is_null() && value != supported) {
    Violation(field, absl::StrCat(value.dump(), " is not supported; supported: ", supported.dump()));
  }
}

void FieldReader::Violation(absl::string_view field, absl::string_view what) {
  violations_.push_back(absl::StrCat(prefix_, field, ": ", what));
}

}  // namespace luthier
