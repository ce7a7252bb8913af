#include "worker/agent/checkpoint_upload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/support/fake_server_files.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

constexpr absl::Duration kLong = absl::Minutes(1);

class CheckpointUploadTest : public testing::Test {
 protected:
  CheckpointUploadTest() {
    options_.pass = &pass_;
    options_.checkpoints = folder_.path() + "/checkpoints";
    options_.links = folder_.path() + "/links";
  }
  void Write(const std::string& path, const std::string& content) {
    fs::create_directories(fs::path(options_.checkpoints + "/" + path).parent_path());
    WriteText(options_.checkpoints + "/" + path, content);
  }
  // Of what was stored since the last call; 0: nothing.
  static int64_t StoredStep(CheckpointUpload& upload) {
    const auto outcome = upload.TakeOutcome();
    return outcome && outcome->ok() ? (*outcome)->step() : 0;
  }
  std::vector<std::string> Paths() {
    std::vector<std::string> paths;
    for (const ManifestFile& file : server_.checkpoints[pass_.attempt].files) paths.push_back(file.path);
    return paths;
  }

  TempFolder folder_;
  FakeServerFiles server_;
  const AttemptPass pass_{"jobs/j/attempts/1", "secret"};
  CheckpointUpload::Options options_;
};

TEST_F(CheckpointUploadTest, WhatTheTrainerRemovesMeanwhileIsStoredAllTheSame) {
  Write("step-10/state.json", "state");
  Write("best-5/weights", "best");
  server_.away = true;
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 10, .best_step = 5});
  fs::remove_all(options_.checkpoints);
  ASSERT_TRUE(WaitFor([&] { return server_.uploads > 0; }));
  server_.away = false;
  upload.Finish(kLong);
  EXPECT_EQ(StoredStep(upload), 10);
  EXPECT_THAT(Paths(), ElementsAre("best-5/weights", "step-10/state.json"));
  EXPECT_TRUE(fs::is_empty(options_.links));
}

TEST_F(CheckpointUploadTest, ACheckpointWhoseBestWeightsAreGoneIsLeftOut) {
  Write("step-10/state.json", "state");
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 10, .best_step = 5});
  upload.Finish(kLong);
  EXPECT_EQ(StoredStep(upload), 0);
  EXPECT_EQ(server_.uploads, 0);
}

TEST_F(CheckpointUploadTest, ANewerCheckpointTakesThePlaceOfOneThatWaits) {
  for (const char* step : {"1", "2", "3"}) Write(absl::StrCat("step-", step, "/state.json"), step);
  server_.away = true;
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 1});
  ASSERT_TRUE(WaitFor([&] { return server_.uploads > 0; }));
  upload.Offer({.step = 2});
  upload.Offer({.step = 3});
  server_.away = false;
  upload.Finish(kLong);
  EXPECT_EQ(StoredStep(upload), 3);
  EXPECT_EQ(server_.sent["step-2/state.json"], 0);
  EXPECT_TRUE(fs::is_empty(options_.links));
}

// At a byte a second nobody would see the end of it.
TEST_F(CheckpointUploadTest, IsSlowWhileNobodyWaitsAndFastOnceSomebodyDoes) {
  Write("step-1/state.json", std::string(100'000, 's'));
  options_.bytes_per_second = 1;
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 1});
  ASSERT_TRUE(WaitFor([&] { return server_.uploads > 0; }));
  EXPECT_EQ(StoredStep(upload), 0);
  upload.Finish(kLong);
  EXPECT_EQ(StoredStep(upload), 1);
}

TEST_F(CheckpointUploadTest, SendsAgainWhatTheStoreHasLost) {
  Write("step-1/state.json", "state");
  options_.stored = {Sha256Hex("state")};
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 1});
  upload.Finish(kLong);
  EXPECT_EQ(StoredStep(upload), 1);
  EXPECT_EQ(server_.uploads, 2);
  EXPECT_EQ(server_.sent["step-1/state.json"], 1);
}

TEST_F(CheckpointUploadTest, GivesUpWhenItsTimeIsOver) {
  Write("step-1/state.json", "state");
  server_.away = true;
  CheckpointUpload upload(options_, server_);
  upload.Offer({.step = 1});
  upload.Finish(absl::Milliseconds(50));
  EXPECT_EQ(StoredStep(upload), 0);
  server_.away = false;
  upload.Offer({.step = 1});
  EXPECT_EQ(server_.sent["step-1/state.json"], 0);
}

}  // namespace
}  // namespace luthier
