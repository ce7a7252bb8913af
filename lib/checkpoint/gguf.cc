#include "lib/checkpoint/gguf.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;  // what readers assume where the file does not say
constexpr uint32_t kFloat32Tensor = 0;

// Types of values.
constexpr uint32_t kUint32 = 4, kFloat32 = 6, kBool = 7, kString = 8;

// No name or text of an adapter comes near; it bounds what a damaged length can claim.
constexpr uint64_t kMaxString = 1 << 20;
constexpr uint64_t kMaxEntries = 1 << 20;

uint64_t Aligned(uint64_t position) { return (position + kAlignment - 1) / kAlignment * kAlignment; }

class Writer {
 public:
  template <typename T>
  void Number(T value) {
    const auto* bytes = reinterpret_cast<const char*>(&value);
    out_.append(bytes, sizeof value);
  }
  void Text(const std::string& text) {
    Number<uint64_t>(text.size());
    out_ += text;
  }
  void Value(const GgufValue& value) {
    if (const auto* text = std::get_if<std::string>(&value)) {
      Number(kString);
      Text(*text);
    } else if (const auto* number = std::get_if<float>(&value)) {
      Number(kFloat32);
      Number(*number);
    } else if (const auto* whole = std::get_if<uint32_t>(&value)) {
      Number(kUint32);
      Number(*whole);
    } else {
      Number(kBool);
      Number<uint8_t>(std::get<bool>(value) ? 1 : 0);
    }
  }
  void Pad() { out_.resize(Aligned(out_.size()), '\0'); }

  const std::string& bytes() const { return out_; }

 private:
  std::string out_;
};

// Reads on until something is wrong, and then remembers it and yields zeros.
class Reader {
 public:
  explicit Reader(std::vector<char> bytes) : bytes_(std::move(bytes)) {}

  template <typename T>
  T Number() {
    T value{};
    if (const char* from = Take(sizeof value)) std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::string Text() {
    const auto size = Number<uint64_t>();
    if (size > kMaxString) return Fail(absl::StrCat("a text of ", size, " bytes")), std::string();
    const char* from = Take(size);
    return from == nullptr ? std::string() : std::string(from, size);
  }
  GgufValue Value(const std::string& key) {
    const auto type = Number<uint32_t>();
    switch (type) {
      case kString: return Text();
      case kFloat32: return Number<float>();
      case kUint32: return Number<uint32_t>();
      case kBool: return Number<uint8_t>() != 0;
      default:
        return Fail(absl::StrCat("'", key, "' has a value of type ", type, ", which is not supported")), GgufValue();
    }
  }
  const char* At(uint64_t begin, uint64_t size) {
    if (begin > bytes_.size() || size > bytes_.size() - begin) return Fail("a tensor reaches beyond the end"), nullptr;
    return bytes_.data() + begin;
  }

  void Fail(std::string what) {
    if (fault_.empty()) fault_ = std::move(what);
  }
  const std::string& fault() const { return fault_; }
  uint64_t position() const { return position_; }

 private:
  const char* Take(uint64_t size) {
    if (!fault_.empty() || size > bytes_.size() - position_) return Fail("ends too early"), nullptr;
    const char* from = bytes_.data() + position_;
    position_ += size;
    return from;
  }

  std::vector<char> bytes_;
  uint64_t position_ = 0;
  std::string fault_;
};

struct TensorEntry {
  std::string name;
  std::vector<int64_t> shape;
  uint64_t elements = 1;
  uint64_t offset = 0;
};

TensorEntry ReadEntry(Reader& reader) {
  TensorEntry entry;
  entry.name = reader.Text();
  const auto dimensions = reader.Number<uint32_t>();
  if (dimensions > 4) reader.Fail(absl::StrCat("tensor '", entry.name, "' has ", dimensions, " dimensions"));
  for (uint32_t i = 0; i < dimensions && reader.fault().empty(); ++i) {
    const auto size = reader.Number<uint64_t>();
    constexpr uint64_t kMaxElements = uint64_t{1} << 40;
    if (size > kMaxElements / std::max<uint64_t>(entry.elements, 1))
      reader.Fail(absl::StrCat("tensor '", entry.name, "' is too large"));
    entry.elements *= size;
    entry.shape.insert(entry.shape.begin(), static_cast<int64_t>(size));
  }
  if (const auto type = reader.Number<uint32_t>(); type != kFloat32Tensor) {
    reader.Fail(absl::StrCat("tensor '", entry.name, "' has type ", type, ", supported: 0 (F32)"));
  }
  entry.offset = reader.Number<uint64_t>();
  return entry;
}

}  // namespace

absl::Status WriteGguf(const std::string& path, const GgufFile& file) {
  Writer writer;
  writer.Number(kMagic);
  writer.Number(kVersion);
  writer.Number<uint64_t>(file.tensors.size());
  writer.Number<uint64_t>(file.metadata.size());
  for (const auto& [key, value] : file.metadata) {
    writer.Text(key);
    writer.Value(value);
  }
  uint64_t offset = 0;
  for (const auto& [name, tensor] : file.tensors) {
    writer.Text(name);
    writer.Number(static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size)
      writer.Number(static_cast<uint64_t>(*size));
    writer.Number(kFloat32Tensor);
    writer.Number(offset);
    offset = Aligned(offset + tensor.values.size() * sizeof(float));
  }
  writer.Pad();

  LUTHIER_ASSIGN_OR_RETURN(DurableFile out, DurableFile::Create(path));
  LUTHIER_RETURN_IF_ERROR(out.Append(std::as_bytes(std::span(writer.bytes()))));
  static constexpr std::byte kZeros[kAlignment] = {};
  for (const auto& [name, tensor] : file.tensors) {
    const auto bytes = std::as_bytes(std::span(tensor.values));
    LUTHIER_RETURN_IF_ERROR(out.Append(bytes));
    LUTHIER_RETURN_IF_ERROR(out.Append(std::span(kZeros).first(Aligned(bytes.size()) - bytes.size())));
  }
  return out.Commit();
}

absl::StatusOr<GgufFile> ReadGguf(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat(path, ": not found"));
  Reader reader(std::vector<char>(std::istreambuf_iterator<char>(stream), {}));
  if (reader.Number<uint32_t>() != kMagic) return absl::InvalidArgumentError(absl::StrCat(path, ": is no GGUF file"));
  if (reader.Number<uint32_t>() != kVersion)
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not GGUF version 3"));
  const auto tensors = reader.Number<uint64_t>(), values = reader.Number<uint64_t>();
  if (tensors > kMaxEntries || values > kMaxEntries)
    reader.Fail(absl::StrCat("claims ", tensors, " tensors and ", values, " values"));
  GgufFile file;
  for (uint64_t i = 0; i < values && reader.fault().empty(); ++i) {
    const std::string key = reader.Text();
    if (!file.metadata.emplace(key, reader.Value(key)).second)
      reader.Fail(absl::StrCat("has the key '", key, "' twice"));
  }
  std::vector<TensorEntry> entries;
  for (uint64_t i = 0; i < tensors && reader.fault().empty(); ++i) entries.push_back(ReadEntry(reader));
  const uint64_t data = Aligned(reader.position());
  uint64_t offset = 0;  // tensors lie one behind the other: what the file holds is also what it can ask for
  for (const TensorEntry& entry : entries) {
    if (entry.offset != offset)
      reader.Fail(absl::StrCat("tensor '", entry.name, "' leaves a hole or overlaps another at byte ", offset));
    const uint64_t bytes = entry.elements * sizeof(float);
    const char* from = reader.At(data + offset, bytes);
    if (!reader.fault().empty()) break;
    GgufTensor tensor{entry.shape, std::vector<float>(entry.elements)};
    std::memcpy(tensor.values.data(), from, bytes);
    if (!file.tensors.emplace(entry.name, std::move(tensor)).second)
      reader.Fail(absl::StrCat("has the tensor '", entry.name, "' twice"));
    offset = Aligned(offset + bytes);
  }
  if (!reader.fault().empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", reader.fault()));
  return file;
}

}  // namespace luthier
