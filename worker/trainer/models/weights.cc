#include "worker/trainer/models/weights.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

constexpr double kInitStd = 0.02;

bool IsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.bytes.data()) % DtypeSize(view.dtype) == 0;
}

// The file's bytes as a tensor that keeps the file mapped.
Tensor MappedTensor(const TensorView& view, std::shared_ptr<const WeightFolder> files) {
  void* data = const_cast<std::byte*>(view.bytes.data());
  return at::from_blob(
      data, view.shape, [files = std::move(files)](void*) {}, at::TensorOptions(ToScalarType(view.dtype)));
}

// transformers 4 drops such a head, transformers 5 keeps it: whichever was meant, the other would be wrong.
absl::Status CheckTiedHead(const ModelConfig& config, const std::map<std::string, TensorView>& stored) {
  const auto head = stored.find(kHead), embedding = stored.find(kEmbedding);
  if (!config.tie_word_embeddings || head == stored.end() || embedding == stored.end()) return absl::OkStatus();
  const bool equal = std::ranges::equal(head->second.bytes, embedding->second.bytes);
  ReleasePages(head->second);
  if (equal) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "lm_head.weight differs from model.embed_tokens.weight, but config.json says "
      "tie_word_embeddings: true; set it to false, or remove lm_head.weight from the checkpoint");
}

}  // namespace

at::ScalarType ToScalarType(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF64: return at::kDouble;
    case Dtype::kF32: return at::kFloat;
    case Dtype::kF16: return at::kHalf;
    case Dtype::kBf16: return at::kBFloat16;
    case Dtype::kI64: return at::kLong;
    case Dtype::kI32: return at::kInt;
    case Dtype::kU8: return at::kByte;
    case Dtype::kBool: return at::kBool;
  }
  return at::kFloat;
}

Dtype ToDtype(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return Dtype::kF64;
    case at::kHalf: return Dtype::kF16;
    case at::kBFloat16: return Dtype::kBf16;
    case at::kLong: return Dtype::kI64;
    case at::kInt: return Dtype::kI32;
    case at::kByte: return Dtype::kU8;
    case at::kBool: return Dtype::kBool;
    default: return Dtype::kF32;
  }
}

Tensor ToTensor(const TensorView& view, at::ScalarType type) {
  // from_blob takes a mutable pointer; the copy below is the only thing that touches the mapping, and it only reads.
  void* data = const_cast<std::byte*>(view.bytes.data());
  return at::from_blob(data, view.shape, at::TensorOptions(ToScalarType(view.dtype)))
      .to(type, /*non_blocking=*/false, /*copy=*/true);
}

TensorToWrite ToWrite(const std::string& name, const Tensor& tensor) {
  return {name,
          ToDtype(tensor.scalar_type()),
          tensor.sizes().vec(),
          {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
}

absl::StatusOr<NamedTensors> LoadWeights(const std::string& folder, const ModelConfig& config, at::ScalarType type,
                                         WeightUse use) {
  LUTHIER_ASSIGN_OR_RETURN(WeightFolder opened, WeightFolder::Open(folder));
  const auto files = std::make_shared<const WeightFolder>(std::move(opened));
  LUTHIER_RETURN_IF_ERROR(CheckTensors(config, files->tensors()));
  LUTHIER_RETURN_IF_ERROR(CheckTiedHead(config, files->tensors()));
  NamedTensors weights;
  for (const auto& [name, shape] : CheckpointTensors(config)) {
    const TensorView& stored = *FindStored(config, files->tensors(), name);
    if (use == WeightUse::kFrozen && ToScalarType(stored.dtype) == type && IsAligned(stored)) {
      weights[name] = MappedTensor(stored, files);
    } else {
      weights[name] = ToTensor(stored, type);
      ReleasePages(stored);
    }
  }
  return weights;
}

NamedTensors RandomWeights(const ModelConfig& config, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double residual_std = kInitStd / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  NamedTensors weights;
  for (const auto& [name, shape] : CheckpointTensors(config)) {
    if (shape.size() == 1) {
      const double value = absl::EndsWith(name, ".bias") ? 0.0 : 1.0 - config.norm_offset;
      weights[name] = at::full(shape, value);
      continue;
    }
    const bool into_residual = absl::EndsWith(name, "o_proj.weight") || absl::EndsWith(name, "down_proj.weight");
    weights[name] = at::empty(shape).normal_(0, into_residual ? residual_std : kInitStd, generator);
  }
  return weights;
}

}  // namespace luthier
