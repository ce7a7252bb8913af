// Reads the fields of one JSON object, remembers everything that is wrong with them, and which of them were looked at.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// A field that is null counts as absent, as in Python. Every method appends to `violations`, in the form "FILE: PATH:
// what is wrong", and then returns something harmless, so that one pass reports every fault.
class FieldReader {
 public:
  // `prefix` is what messages begin with: "config.json: " or "config.json: rope_scaling.". Object and list are
  // borrowed.
  FieldReader(const nlohmann::json& object, std::string prefix, std::vector<std::string>& violations)
      : object_(object), prefix_(std::move(prefix)), violations_(violations) {}

  bool Has(const char* field);
  const nlohmann::json& Raw(const char* field);  // null if absent

  // Whole numbers from 1 to 2^30: larger than any published model, and products of two of them stay inside int64.
  int64_t Size(const char* field);
  int64_t SizeOr(const char* field, int64_t fallback);
  std::optional<int64_t> OptionalSize(const char* field);
  // Where a field that is left out means something else than null.
  std::optional<int64_t> NullableSize(const char* field, int64_t if_absent);
  // Finite numbers above 0.
  double Positive(const char* field);
  double PositiveOr(const char* field, double fallback);
  std::optional<double> OptionalPositive(const char* field);
  std::optional<double> NullablePositive(const char* field, double if_absent);
  // A number in [0, 1).
  double FractionOr(const char* field, double fallback);
  bool FlagOr(const char* field, bool fallback);
  std::string TextOr(const char* field, std::string fallback);
  // A list of `size` numbers above 0.
  std::vector<double> PositiveList(const char* field, size_t size);
  std::vector<std::string> TextList(const char* field);

  // For fields that would change the mathematics: absent or `supported`, or a violation.
  void Require(const char* field, const nlohmann::json& supported);
  // A field that no method has looked at so far.
  bool Unread(const std::string& field) const { return !read_.contains(field); }

  void Violation(absl::string_view field, absl::string_view what);

  const nlohmann::json& object() const { return object_; }
  std::vector<std::string>& violations() { return violations_; }

 private:
  const nlohmann::json& object_;
  std::string prefix_;
  std::vector<std::string>& violations_;
  std::set<std::string> read_;
};

}  // namespace luthier
