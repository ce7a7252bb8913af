// The GGUF format, version 3, as far as an adapter needs it: text and numbers about the file, and fp32 tensors.
// Source: github.com/ggml-org/ggml docs/gguf.md. Everything is little-endian.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace luthier {

using GgufValue = std::variant<std::string, float, uint32_t, bool>;

// Row-major, outermost dimension first; the file lists dimensions the other way round.
struct GgufTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct GgufFile {
  std::map<std::string, GgufValue> metadata;
  std::map<std::string, GgufTensor> tensors;
};

// The file appears under `path` only when it is complete and on disk. Errors: RESOURCE_EXHAUSTED if the disk is full.
absl::Status WriteGguf(const std::string& path, const GgufFile& file);

// Reads a file that holds nothing but what GgufFile can: other types of values or tensors are refused by name.
// Errors: NOT_FOUND; INVALID_ARGUMENT naming file and fault.
absl::StatusOr<GgufFile> ReadGguf(const std::string& path);

}  // namespace luthier
