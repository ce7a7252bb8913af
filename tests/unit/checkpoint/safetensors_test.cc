#include "lib/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

// A file with this header text and this many bytes of data behind it.
std::string FileWith(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  return file + header + std::string(data_bytes, '\x01');
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = folder_.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  TempFolder folder_;
};

struct HostileHeader {
  const char* name;
  std::string file;
  const char* message;
};

class HostileHeaderTest : public SafetensorsTest, public ::testing::WithParamInterface<HostileHeader> {};

TEST_P(HostileHeaderTest, IsRefusedWithAReason) {
  const auto file = SafetensorsFile::Open(Write("model.safetensors", GetParam().file));
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(GetParam().message));
}

std::string LengthOnly(uint64_t length) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + "{}";
}

INSTANTIATE_TEST_SUITE_P(
    Faults, HostileHeaderTest,
    ::testing::Values(
        HostileHeader{"TooShort", "abc", "too few"},
        HostileHeader{"LengthBeyondTheFile", LengthOnly(1000), "claims a header"},
        HostileHeader{"LengthOverflow", LengthOnly(~0ull), "claims a header"},
        HostileHeader{"NoObject", FileWith("[1]", 0), "does not start with '{'"},
        HostileHeader{"BrokenJson", FileWith("{\"a\":", 0), "not valid JSON"},
        HostileHeader{
            "DuplicateKey",
            FileWith(
                R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                1),
            "twice"},
        HostileHeader{"DeepNesting", FileWith(R"({"a":[[[[[[1]]]]]]})", 0), "nested too deep"},
        HostileHeader{"UnknownDtype", FileWith(R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}})", 1), "F99"},
        HostileHeader{"NegativeSize", FileWith(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
                      "dimension"},
        HostileHeader{"ShapeOverflow",
                      FileWith(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}})", 0),
                      "does not fit"},
        HostileHeader{"ShapeOverflowBehindAZero",
                      FileWith(R"({"a":{"dtype":"U8","shape":[4611686018427387904,2,0],"data_offsets":[0,0]}})", 0),
                      "does not fit"},
        HostileHeader{"ShapeAgainstOffsets", FileWith(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
                      "does not fit"},
        HostileHeader{"BackwardOffsets", FileWith(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
                      "does not fit"},
        HostileHeader{
            "Hole",
            FileWith(
                R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                3),
            "hole or overlaps"},
        HostileHeader{
            "Overlap",
            FileWith(
                R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                3),
            "hole or overlaps"},
        HostileHeader{"DataBehindTheLastTensor",
                      FileWith(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2), "2 bytes of data"},
        HostileHeader{"Truncated", FileWith(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3),
                      "3 bytes of data"},
        HostileHeader{"MetadataWithNumbers", FileWith(R"({"__metadata__":{"step":3}})", 0), "__metadata__"}),
    [](const auto& info) { return info.param.name; });

TEST_F(SafetensorsTest, ReadsWhatItWrites) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<uint16_t> halves = {7, 8, 9};
  const std::string path = folder_.path() + "/out.safetensors";
  ASSERT_TRUE(WriteSafetensors(path,
                               {{"b.half", Dtype::kBf16, {3}, std::as_bytes(std::span(halves))},
                                {"a.float", Dtype::kF32, {2, 3}, std::as_bytes(std::span(values))}},
                               {{"format", "pt"}})
                  .ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  const TensorView& tensor = file->tensors().at("a.float");
  EXPECT_EQ(tensor.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(tensor.bytes.data(), values.data(), tensor.bytes.size()), 0);
  EXPECT_EQ(file->tensors().at("b.half").bytes.size(), 6u);
}

TEST_F(SafetensorsTest, AFullDiskLeavesTheOldFileAndSaysWhatToDo) {
  const std::vector<float> values(4);
  const absl::Status status =
      WriteSafetensors("/dev/full/out.safetensors", {{"a", Dtype::kF32, {4}, std::as_bytes(std::span(values))}}, {});
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/full"));
}

TEST_F(SafetensorsTest, PickleWeightsAreRefusedByNameWithTheRemedy) {
  Write("pytorch_model.bin", "\x80\x02");
  const auto weights = WeightFolder::Open(folder_.path());
  ASSERT_FALSE(weights.ok());
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("pytorch_model.bin"));
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("convert the model to safetensors"));
}

TEST_F(SafetensorsTest, AnIndexMayNotLeaveTheFolder) {
  Write("model.safetensors.index.json", R"({"weight_map": {"a": "../../etc/passwd"}})");
  const auto weights = WeightFolder::Open(folder_.path());
  ASSERT_FALSE(weights.ok());
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("same folder"));
}

}  // namespace
}  // namespace luthier
