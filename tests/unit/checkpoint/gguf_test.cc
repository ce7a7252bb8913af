#include "lib/checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  GgufFile Sample() const {
    GgufFile file;
    file.metadata = {{"general.type", std::string("adapter")},
                     {"adapter.lora.alpha", 32.0f},
                     {"count", uint32_t{7}},
                     {"flag", true}};
    file.tensors["blk.0.attn_q.weight.lora_a"] = {{2, 3}, {1, 2, 3, 4, 5, 6}};
    file.tensors["blk.0.attn_q.weight.lora_b"] = {{1, 2}, {7, 8}};
    return file;
  }

  std::string Bytes() const {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  template <typename T>
  static T NumberAt(const std::string& bytes, size_t position) {
    T value;
    std::memcpy(&value, bytes.data() + position, sizeof value);
    return value;
  }

  TempFolder folder_;
  std::string path_ = folder_.path() + "/adapter.gguf";
};

TEST_F(GgufTest, WhatIsWrittenReadsBack) {
  ASSERT_TRUE(WriteGguf(path_, Sample()).ok());
  const auto file = ReadGguf(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata, Sample().metadata);
  ASSERT_EQ(file->tensors.size(), 2u);
  EXPECT_THAT(file->tensors.at("blk.0.attn_q.weight.lora_a").shape, ElementsAre(2, 3));
  EXPECT_EQ(file->tensors.at("blk.0.attn_q.weight.lora_a").values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(file->tensors.at("blk.0.attn_q.weight.lora_b").values, (std::vector<float>{7, 8}));
}

// Byte by byte, so that reader and writer cannot be wrong in the same way.
TEST_F(GgufTest, TheBytesAreThoseOfTheSpecification) {
  GgufFile file;
  file.metadata = {{"a", std::string("xy")}};
  file.tensors["t"] = {{2, 3}, {1, 2, 3, 4, 5, 6}};
  file.tensors["u"] = {{1}, {9}};
  ASSERT_TRUE(WriteGguf(path_, file).ok());
  const std::string bytes = Bytes();
  EXPECT_EQ(bytes.substr(0, 4), "GGUF");
  EXPECT_EQ(NumberAt<uint32_t>(bytes, 4), 3u);
  EXPECT_EQ(NumberAt<uint64_t>(bytes, 8), 2u);   // tensors
  EXPECT_EQ(NumberAt<uint64_t>(bytes, 16), 1u);  // values
  size_t at = 24;
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at), 1u);
  EXPECT_EQ(bytes[at + 8], 'a');
  EXPECT_EQ(NumberAt<uint32_t>(bytes, at + 9), 8u);  // a string
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at + 13), 2u);
  EXPECT_EQ(bytes.substr(at + 21, 2), "xy");
  at += 23;
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at), 1u);
  EXPECT_EQ(bytes[at + 8], 't');
  EXPECT_EQ(NumberAt<uint32_t>(bytes, at + 9), 2u);  // dimensions, the fastest first
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at + 13), 3u);
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at + 21), 2u);
  EXPECT_EQ(NumberAt<uint32_t>(bytes, at + 29), 0u);  // F32
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at + 33), 0u);  // offset
  at += 41;
  EXPECT_EQ(NumberAt<uint64_t>(bytes, at + 25), 32u);  // 24 bytes of t, padded to 32
  const size_t data = bytes.size() - 64;
  EXPECT_EQ(data % 32, 0u);
  EXPECT_EQ(NumberAt<float>(bytes, data + 4), 2.0f);
  EXPECT_EQ(NumberAt<float>(bytes, data + 32), 9.0f);
}

// A file of some megabytes whose tensors all name the same bytes would ask for terabytes.
TEST_F(GgufTest, TensorsThatShareBytesOrNamesAreRefused) {
  GgufFile file;
  file.metadata = {{"k", true}, {"l", true}};
  file.tensors["t"] = {{2}, {1, 2}};
  file.tensors["u"] = {{2}, {3, 4}};
  ASSERT_TRUE(WriteGguf(path_, file).ok());
  const std::string whole = Bytes();
  const auto refusal = [&](size_t position, char byte) {
    std::string changed = whole;
    changed[position] = byte;
    std::ofstream(path_, std::ios::binary) << changed;
    return std::string(ReadGguf(path_).status().message());
  };
  const size_t key = whole.find('l'), name = whole.find('u'), offset = name + 1 + 4 + 8 + 4;
  ASSERT_EQ(NumberAt<uint64_t>(whole, offset), 32u);
  EXPECT_THAT(refusal(offset, 0), HasSubstr("tensor 'u' leaves a hole or overlaps another at byte 32"));
  EXPECT_THAT(refusal(name, 't'), HasSubstr("has the tensor 't' twice"));
  EXPECT_THAT(refusal(key, 'k'), HasSubstr("has the key 'k' twice"));
  EXPECT_EQ(refusal(key, 'm'), "");
}

TEST_F(GgufTest, DamagedFilesAreRefused) {
  ASSERT_TRUE(WriteGguf(path_, Sample()).ok());
  const std::string whole = Bytes();
  const auto open = [&](const std::string& content) {
    std::ofstream(path_, std::ios::binary) << content;
    return ReadGguf(path_);
  };
  for (size_t length = 0; length + 32 < whole.size(); length += 3)
    EXPECT_FALSE(open(whole.substr(0, length)).ok()) << length;
  for (size_t position = 0; position < 300; ++position) {
    for (const char flip : {'\x01', '\x40', '\x80'}) {
      std::string mutated = whole;
      mutated[position] = static_cast<char>(mutated[position] ^ flip);
      (void)open(mutated);  // must not crash, nor ask for memory that the file has not
    }
  }
  EXPECT_THAT(std::string(open("PK" + whole.substr(2)).status().message()), HasSubstr("no GGUF file"));
  EXPECT_EQ(ReadGguf(folder_.path() + "/none.gguf").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace luthier
