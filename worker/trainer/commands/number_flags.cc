#include "worker/trainer/commands/number_flags.h"

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace luthier {

CLI::Validator Within(const NumberRange& range) {
  return CLI::Validator(
      [range](std::string& text) -> std::string {
        double value = 0;
        if (absl::SimpleAtod(text, &value) && range.Contains(value)) return "";
        return absl::StrCat(text, " is out of range; give ", range.words);
      },
      "");
}

CLI::Validator WholeNumber(int64_t low, int64_t high) {
  return CLI::Validator(
      [low, high](std::string& text) -> std::string {
        int64_t value = 0;
        if (absl::SimpleAtoi(text, &value) && value >= low && value <= high) return "";
        return absl::StrCat(text, " is out of range; give a whole number from ", low, " to ", high);
      },
      "");
}

}  // namespace luthier
