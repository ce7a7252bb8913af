// Rows of a tensor as fp32 numbers, whatever its format: kernels compute in fp32 only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/torch.h"

namespace luthier::ops {

// Rows of the last axis to read. One object for each thread.
class InputRows {
 public:
  // `x` is contiguous, fp32 or bf16, and outlives the object.
  explicit InputRows(const Tensor& x) : size_(x.size(-1)) {
    if (x.scalar_type() == at::kFloat) {
      floats_ = x.const_data_ptr<float>();
    } else {
      halves_ = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
      scratch_.resize(static_cast<size_t>(size_));
    }
  }

  // Valid until the next call.
  const float* operator()(int64_t row) {
    if (floats_ != nullptr) return floats_ + row * size_;
    kernels::Widen(halves_ + row * size_, size_, scratch_.data());
    return scratch_.data();
  }

 private:
  int64_t size_;
  const float* floats_ = nullptr;
  const uint16_t* halves_ = nullptr;
  std::vector<float> scratch_;
};

// Rows of the last axis to write. One object for each thread.
class OutputRows {
 public:
  explicit OutputRows(const Tensor& x) : size_(x.size(-1)) {
    if (x.scalar_type() == at::kFloat) {
      floats_ = x.mutable_data_ptr<float>();
    } else {
      halves_ = reinterpret_cast<uint16_t*>(x.mutable_data_ptr<at::BFloat16>());
      scratch_.resize(static_cast<size_t>(size_));
    }
  }

  // Where to write the row; Done stores it.
  float* operator()(int64_t row) { return floats_ != nullptr ? floats_ + row * size_ : scratch_.data(); }
  void Done(int64_t row) {
    if (floats_ == nullptr) kernels::Narrow(scratch_.data(), size_, halves_ + row * size_);
  }

 private:
  int64_t size_;
  float* floats_ = nullptr;
  uint16_t* halves_ = nullptr;
  std::vector<float> scratch_;
};

// Rows that one thread takes at a time: enough work to be worth waking it.
inline int64_t RowGrain(int64_t row_size) { return std::max<int64_t>(1, 16'384 / std::max<int64_t>(row_size, 1)); }

}  // namespace luthier::ops
