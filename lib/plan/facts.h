// What the automatic values of a job depend on besides its recipe and the model: its rows and the device.
#pragma once

#include <cstdint>
#include <string>

namespace luthier {

// What is known of the training rows, as often as they come up in an epoch. Token counts are 0 where nobody has counted
// yet; then the model's context stands in.
struct DatasetFacts {
  int64_t rows = 0;
  int64_t tokens = 0;
  int64_t trained_tokens = 0;  // tokens with a loss
  int64_t longest_row = 0;     // tokens
  std::string format;          // messages, prompt_completion, text, input_ids; empty: unknown or mixed
  bool has_validation = false;
  int64_t truncated = 0, dropped = 0;  // rows of all parts that max_length cuts or leaves out, where that is known
};

// The device that will train.
struct DeviceFacts {
  enum class Kind { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int64_t memory_bytes = 0;  // 0: unknown, nothing is refused for it
  int64_t threads = 1;
  bool bf16 = false;  // has bf16 matrix units
};

}  // namespace luthier
