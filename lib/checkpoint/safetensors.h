// The safetensors format: a u64 little-endian header length, a JSON header, then raw little-endian tensors.
// Source: github.com/huggingface/safetensors README, "Format". Files come from users, so the header is hostile until
// proven.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace luthier {

// Number formats of stored tensors that Luthier reads.
enum class Dtype { kF64, kF32, kF16, kBf16, kI64, kI32, kU8, kBool };

// Size of one element in bytes.
size_t DtypeSize(Dtype dtype);

// Name in a safetensors header: "F32", "BF16", …
absl::string_view DtypeName(Dtype dtype);

// A stored tensor. `bytes` points into the mapped file, row-major, and lives as long as the file.
struct TensorView {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// A tensor to be written; `bytes` is borrowed.
using TensorToWrite = TensorView;

// Number of elements of a shape.
int64_t NumElements(const std::vector<int64_t>& shape);

// "[2, 3]", for messages.
std::string ShapeString(const std::vector<int64_t>& shape);

// The reference implementation's limit; a larger header is a fault or an attack.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// One safetensors file, memory-mapped read-only. Movable; safe to read from several threads.
class SafetensorsFile {
 public:
  // Maps the file and checks its whole header before anything is allocated from it: length, JSON depth, duplicate keys,
  // number formats, overflow of shapes, and offsets that cover the buffer in order without hole or overlap.
  // Errors: NOT_FOUND; INVALID_ARGUMENT naming file and fault; UNAVAILABLE if there is no memory to map it.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  // By name, sorted.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  struct Mapping;
  std::shared_ptr<const Mapping> mapping_;  // shared by copies of the views' owner; unmapped with the last one
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kWeightsIndexFile = "model.safetensors.index.json";

// The weights of a Hugging Face folder: `model.safetensors`, or without it the shards of
// `model.safetensors.index.json`.
class WeightFolder {
 public:
  // Opens every file. Errors: NOT_FOUND if there are no weights; INVALID_ARGUMENT for pickle files without safetensors
  // (by name, with the remedy), for shards that leave the folder, and for an index that is stale: a file or a tensor of
  // it is missing, or a shard holds others.
  static absl::StatusOr<WeightFolder> Open(const std::string& folder);

  // By the names of ByCheckpointNames().
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  static absl::StatusOr<WeightFolder> OpenWhole(const std::filesystem::path& folder);
  static absl::StatusOr<WeightFolder> OpenShards(const std::filesystem::path& folder);

  std::vector<SafetensorsFile> files_;
  std::map<std::string, TensorView> tensors_;
};

// The files that the index names, whether they are there or not. Errors: INVALID_ARGUMENT for an index that is none or
// leaves the folder.
absl::StatusOr<std::set<std::string>> ShardFiles(const std::string& folder);

// SHA-256 over names, formats, shapes and an XXH64 of each tensor's bytes: equal content, in whatever files it lies.
// Reads everything once (about 0.2 s a GB), and leaves none of it in this process's memory.
std::string ContentHash(const std::map<std::string, TensorView>& tensors);

// Gives back the memory that a stored tensor's pages take since they were read; whoever touches them again reads the
// file again.
void ReleasePages(const TensorView& tensor);

// Writes a file that Python's safetensors reads: sorted by descending alignment and name, header padded to 8 bytes.
// The file appears under `path` only when it is complete and on disk. Errors: RESOURCE_EXHAUSTED if the disk is full.
absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace luthier
