#include "lib/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/open_keys.h"
#include "lib/checkpoint/stored_names.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// A header is an object of objects of arrays: three levels. One more is already wrong.
constexpr int kMaxHeaderDepth = 4;
// More than any model's tensors have; keeps messages about a shape short.
constexpr size_t kMaxDimensions = 16;

constexpr char kMetadata[] = "__metadata__";  // the one key of a header that is no tensor
using HeaderSize = uint64_t;                  // what a file begins with

struct DtypeRow {
  Dtype dtype;
  absl::string_view name;
  size_t size;
};
constexpr std::array<DtypeRow, 8> kDtypes = {{{Dtype::kF64, "F64", 8},
                                              {Dtype::kF32, "F32", 4},
                                              {Dtype::kF16, "F16", 2},
                                              {Dtype::kBf16, "BF16", 2},
                                              {Dtype::kI64, "I64", 8},
                                              {Dtype::kI32, "I32", 4},
                                              {Dtype::kU8, "U8", 1},
                                              {Dtype::kBool, "BOOL", 1}}};

std::optional<Dtype> ParseDtype(absl::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

// Parses JSON, refusing what nlohmann would silently accept: repeated keys and deep nesting.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text) {
  OpenKeys keys;
  std::string fault;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    // Nothing more is kept once the header is known to be bad: its nesting would cost far more memory than its text.
    if (!fault.empty()) return false;
    if (depth > kMaxHeaderDepth) {
      fault = "is nested too deep";
      return false;
    }
    if (keys.IsRepeated(event, parsed)) fault = absl::StrCat("has the key '", parsed.get<std::string>(), "' twice");
    return true;
  };
  nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), check, /*allow_exceptions=*/false);
  if (!fault.empty()) return absl::InvalidArgumentError(fault);
  if (json.is_discarded()) return absl::InvalidArgumentError("is not valid JSON");
  return json;
}

struct HeaderEntry {
  TensorView view;
  uint64_t begin;
  uint64_t end;
};

// Bytes of a tensor, or nothing when the product overflows or a dimension is negative.
std::optional<uint64_t> CheckedBytes(const std::vector<int64_t>& shape, Dtype dtype) {
  // Signed, as NumElements multiplies the same numbers.
  auto bytes = static_cast<int64_t>(DtypeSize(dtype));
  for (int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

absl::StatusOr<HeaderEntry> ParseEntry(const std::string& name, const nlohmann::json& value) {
  const auto fault = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' ", what));
  };
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets") ||
      !value["dtype"].is_string()) {
    return fault("needs dtype, shape and data_offsets");
  }
  const std::optional<Dtype> dtype = ParseDtype(value["dtype"].get<std::string>());
  if (!dtype) return fault(absl::StrCat("has dtype ", value["dtype"].get<std::string>(), ", which is not supported"));
  HeaderEntry entry{{name, *dtype, {}, {}}, 0, 0};
  if (!value["shape"].is_array()) return fault("has a shape that is not a list");
  if (value["shape"].size() > kMaxDimensions) {
    return fault(absl::StrCat("has ", value["shape"].size(), " dimensions; at most ", kMaxDimensions, " are read"));
  }
  for (const nlohmann::json& size : value["shape"]) {
    if (!size.is_number_unsigned()) return fault("has a dimension that is not a whole number >= 0");
    entry.view.shape.push_back(size.get<int64_t>());
  }
  const nlohmann::json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return fault("has data_offsets that are not two whole numbers");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  const std::optional<uint64_t> bytes = CheckedBytes(entry.view.shape, *dtype);
  if (!bytes || entry.end < entry.begin || entry.end - entry.begin != *bytes) {
    return fault(absl::StrCat("of shape ", ShapeString(entry.view.shape), " does not fit its data_offsets [",
                              entry.begin, ", ", entry.end, "]"));
  }
  return entry;
}

// Offsets must cover the buffer in order, without hole or overlap.
absl::Status CheckCoverage(std::vector<HeaderEntry>& entries, uint64_t buffer_bytes) {
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t position = 0;
  for (const HeaderEntry& entry : entries) {
    if (entry.begin != position) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", entry.view.name, "' leaves a hole or overlaps another at byte ", position));
    }
    position = entry.end;
  }
  if (position != buffer_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("holds ", buffer_bytes, " bytes of data, its header describes ", position));
  }
  return absl::OkStatus();
}

// torch.save writes a zip archive, or in its old format a bare pickle of protocol 2 or later.
bool LooksLikePickle(std::span<const std::byte> bytes) {
  constexpr unsigned char kZip[] = {'P', 'K', 3, 4};
  return std::memcmp(bytes.data(), kZip, sizeof kZip) == 0 ||
         (bytes[0] == std::byte{0x80} && bytes[1] >= std::byte{2} && bytes[1] <= std::byte{5} &&
          bytes[7] != std::byte{0});
}

// The text of the header of a file that has the bytes of its size at least.
absl::StatusOr<absl::string_view> HeaderOf(std::span<const std::byte> bytes) {
  if (LooksLikePickle(bytes)) {
    return absl::InvalidArgumentError("is a pickle, which can run code and is not read; convert it to safetensors");
  }
  HeaderSize size;
  std::memcpy(&size, bytes.data(), sizeof size);
  if (size > kMaxHeaderBytes || size > bytes.size() - sizeof size) {
    return absl::InvalidArgumentError(
        absl::StrCat("claims a header of ", size, " bytes; it is damaged or no safetensors file"));
  }
  const absl::string_view header(reinterpret_cast<const char*>(bytes.data()) + sizeof size, size);
  if (header.empty() || header.front() != '{') return absl::InvalidArgumentError("header does not start with '{'");
  return header;
}

absl::StatusOr<std::map<std::string, std::string>> ParseMetadata(const nlohmann::json& value) {
  if (!value.is_object()) return absl::InvalidArgumentError("__metadata__ is no object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return absl::InvalidArgumentError("__metadata__ holds more than strings");
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

template <typename T>
absl::StatusOr<T> InFile(const std::string& path, absl::StatusOr<T> result) {
  if (result.ok()) return result;
  return InFile(path, result.status());
}

}  // namespace

size_t DtypeSize(Dtype dtype) {
  return std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeRow& row) { return row.dtype == dtype; })->size;
}

absl::string_view DtypeName(Dtype dtype) {
  return std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeRow& row) { return row.dtype == dtype; })->name;
}

int64_t NumElements(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (int64_t size : shape) elements *= size;
  return elements;
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

struct SafetensorsFile::Mapping {
  static absl::StatusOr<std::shared_ptr<const Mapping>> Of(const std::string& path);
  Mapping(void* address, size_t size) : address(address), size(size) {}
  ~Mapping() { munmap(address, size); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(address), size}; }
  void* address;
  size_t size;
};

absl::StatusOr<std::shared_ptr<const SafetensorsFile::Mapping>> SafetensorsFile::Mapping::Of(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat info;
  const bool statted = fstat(file.get(), &info) == 0;
  const auto size = statted ? static_cast<uint64_t>(info.st_size) : 0;
  if (size < sizeof(HeaderSize)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has ", size, " bytes, too few for a safetensors file"));
  }
  void* address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address != MAP_FAILED) return std::make_shared<const Mapping>(address, size);
  const int error = errno;
  const std::string what = absl::StrCat(path, ": mmap: ", std::strerror(error));
  return error == ENOMEM ? absl::UnavailableError(what) : absl::InvalidArgumentError(what);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile file;
  LUTHIER_ASSIGN_OR_RETURN(file.mapping_, Mapping::Of(path));
  const std::span<const std::byte> bytes = file.mapping_->bytes();
  LUTHIER_ASSIGN_OR_RETURN(const absl::string_view header, InFile(path, HeaderOf(bytes)));
  const std::span<const std::byte> data = bytes.subspan(sizeof(HeaderSize) + header.size());
  absl::StatusOr<nlohmann::json> json = ParseStrictJson(header);
  if (!json.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": header ", json.status().message()));
  std::vector<HeaderEntry> entries;
  for (const auto& [name, value] : json->items()) {
    if (name == kMetadata) {
      LUTHIER_ASSIGN_OR_RETURN(file.metadata_, InFile(path, ParseMetadata(value)));
      continue;
    }
    LUTHIER_ASSIGN_OR_RETURN(HeaderEntry entry, InFile(path, ParseEntry(name, value)));
    entries.push_back(std::move(entry));
  }
  LUTHIER_RETURN_IF_ERROR(InFile(path, CheckCoverage(entries, data.size())));
  for (HeaderEntry& entry : entries) {
    entry.view.bytes = data.subspan(entry.begin, entry.end - entry.begin);
    file.tensors_.emplace(entry.view.name, std::move(entry.view));
  }
  return file;
}

namespace {

// The shard of each tensor.
using Index = std::map<std::string, std::string>;

absl::StatusOr<Index> ReadIndex(const fs::path& path) {
  std::ifstream stream(path);
  const nlohmann::json index = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (index.is_discarded() || !index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": is no JSON object with a weight_map"));
  }
  Index shard_of;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || shard.get<std::string>() != fs::path(shard.get<std::string>()).filename().string() ||
        shard.get<std::string>() == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": weight_map entry '", name, "' must name a file in the same folder"));
    }
    shard_of[name] = shard.get<std::string>();
  }
  return shard_of;
}

std::set<std::string> ShardsIn(const Index& index) {
  std::set<std::string> shards;
  for (const auto& [name, shard] : index) shards.insert(shard);
  return shards;
}

absl::Status Stale(const fs::path& index, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(index.string(), ": is stale: ", why,
                   "; give the files that were written with it, or join them (transformers: save_pretrained)"));
}

absl::Status NoWeights(const fs::path& folder) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string extension = entry.path().extension();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      return absl::InvalidArgumentError(absl::StrCat(
          entry.path().string(), ": pickle weights can run code and are not read; convert the model to safetensors"));
    }
  }
  return absl::NotFoundError(
      absl::StrCat(folder.string(), ": holds neither model.safetensors nor model.safetensors.index.json"));
}

// As in transformers, a whole file counts and not the index beside it.
bool IsSharded(const fs::path& folder) {
  return !fs::exists(folder / kWeightsFile) && fs::exists(folder / kWeightsIndexFile);
}

}  // namespace

absl::StatusOr<std::set<std::string>> ShardFiles(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const Index shard_of, ReadIndex(fs::path(folder) / kWeightsIndexFile));
  return ShardsIn(shard_of);
}

absl::StatusOr<WeightFolder> WeightFolder::Open(const std::string& folder) {
  const fs::path root(folder);
  LUTHIER_ASSIGN_OR_RETURN(WeightFolder weights, IsSharded(root) ? OpenShards(root) : OpenWhole(root));
  weights.tensors_ = ByCheckpointNames(weights.tensors_);
  return weights;
}

absl::StatusOr<WeightFolder> WeightFolder::OpenWhole(const std::filesystem::path& folder) {
  if (!fs::exists(folder / kWeightsFile)) return NoWeights(folder);
  WeightFolder weights;
  LUTHIER_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(folder / kWeightsFile));
  weights.tensors_ = file.tensors();
  weights.files_.push_back(std::move(file));
  return weights;
}

absl::StatusOr<WeightFolder> WeightFolder::OpenShards(const std::filesystem::path& folder) {
  const fs::path index = folder / kWeightsIndexFile;
  LUTHIER_ASSIGN_OR_RETURN(const Index shard_of, ReadIndex(index));
  WeightFolder weights;
  for (const std::string& shard : ShardsIn(shard_of)) {
    if (!fs::exists(folder / shard)) return Stale(index, absl::StrCat("it names ", shard, ", which is not there"));
    LUTHIER_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(folder / shard));
    for (const auto& [name, view] : file.tensors()) {
      const auto placed = shard_of.find(name);
      if (placed == shard_of.end() || placed->second != shard)
        return Stale(index, absl::StrCat(shard, " holds tensor '", name, "', which it does not place there"));
      weights.tensors_.emplace(name, view);
    }
    weights.files_.push_back(std::move(file));
  }
  for (const auto& [name, shard] : shard_of) {
    if (!weights.tensors_.contains(name)) return Stale(index, absl::StrCat(shard, " lacks tensor '", name, "'"));
  }
  return weights;
}

std::string ContentHash(const std::map<std::string, TensorView>& tensors) {
  Sha256 hash;
  for (const auto& [name, tensor] : tensors) {
    hash.Update(absl::StrCat(name, "\n", DtypeName(tensor.dtype), ShapeString(tensor.shape),
                             absl::Hex(Xxh64(tensor.bytes)), "\n"));
    ReleasePages(tensor);
  }
  return hash.FinishHex();
}

void ReleasePages(const TensorView& tensor) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.bytes.data());
  // Whole pages only: those at the ends also hold a neighbour.
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + tensor.bytes.size()) / page * page;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the address of a page is a number that is rounded.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  // Wide elements first, so that every tensor is aligned to its element size.
  std::sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    return std::pair(-static_cast<int>(DtypeSize(a->dtype)), a->name) <
           std::pair(-static_cast<int>(DtypeSize(b->dtype)), b->name);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t position = 0;
  for (const TensorToWrite* tensor : order) {
    header[tensor->name] = {{"dtype", std::string(DtypeName(tensor->dtype))},
                            {"shape", tensor->shape},
                            {"data_offsets", {position, position + tensor->bytes.size()}}};
    position += tensor->bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const HeaderSize header_bytes = text.size();

  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  LUTHIER_RETURN_IF_ERROR(file.Append({reinterpret_cast<const std::byte*>(&header_bytes), sizeof header_bytes}));
  LUTHIER_RETURN_IF_ERROR(file.Append({reinterpret_cast<const std::byte*>(text.data()), text.size()}));
  for (const TensorToWrite* tensor : order) LUTHIER_RETURN_IF_ERROR(file.Append(tensor->bytes));
  return file.Commit();
}

}  // namespace luthier
