#include "lib/artifact/hash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <span>

#include "lib/artifact/blob_beginnings.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

// FIPS 180-4 examples.
TEST(Sha256Test, AgreesWithTheStandardsVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256Test, PiecesGiveTheHashOfTheWhole) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.FinishHex(), Sha256Hex("abc"));
}

TEST(Sha256Test, ACopyGoesOnByItself) {
  Sha256 hash;
  hash.Update("a");
  Sha256 copy(hash);
  hash.Update("bc");
  copy.Update("x");
  EXPECT_EQ(hash.FinishHex(), Sha256Hex("abc"));
  EXPECT_EQ(copy.FinishHex(), Sha256Hex("ax"));
}

TEST(BlobBeginningsTest, KnowsTheNewestAndGivesTheLongestOfABlob) {
  BlobBeginnings beginnings(/*most=*/3);
  Sha256 hash;
  hash.Update("a");
  beginnings.Put("one", 1, hash);
  hash.Update("b");
  beginnings.Put("one", 2, hash);
  beginnings.Put("two", 5, Sha256());
  EXPECT_EQ(beginnings.Longest("one", 0).bytes, 0);
  EXPECT_EQ(beginnings.Longest("one", 1).bytes, 1);
  BlobBeginnings::Beginning found = beginnings.Longest("one", 100);
  EXPECT_EQ(found.bytes, 2);
  EXPECT_EQ(found.hash.FinishHex(), Sha256Hex("ab"));
  EXPECT_EQ(beginnings.Longest("three", 100).bytes, 0);
  EXPECT_EQ(beginnings.Longest("three", 100).hash.FinishHex(), Sha256Hex(""));
  beginnings.Put("two", 5, Sha256());
  EXPECT_EQ(beginnings.Longest("one", 1).bytes, 1) << "nothing has come that was not there";
  beginnings.Put("three", 7, Sha256());
  EXPECT_EQ(beginnings.Longest("one", 1).bytes, 0);
  EXPECT_EQ(beginnings.Longest("one", 2).bytes, 2);
}

TEST(Sha256Test, HashesAFileLargerThanItsBuffer) {
  TempFolder folder;
  const std::string content((size_t{1} << 20) + 17, 'x');
  std::ofstream(folder.path() + "/file", std::ios::binary) << content;
  const auto hash = Sha256OfFile(folder.path() + "/file");
  ASSERT_TRUE(hash.ok()) << hash.status();
  EXPECT_EQ(*hash, Sha256Hex(content));
  EXPECT_EQ(Sha256OfFile(folder.path() + "/absent").status().code(), absl::StatusCode::kNotFound);
}

TEST(Sha256Test, OnlyLowerCaseDigestsAreNamesOfBlobs) {
  EXPECT_TRUE(IsSha256Hex(Sha256Hex("a")));
  EXPECT_FALSE(IsSha256Hex("../../etc/passwd"));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'A')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a')));
}

// RFC 3720, appendix B.4.
TEST(Crc32cTest, AgreesWithTheStandardsVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(Crc32cTest, GoesOnFromTheBytesBefore) { EXPECT_EQ(Crc32c("56789", Crc32c("1234")), Crc32c("123456789")); }

// Of the specification's reference program.
TEST(HashTest, Xxh64EqualsItsReference) {
  const auto hash = [](absl::string_view text) { return Xxh64(std::as_bytes(std::span(text.data(), text.size()))); };
  EXPECT_EQ(hash(""), 0xef46db3751d8e999);
  EXPECT_EQ(hash("a"), 0xd24ec4f1a98c6e5b);
  EXPECT_EQ(hash("abc"), 0x44bc2cf5ad770999);
  EXPECT_EQ(hash("xxhash is a hash of some sixty bytes here, with a rest: 123456"), 0xae7e3699a786e77b);
}

}  // namespace
}  // namespace luthier
