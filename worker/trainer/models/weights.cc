#include "worker/trainer/models/weights.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "absl/strings/match.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/llama_tensors.h"

namespace luthier {
namespace {

constexpr double kInitStd = 0.02;

}  // namespace

at::ScalarType ToScalarType(Dtype dtype) {
  switch (dtype) {
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
  return at::from_blob(data, view.shape, at::TensorOptions(ToScalarType(view.dtype))).to(type, /*non_blocking=*/false, /*copy=*/true);
}

TensorToWrite ToWrite(const std::string& name, const Tensor& tensor) {
  return {name, ToDtype(tensor.scalar_type()), tensor.sizes().vec(),
          {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
}

absl::StatusOr<NamedTensors> LoadWeights(const std::string& folder, const ModelConfig& config, at::ScalarType type) {
  LUTHIER_ASSIGN_OR_RETURN(const WeightFolder files, WeightFolder::Open(folder));
  LUTHIER_RETURN_IF_ERROR(CheckLlamaTensors(config, files.tensors()));
  NamedTensors weights;
  for (const auto& [name, shape] : LlamaTensors(config)) weights[name] = ToTensor(files.tensors().at(name), type);
  return weights;
}

NamedTensors RandomWeights(const ModelConfig& config, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double residual_std = kInitStd / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  NamedTensors weights;
  for (const auto& [name, shape] : LlamaTensors(config)) {
    if (shape.size() == 1) {
      weights[name] = at::ones(shape);
      continue;
    }
    const bool into_residual = absl::EndsWith(name, "o_proj.weight") || absl::EndsWith(name, "down_proj.weight");
    weights[name] = at::empty(shape).normal_(0, into_residual ? residual_std : kInitStd, generator);
  }
  return weights;
}

}  // namespace luthier
