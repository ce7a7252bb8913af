// What the client of the hub takes apart and puts together without contacting anybody.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/hub/address.h"
#include "client/hub/environment.h"
#include "client/hub/git_blob.h"
#include "client/hub/hub.h"
#include "client/hub/listing.h"
#include "lib/artifact/durable_file.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(HubAddressTest, IsARepositoryWithOrWithoutARevision) {
  const auto bare = ParseHubAddress("hf://Qwen/Qwen2.5-0.5B-Instruct");
  ASSERT_TRUE(bare.ok()) << bare.status();
  EXPECT_EQ(bare->repository, "Qwen/Qwen2.5-0.5B-Instruct");
  EXPECT_EQ(bare->Text(), "hf://Qwen/Qwen2.5-0.5B-Instruct@main");
  const auto pull_request = ParseHubAddress("hf://a/b@refs/pr/1");
  ASSERT_TRUE(pull_request.ok()) << pull_request.status();
  EXPECT_EQ(pull_request->revision, "refs/pr/1");
  EXPECT_TRUE(IsHubAddress("hf://x"));
  EXPECT_FALSE(IsHubAddress("hf/folder"));
}

TEST(HubAddressTest, NothingElseIsOne) {
  for (const std::string& text :
       {std::string("hf://"), std::string("hf://a"), std::string("hf://a/b/c"), std::string("hf:///b"),
        std::string("hf://a/"), std::string("hf://a/.."), std::string("hf://../b"), std::string("hf://a/b@"),
        std::string("hf://a/b@."), std::string("hf://a/b@x/../y"), std::string("hf://a/b@x y"),
        std::string("hf://a/b@x\n"), std::string("hf://a/b?c"), std::string("hf://a/b\0", 9),
        absl::StrCat("hf://a/", std::string(97, 'x')), absl::StrCat("hf://a/b@", std::string(256, 'x'))}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseHubAddress(text).status())) << text;
  }
}

// As the hub answers for a model with a large file and a small one.
json HonestListing() {
  return {{"id", "a/b"},
          {"sha", std::string(40, 'c')},
          {"gated", false},
          {"siblings",
           {{{"rfilename", ".gitattributes"}, {"blobId", std::string(40, '1')}, {"size", 1519}},
            {{"rfilename", "config.json"}, {"blobId", std::string(40, '2')}, {"size", 659}},
            {{"rfilename", "model.safetensors"},
             {"blobId", std::string(40, '3')},
             {"size", 988097824},
             {"lfs", {{"sha256", std::string(64, '4')}, {"size", 988097824}, {"pointerSize", 134}}}}}}};
}

// By its exit code a script would take it for the hub's, or the server's.
TEST(InCacheTest, WhatOurDiskRefusesIsNoRefusalOfTheHub) {
  EXPECT_TRUE(InCache(absl::OkStatus()).ok());
  for (const int error : {EACCES, EROFS, ENOENT}) {
    const absl::Status status = InCache(FileError("/cache/hub", "create", error));
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("/cache/hub"), HasSubstr("LUTHIER_CACHE_DIR")));
  }
  const absl::Status full = InCache(FileError("/cache/hub/file", "write", ENOSPC));
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()), AllOf(HasSubstr("free space"), HasSubstr("LUTHIER_CACHE_DIR")));
}

TEST(HubListingTest, KnowsWhatTheHubSaysOfEachFile) {
  const auto listing = ParseHubListing(HonestListing().dump());
  ASSERT_TRUE(listing.ok()) << listing.status();
  EXPECT_EQ(listing->commit, std::string(40, 'c'));
  ASSERT_EQ(listing->files.size(), 3u);
  EXPECT_EQ(listing->files[1].path, "config.json");
  EXPECT_EQ(listing->files[1].bytes, 659);
  EXPECT_EQ(listing->files[1].blob_id, std::string(40, '2'));
  EXPECT_EQ(listing->files[1].sha256, "");
  EXPECT_EQ(listing->files[2].bytes, 988097824);
  EXPECT_EQ(listing->files[2].sha256, std::string(64, '4'));
  EXPECT_EQ(listing->files[2].blob_id, "") << "that of the pointer";
  const std::vector<HubFile> describing = DescribingFiles(*listing);
  ASSERT_EQ(describing.size(), 1u);
  EXPECT_EQ(describing[0].path, "config.json");
  EXPECT_TRUE(CheckHasWeights(*listing, {"a/b", "main"}).ok());
  EXPECT_TRUE(FilesNamed(*listing, std::set<std::string>{"model.safetensors"}).ok());
  EXPECT_FALSE(FilesNamed(*listing, std::set<std::string>{"another.safetensors"}).ok());
}

TEST(HubListingTest, BelievesNothing) {
  const auto refused = [](const std::string& pointer, const json& lie) {
    json listing = HonestListing();
    listing[json::json_pointer(pointer)] = lie;
    const auto parsed = ParseHubListing(listing.dump());
    EXPECT_TRUE(absl::IsDataLoss(parsed.status())) << pointer << " " << lie;
  };
  for (const json& lie : {json(), json("main"), json(std::string(39, 'c')), json(std::string(40, 'C')), json(7)})
    refused("/sha", lie);
  for (const json& lie : {json(), json("x"), json({{"a", 1}}), json::array({1}), json::array({json::array()})})
    refused("/siblings", lie);
  for (const json& lie : {json(), json(-1), json(1.5), json("659"), json(100'000'000'000'001), json(uint64_t{1} << 63)})
    refused("/siblings/1/size", lie);
  for (const json& lie : {json(1), json::array(), json({{"sha256", "4"}, {"size", 988097824}})})
    refused("/siblings/2/lfs", lie);
  refused("/siblings/2/lfs/size", 5);
  refused("/siblings/2/lfs/sha256", std::string(64, 'g'));
  for (const json& lie : {json(), json(""), json("../x"), json("/x"), json("a//b"), json("a\\b"), json("."),
                          json("a/.."), json(std::string("a\0b", 3)), json(std::string(2000, 'a'))})
    refused("/siblings/0/rfilename", lie);
  refused("/siblings/0/rfilename", "config.json");
}

TEST(HubListingTest, RefusesWhatIsNoJsonOrNestedWithoutEnd) {
  for (const std::string& text : {std::string(), std::string("<html>"), std::string("[]"), std::string(1'000'000, '[')})
    EXPECT_TRUE(absl::IsDataLoss(ParseHubListing(text).status())) << text.substr(0, 20);
}

TEST(HubListingTest, SaysWhatARepositoryHoldsInPlaceOfWeights) {
  const auto reason = [](const std::string& path) {
    HubListing listing;
    listing.files.push_back({.path = "config.json"});
    listing.files.push_back({.path = path});
    return std::string(CheckHasWeights(listing, {"a/b", "main"}).message());
  };
  EXPECT_THAT(reason("pytorch_model-00001-of-00002.bin"), HasSubstr("pytorch_model-00001-of-00002.bin is a pickle"));
  EXPECT_THAT(reason("original/consolidated.00.pth"), HasSubstr("is a pickle"));
  EXPECT_THAT(reason("model.Q8_0.gguf"), HasSubstr("for llama.cpp"));
  EXPECT_THAT(reason("adapter_model.safetensors"), HasSubstr("adapter"));
  EXPECT_THAT(reason("onnx/model.safetensors"), HasSubstr("neither model.safetensors nor"));
}

TEST(AskedWaitTest, IsReadFromEitherHeader) {
  EXPECT_EQ(AskedWait("7", ""), absl::Seconds(7));
  EXPECT_EQ(AskedWait("", R"("resolvers";r=0;t=55)"), absl::Seconds(55));
  EXPECT_EQ(AskedWait("7", R"("api";r=0;t=55)"), absl::Seconds(7));
  for (const char* nonsense : {"", "-3", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", R"("api";r=0;t=)", R"("api";t=-1)"})
    EXPECT_EQ(AskedWait(nonsense, nonsense), absl::ZeroDuration()) << nonsense;
}

// The ids are those that `git hash-object` gives.
TEST(GitBlobTest, IsTheIdThatGitGives) {
  const TempFolder folder;
  const std::string path = folder.path() + "/file";
  WriteText(path, "");
  EXPECT_THAT(*GitBlobIdOfFile(path, 0), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
  WriteText(path, "what is up, doc?");
  EXPECT_THAT(*GitBlobIdOfFile(path, 16), "bd9dbf5aae1a3862dd1526723246b20206e5fc37");
  EXPECT_FALSE(GitBlobIdOfFile(folder.path() + "/none", 0).ok());
}

TEST(CheckContentTest, FindsAFileThatIsAnotherOne) {
  const TempFolder folder;
  const std::string path = folder.path() + "/file";
  const HubFile small = {.path = "file", .bytes = 16, .blob_id = "bd9dbf5aae1a3862dd1526723246b20206e5fc37"};
  EXPECT_TRUE(absl::IsDataLoss(CheckContent(path, small))) << "it is not there";
  WriteText(path, "what is up, doc?");
  EXPECT_TRUE(CheckContent(path, small).ok());
  std::filesystem::create_symlink(path, folder.path() + "/link");
  EXPECT_TRUE(absl::IsDataLoss(CheckContent(folder.path() + "/link", small)));
  WriteText(path, "what is up, Doc?");
  EXPECT_TRUE(absl::IsDataLoss(CheckContent(path, small)));
}

class HubEnvironmentTest : public testing::Test {
 protected:
  HubEnvironmentTest() {
    for (const char* name : {"HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"}) unsetenv(name);
    setenv("HF_HOME", folder_.path().c_str(), 1);
  }
  ~HubEnvironmentTest() override {
    for (const char* name : {"HF_ENDPOINT", "HF_TOKEN", "HF_HOME"}) unsetenv(name);
  }
  const TempFolder folder_;
};

TEST_F(HubEnvironmentTest, TheHubItselfWithoutATokenIfItSaysNothing) {
  const auto options = HubOptionsFromEnvironment();
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->endpoint, "https://huggingface.co");
  EXPECT_EQ(options->token, "");
}

TEST_F(HubEnvironmentTest, TheVariableIsBeforeTheFile) {
  WriteText(folder_.path() + "/token", "hf_file\n");
  EXPECT_EQ(HubOptionsFromEnvironment()->token, "hf_file");
  setenv("HF_TOKEN", " hf_variable\n", 1);
  EXPECT_EQ(HubOptionsFromEnvironment()->token, "hf_variable");
}

TEST_F(HubEnvironmentTest, NoTokenGoesToAnotherMachineInTheClear) {
  WriteText(folder_.path() + "/token", "hf_file");
  setenv("HF_ENDPOINT", "http://192.0.2.1:8080/", 1);
  const auto options = HubOptionsFromEnvironment();
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->endpoint, "http://192.0.2.1:8080");
  EXPECT_EQ(options->token, "");
  setenv("HF_TOKEN", "hf_variable", 1);
  const absl::Status refused = HubOptionsFromEnvironment().status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("https://"), Not(HasSubstr("hf_variable"))));
  for (const char* here : {"http://127.0.0.1:8080", "http://[::1]:8080/hub", "https://192.0.2.1"}) {
    setenv("HF_ENDPOINT", here, 1);
    EXPECT_EQ(HubOptionsFromEnvironment()->token, "hf_variable") << here;
  }
}

TEST_F(HubEnvironmentTest, RepeatsNeitherATokenNorAPasswordThatAreNone) {
  setenv("HF_TOKEN", "hf_two words", 1);
  const absl::Status token = HubOptionsFromEnvironment().status();
  EXPECT_THAT(std::string(token.message()), AllOf(HasSubstr("HF_TOKEN"), Not(HasSubstr("words"))));
  setenv("HF_TOKEN", "", 1);
  for (const char* wrong :
       {"huggingface.co", "ftp://x", "https://me:hunter2@x", "https://x?key=hunter2", "https://x y"}) {
    setenv("HF_ENDPOINT", wrong, 1);
    const absl::Status endpoint = HubOptionsFromEnvironment().status();
    EXPECT_TRUE(absl::IsInvalidArgument(endpoint)) << wrong;
    EXPECT_THAT(std::string(endpoint.message()), Not(HasSubstr("hunter2"))) << wrong;
  }
}

}  // namespace
}  // namespace luthier
