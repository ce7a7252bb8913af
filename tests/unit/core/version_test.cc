// Versions that are deleted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

class VersionTest : public StateTest {
 protected:
  VersionTest() { state_.LoadVersion("intents", 2, "default"); }
  absl::Status Delete(int version, const std::vector<Alias>& aliases = {}) {
    return state_.DeleteVersion("intents", version, aliases, /*bytes=*/0);
  }
};

TEST_F(VersionTest, IsDeletedOnceAndItsNumberIsNotGivenAgain) {
  ASSERT_TRUE(Delete(2).ok());
  EndBatch();
  EXPECT_TRUE(absl::IsNotFound(Delete(2)));
  EXPECT_TRUE(absl::IsNotFound(Delete(3)));
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 2})));
  Connect("n1");
  ASSERT_TRUE(Submit("j", {.model = "intents"}).ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);
  EXPECT_EQ(job("j").model_version, "models/intents/versions/3");
}

TEST_F(VersionTest, StaysWhileAnAliasPointsToItEvenOneOfTheSameBatch) {
  EXPECT_THAT(std::string(Delete(1, {{"intents", "production", 1}}).message()), HasSubstr("production"));
  ASSERT_TRUE(state_.SetAlias({"intents", "candidate", 2}).ok());
  EXPECT_THAT(std::string(Delete(2).message()), HasSubstr("candidate"));
  EndBatch();
  EXPECT_TRUE(Delete(2, {{"intents", "production", 1}}).ok());
}

TEST_F(VersionTest, StaysWhileAJobThatIsNotOverGoesOnFromIt) {
  ASSERT_TRUE(Submit("j", {.datasets = "models/intents/versions/1"}).ok());
  EXPECT_THAT(std::string(Delete(1).message()), HasSubstr("is used by jobs/j"));
  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  ASSERT_TRUE(Delete(1).ok());
  EndBatch();
  EXPECT_TRUE(absl::IsNotFound(Submit("late", {.datasets = "models/intents/versions/1"})));
  state_.Borrow(job("j"));
  EXPECT_THAT(std::string(state_.Retry("j", now_).message()), HasSubstr("models/intents/versions/1 was deleted"));
}

TEST_F(VersionTest, ABatchThatCouldNotBeWrittenDeletedNothing) {
  ASSERT_TRUE(Delete(1).ok());
  state_.Rollback();
  EXPECT_TRUE(Delete(1).ok());
}

}  // namespace
}  // namespace luthier
