// What a user should hear of a job that is not wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/checkpoint/model_config.h"
#include "lib/plan/facts.h"
#include "lib/plan/job_spec.h"

namespace luthier {

// `given`: the recipe as the user wrote it; `settled`: with every value; `steps`: of the run that it makes.
std::vector<std::string> WarningsOf(const Recipe& given, const Recipe& settled, const ModelConfig& model,
                                    const DatasetFacts& dataset, int64_t steps);

}  // namespace luthier
