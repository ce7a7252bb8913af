// The loss of each training row when it was first and when it was last trained on: rows that stay hard are often wrong.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "lib/dataset/encode.h"
#include "lib/plan/trainer_spec.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/models/model.h"

namespace luthier {

// In the folder of a run, at its end.
inline constexpr char kRowLossesFile[] = "row_losses.jsonl";

class RowLosses {
 public:
  explicit RowLosses(size_t rows);

  // Mean loss over the trained tokens of rows, by index.
  void Add(const std::vector<std::pair<int32_t, double>>& losses);

  // The numbers as tensors, for a checkpoint, and back. Tensors of another size, or none, change nothing.
  NamedTensors State() const;
  void Restore(const NamedTensors& state);

  // The `count` rows with the highest last loss, worst first, as {file, line, first_loss, last_loss}.
  nlohmann::json Worst(size_t count, const std::vector<Example>& examples, const std::vector<TrainFile>& files) const;

 private:
  std::vector<float> first_, last_;  // NaN where a row has not been trained on yet
};

}  // namespace luthier
