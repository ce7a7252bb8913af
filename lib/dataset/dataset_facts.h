// What planning has to know of a job's rows, from the reports of its files.
#pragma once

#include <string>
#include <vector>

#include "lib/dataset/validate.h"
#include "lib/plan/resolve.h"
#include "nlohmann/json.hpp"

namespace luthier {

// A file of a job and what was found in it.
struct ReportedFile {
  std::string part;  // train, validation, test
  std::string name;
  double weight = 1;  // of a training file: how often its rows come up in an epoch
  ValidationReport report;
};

// Counts are those of an epoch of training, with the weights of its files; the longest row, and what was cut or left
// out, those of all parts.
DatasetFacts FactsOf(const std::vector<ReportedFile>& files);

// `[{part, file, weight, rows, tokens, …}]`, as in the trainer's `started` event.
nlohmann::json ToJson(const std::vector<ReportedFile>& files);

}  // namespace luthier
