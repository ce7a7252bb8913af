// Reads the fields of one JSON object of a job file and collects everything that is wrong with them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// An open or closed range of numbers, with the words that a message uses.
struct NumberRange {
  double low;
  double high;
  bool low_included;
  bool high_included;
  const char* words;  // "a number above 0"
  bool Contains(double value) const;
};

// Absent, null and "auto" leave the target as it is. Call Finish() last: it reports the fields that nobody read.
// `object` and `violations` must outlive the reader.
class BlockReader {
 public:
  // `path` precedes every field in messages: "lora." for the block `lora`, empty for the file itself.
  BlockReader(const nlohmann::json& object, std::string path, std::vector<std::string>& violations);

  void Integer(const char* field, std::optional<int64_t>& target, int64_t low, int64_t high);
  void Number(const char* field, std::optional<double>& target, const NumberRange& range);
  void Flag(const char* field, std::optional<bool>& target);
  void Text(const char* field, std::string& target);
  void Choice(const char* field, std::string& target, std::initializer_list<const char*> choices);
  void Choice(const char* field, std::optional<std::string>& target, std::initializer_list<const char*> choices);
  // Lists of texts that are not empty, and of whole numbers.
  void TextList(const char* field, std::vector<std::string>& target);
  void IntegerList(const char* field, std::vector<int64_t>& target, int64_t low, int64_t high);
  // Blocks whose fields are names of the user's choice.
  void IntegerMap(const char* field, std::map<std::string, int64_t>& target, int64_t low, int64_t high);
  void NumberMap(const char* field, std::map<std::string, double>& target, const NumberRange& range);
  void TextMap(const char* field, std::map<std::string, std::string>& target);
  // The value itself, or null when absent or auto; for fields with a form of their own.
  const nlohmann::json* Raw(const char* field);
  void Ignore(const char* field) { known_.push_back(field); }

  void Violation(const char* field, absl::string_view what);
  void Finish();

 private:
  template <typename Value, typename Read>
  void Map(const char* field, std::map<std::string, Value>& target, const Read& read);

  const nlohmann::json& object_;
  std::string path_;
  std::vector<std::string>& violations_;
  std::vector<std::string> known_;
};

}  // namespace luthier
