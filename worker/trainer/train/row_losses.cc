#include "worker/trainer/train/row_losses.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace luthier {
namespace {

constexpr char kFirst[] = "row_losses.first", kLast[] = "row_losses.last";

Tensor ToTensor(const std::vector<float>& values) { return at::tensor(values, at::kFloat); }

void CopyBack(const NamedTensors& state, const char* name, std::vector<float>& values) {
  const auto found = state.find(name);
  if (found == state.end() || found->second.numel() != static_cast<int64_t>(values.size())) return;
  const float* data = found->second.const_data_ptr<float>();
  values.assign(data, data + values.size());
}

}  // namespace

RowLosses::RowLosses(size_t rows)
    : first_(rows, std::numeric_limits<float>::quiet_NaN()), last_(rows, std::numeric_limits<float>::quiet_NaN()) {}

void RowLosses::Add(const std::vector<std::pair<int32_t, double>>& losses) {
  for (const auto& [row, loss] : losses) {
    const auto i = static_cast<size_t>(row);
    last_[i] = static_cast<float>(loss);
    if (std::isnan(first_[i])) first_[i] = last_[i];
  }
}

NamedTensors RowLosses::State() const { return {{kFirst, ToTensor(first_)}, {kLast, ToTensor(last_)}}; }

void RowLosses::Restore(const NamedTensors& state) {
  CopyBack(state, kFirst, first_);
  CopyBack(state, kLast, last_);
}

nlohmann::json RowLosses::Worst(size_t count, const std::vector<Example>& examples,
                                const std::vector<TrainFile>& files) const {
  std::vector<size_t> order;
  for (size_t i = 0; i < last_.size(); ++i) {
    if (!std::isnan(last_[i])) order.push_back(i);
  }
  count = std::min(count, order.size());
  // Ties in the order of the files, so that the list is the same everywhere.
  const auto worse = [&](size_t a, size_t b) { return last_[a] != last_[b] ? last_[a] > last_[b] : a < b; };
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(count), order.end(), worse);
  nlohmann::json rows = nlohmann::json::array();
  for (size_t i = 0; i < count; ++i) {
    const Example& example = examples[order[i]];
    rows.push_back({{"file", files[static_cast<size_t>(example.file)].name},
                    {"line", example.line},
                    {"first_loss", first_[order[i]]},
                    {"last_loss", last_[order[i]]}});
  }
  return rows;
}

}  // namespace luthier
