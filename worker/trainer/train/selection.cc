#include "worker/trainer/train/selection.h"

#include <utility>

namespace luthier {
namespace {

// Higher is better. Throws where the result lacks the metric: a loss compared with a score chooses anything.
double MetricOf(const EvaluationResult& result, const std::string& metric) {
  if (metric == "field_f1") return result.field_f1.value();
  if (metric == "json_equality") return result.json_equality.value();
  if (metric == "exact_match") return result.exact_match.value();
  return -result.loss;
}

}  // namespace

bool Selection::Add(int64_t step, const EvaluationResult& result, const std::string& metric) {
  const double value = MetricOf(result, metric);
  const bool better = best_step_ == 0 || std::pair(value, -result.loss) > std::pair(best_metric_, -best_loss_);
  if (better) {
    best_step_ = step;
    best_metric_ = value;
    best_loss_ = result.loss;
    without_gain_ = 0;
  } else {
    ++without_gain_;
  }
  return better;
}

nlohmann::json Selection::ToJson() const {
  return {{"best_step", best_step_},
          {"best_metric", best_metric_},
          {"best_loss", best_loss_},
          {"without_gain", without_gain_}};
}

Selection Selection::FromJson(const nlohmann::json& json) {
  Selection selection;
  selection.best_step_ = json.at("best_step");
  selection.best_metric_ = json.at("best_metric");
  selection.best_loss_ = json.at("best_loss");
  selection.without_gain_ = json.at("without_gain");
  return selection;
}

}  // namespace luthier
