#include "worker/agent/data_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

TEST(AttemptPathTest, TakesNamesApartAndLetsNoPathThrough) {
  const auto name = AttemptPath::Parse("jobs/my-job/attempts/12");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->job, "my-job");
  EXPECT_EQ(name->number, 12);
  EXPECT_EQ(name->text(), "jobs/my-job/attempts/12");
  for (const char* bad :
       {"", "jobs/a/attempts/0", "jobs/a/attempts/-1", "jobs/a/attempts/x", "jobs//attempts/1", "jobs/../attempts/1",
        "jobs/a/b/attempts/1", "jobs/A/attempts/1", "models/a/attempts/1", "jobs/a/attempts/1/"}) {
    EXPECT_FALSE(AttemptPath::Parse(bad)) << bad;
  }
}

TEST(DataFolderTest, BelongsToOneAgent) {
  const TempFolder temp;
  {
    const auto first = DataFolder::Open(temp.path());
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = DataFolder::Open(temp.path());
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
    EXPECT_THAT(std::string(second.status().message()), HasSubstr("another luthier-worker uses"));
  }
  EXPECT_TRUE(DataFolder::Open(temp.path()).ok());
}

// Rows and weights of everybody's jobs are in there.
TEST(DataFolderTest, IsItsUsersAlone) {
  const TempFolder temp;
  ASSERT_TRUE(DataFolder::Open(temp.path() + "/worker").ok());
  EXPECT_EQ(fs::status(temp.path() + "/worker").permissions(), fs::perms::owner_all);
}

// `--data-dir ~` must not delete what a person keeps there.
TEST(DataFolderTest, DeletesNothingInAFolderThatIsNoAgents) {
  const TempFolder temp;
  fs::create_directories(temp.path() + "/discarded/drafts");
  const auto refused = DataFolder::Open(temp.path());
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
  EXPECT_TRUE(fs::exists(temp.path() + "/discarded/drafts"));
}

TEST(DataFolderTest, TellsItsAgentFromThatOfAnotherFolder) {
  const TempFolder one, another;
  std::string first;
  {
    const absl::StatusOr<DataFolder> folder = DataFolder::Open(one.path());
    ASSERT_TRUE(folder.ok()) << folder.status();
    first = folder->Instance().value();
  }
  EXPECT_EQ(DataFolder::Open(one.path())->Instance().value(), first);
  EXPECT_NE(DataFolder::Open(another.path())->Instance().value(), first);
}

TEST(DataFolderTest, KeepsTheNodeIdItMadeAndTakesTheOneGiven) {
  const TempFolder temp;
  const auto folder = DataFolder::Open(temp.path());
  ASSERT_TRUE(folder.ok());
  const auto made = folder->NodeId("");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(*folder->NodeId(""), *made);
  EXPECT_EQ(*folder->NodeId(*made), *made) << "an id that it makes is one that it takes";
  EXPECT_EQ(*folder->NodeId("gpu-7.rack2"), "gpu-7.rack2");
  for (const char* bad : {"7gpu", "GPU", "a/b", "a b"})
    EXPECT_TRUE(absl::IsInvalidArgument(folder->NodeId(bad).status())) << bad;
  EXPECT_TRUE(absl::IsInvalidArgument(folder->NodeId(std::string(64, 'a')).status()));
}

TEST(DataFolderTest, FindsAttemptsAndRunFoldersThatWereLeft) {
  const TempFolder temp;
  const auto folder = DataFolder::Open(temp.path());
  ASSERT_TRUE(folder.ok());
  fs::create_directories(folder->AttemptFolder({"a", 2}));
  for (const char* job : {"a", "old"}) fs::create_directories(folder->RunFolder(job) + "/checkpoints");
  fs::create_directories(folder->JobFolder("without-run"));
  fs::last_write_time(folder->RunFolder("old") + "/checkpoints",
                      fs::file_time_type::clock::now() - std::chrono::hours(1));
  const auto attempts = folder->Attempts();
  ASSERT_EQ(attempts.size(), 1u);
  EXPECT_EQ(attempts[0].text(), "jobs/a/attempts/2");
  EXPECT_THAT(folder->JobsWithRunFolder(), ElementsAre("old", "a"));
}

}  // namespace
}  // namespace luthier
