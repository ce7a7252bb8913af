// What reference-check prints: one JSON line a case and check.
#pragma once

#include <ostream>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

class Report {
 public:
  Report(std::string name, std::ostream& out) : case_(std::move(name)), out_(out) {}

  void Check(const std::string& check, double difference, double tolerance) {
    const bool ok = difference <= tolerance;  // false for NaN
    all_ok_ = all_ok_ && ok;
    out_ << nlohmann::json{{"case", case_},
                           {"check", check},
                           {"max_abs_diff", difference},
                           {"tolerance", tolerance},
                           {"ok", ok}}
                .dump()
         << "\n";
  }

  void Fail(const std::string& check, absl::string_view reason) {
    all_ok_ = false;
    out_ << nlohmann::json{{"case", case_},        {"check", check}, {"max_abs_diff", nullptr},
                           {"tolerance", nullptr}, {"ok", false},    {"reason", std::string(reason)}}
                .dump()
         << "\n";
  }

  bool all_ok() const { return all_ok_; }

 private:
  std::string case_;
  std::ostream& out_;
  bool all_ok_ = true;
};

}  // namespace luthier
