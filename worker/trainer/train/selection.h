// Which of a run's evaluations was the best.
#pragma once

#include <cstdint>
#include <string>

#include "nlohmann/json.hpp"
#include "worker/trainer/train/evaluation.h"

namespace luthier {

// Compares by the job's metric, and by loss where that is equal. Part of every checkpoint.
class Selection {
 public:
  // Takes an evaluation into account. `metric`: as evaluation.metric, always the same, and one that the result has
  // (UsableMetric). Returns whether it is the best so far.
  bool Add(int64_t step, const EvaluationResult& result, const std::string& metric);

  // 0 before the first evaluation.
  int64_t best_step() const { return best_step_; }
  // Evaluations since the best one.
  int64_t without_gain() const { return without_gain_; }

  nlohmann::json ToJson() const;
  // Throws nlohmann's exceptions for JSON that ToJson did not make.
  static Selection FromJson(const nlohmann::json& json);

 private:
  int64_t best_step_ = 0;
  double best_metric_ = 0;
  double best_loss_ = 0;
  int64_t without_gain_ = 0;
};

}  // namespace luthier
