#include "lib/checkpoint/stored_names.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace luthier {
namespace {

constexpr absl::string_view kGateUp = ".mlp.experts.gate_up_proj", kDown = ".mlp.experts.down_proj";
// Ten times those of the largest published layer: shapes come from users, and each expert becomes tensors of its own.
constexpr int64_t kMostExperts = 10'000;

bool IsOfAllExperts(const TensorView& tensor) {
  const std::vector<int64_t>& shape = tensor.shape;
  if (shape.size() != 3 || NumElements(shape) == 0 || shape[0] > kMostExperts) return false;
  return absl::EndsWith(tensor.name, kDown) || (absl::EndsWith(tensor.name, kGateUp) && shape[1] % 2 == 0);
}

// Adds the matrix of each expert.
void AddExperts(const TensorView& all, std::map<std::string, TensorView>& tensors) {
  std::vector<std::string> parts = {"down_proj"};
  if (absl::EndsWith(all.name, kGateUp)) parts = {"gate_proj", "up_proj"};
  const std::string experts = all.name.substr(0, all.name.rfind('.'));
  const std::vector<int64_t> shape = {all.shape[1] / static_cast<int64_t>(parts.size()), all.shape[2]};
  const size_t bytes = static_cast<size_t>(NumElements(shape)) * DtypeSize(all.dtype);
  size_t begin = 0;
  for (int64_t expert = 0; expert < all.shape[0]; ++expert) {
    for (const std::string& part : parts) {
      std::string name = absl::StrCat(experts, ".", expert, ".", part, ".weight");
      tensors[name] = {name, all.dtype, shape, all.bytes.subspan(begin, bytes)};
      begin += bytes;
    }
  }
}

std::string WithPrefix(const std::string& name) {
  constexpr absl::string_view kOfModel[] = {"embed_tokens.", "layers.", "norm."};
  const bool lacks_it = std::any_of(std::begin(kOfModel), std::end(kOfModel),
                                    [&](absl::string_view beginning) { return absl::StartsWith(name, beginning); });
  return lacks_it ? absl::StrCat("model.", name) : name;
}

}  // namespace

std::map<std::string, TensorView> ByCheckpointNames(const std::map<std::string, TensorView>& stored) {
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, view] : stored) {
    TensorView renamed = view;
    // Where both are there, the one without is too much.
    if (!stored.contains(WithPrefix(name))) renamed.name = WithPrefix(name);
    if (IsOfAllExperts(renamed)) {
      AddExperts(renamed, tensors);
    } else {
      tensors[renamed.name] = std::move(renamed);
    }
  }
  return tensors;
}

}  // namespace luthier
