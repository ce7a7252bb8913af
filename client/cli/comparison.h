// Base against tuned model on held-out rows: the table that users ask for first.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/cli/terminal.h"
#include "luthier/v1/jobs.pb.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Jobs side by side, one column each, after one for each different base result. `base_parameters`: parameters of each
// base model that is known, by `baseModels/{id}`.
std::string ComparisonTable(const std::vector<v1::FineTuningJob>& jobs,
                            const std::map<std::string, int64_t>& base_parameters, const Terminal& terminal);

// Held-out rows with the answers of base and tuned models, at most `limit`; empty if none were kept.
std::string ComparisonExamples(const std::vector<v1::FineTuningJob>& jobs, int limit, const Terminal& terminal);

// The same figures for programs.
nlohmann::json ComparisonJson(const std::vector<v1::FineTuningJob>& jobs);

}  // namespace luthier
