// A model is one tenant's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "server/core/reason.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class ModelNameTest : public StateTest {
 protected:
  absl::Status SubmitFor(const std::string& tenant, const std::string& id, const std::string& model = "") {
    return Submit(id, {.model = model, .tenant = tenant});
  }
  // It is said what to do, and not whose the name is.
  static void ExpectTaken(const absl::Status& status, const std::string& field) {
    EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
    EXPECT_EQ(ReasonOf(status), "MODEL_NAME_TAKEN");
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(field), HasSubstr("choose another one"),
                                                     Not(HasSubstr("tenant")), Not(HasSubstr("owner"))));
  }
};

TEST_F(ModelNameTest, IsTheFirstTenantsFromItsSubmissionOn) {
  ASSERT_TRUE(SubmitFor("owner", "j", "intents").ok());
  ExpectTaken(SubmitFor("other", "k", "intents"), "output_model: 'intents'");
  EXPECT_TRUE(SubmitFor("owner", "l", "intents").ok());
  EXPECT_TRUE(SubmitFor("other", "k").ok()) << "under its id";
}

TEST_F(ModelNameTest, OfTwoInOneBatchOneGetsIt) {
  Job first{.id = "j", .base_model = "base", .model = "intents", .tenant = "owner"};
  Job second{.id = "k", .base_model = "base", .model = "intents", .tenant = "other"};
  ASSERT_TRUE(state_.Create(first, {}, {.own = "spec"}, now_).ok());
  ExpectTaken(state_.Create(second, {}, {.own = "spec"}, now_), "output_model");
  state_.Rollback();
  EXPECT_TRUE(state_.Create(second, {}, {.own = "spec"}, now_).ok()) << "the first was never created";
}

TEST_F(ModelNameTest, TheIdOfAJobIsTheNameOfItsModel) {
  ASSERT_TRUE(SubmitFor("owner", "j").ok());
  ExpectTaken(SubmitFor("other", "k", "j"), "output_model: 'j'");
  ASSERT_TRUE(SubmitFor("owner", "l", "intents").ok());
  ExpectTaken(SubmitFor("other", "intents"), "job_id: 'intents'");
  EXPECT_TRUE(SubmitFor("owner", "intents").ok());
}

TEST_F(ModelNameTest, ASweepIsRefusedForOneOfItsJobs) {
  ASSERT_TRUE(SubmitFor("owner", "j", "s-2").ok());
  std::vector<Job> jobs;
  for (const char* id : {"s-1", "s-2"}) {
    Job& added = jobs.emplace_back();
    added.id = id;
    added.base_model = "base";
    added.tenant = "other";
  }
  Sweep sweep{.id = "s", .tenant = "other"};
  ExpectTaken(state_.CreateSweep(sweep, jobs, {}, std::vector<SpecBytes>(jobs.size()), now_), "job_id: 's-2'");
  EXPECT_EQ(state_.jobs().size(), 1u);
}

TEST_F(ModelNameTest, IsFreeAgainOnceNoJobCanPublishUnderItAndAJobThatEndedDoesNotTakeItBack) {
  ASSERT_TRUE(SubmitFor("owner", "j", "intents").ok());
  ASSERT_TRUE(SubmitFor("owner", "k", "intents").ok());
  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  ExpectTaken(SubmitFor("other", "l", "intents"), "output_model");
  ASSERT_TRUE(state_.Cancel("k", now_).ok());
  EndBatch();
  ASSERT_TRUE(SubmitFor("other", "l", "intents").ok());

  state_.Borrow(job("j"));
  const absl::Status refused = state_.Retry("j", now_);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_EQ(ReasonOf(refused), "MODEL_NAME_TAKEN");
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("output_model: 'intents'"), HasSubstr("clone it")));
  EndBatch();
  ASSERT_TRUE(state_.Cancel("l", now_).ok());
  EndBatch();
  state_.Borrow(job("j"));
  EXPECT_TRUE(state_.Retry("j", now_).ok());
}

TEST_F(ModelNameTest, AJobThatIsTriedAgainHasItsNameAgain) {
  for (const char* model : {"", "intents"}) {
    const std::string id = model[0] == '\0' ? "j" : "k";
    ASSERT_TRUE(SubmitFor("owner", id, model).ok());
    ASSERT_TRUE(state_.Cancel(id, now_).ok());
    EndBatch();
    state_.Borrow(job(id));
    ASSERT_TRUE(state_.Retry(id, now_).ok());
    EndBatch();
    ExpectTaken(SubmitFor("other", "l", job(id).model), "output_model");
  }
}

TEST_F(ModelNameTest, StaysWithWhoPublishedThoughTheVersionIsDeleted) {
  ASSERT_TRUE(SubmitFor("owner", "j", "intents").ok());
  Connect("n1");
  for (const JobInput input : {JobInput::kTrainerStarted, JobInput::kTrainerFinished, JobInput::kArtifactStored})
    Report("j", 1, static_cast<int64_t>(input) + 1, input);
  ASSERT_EQ(versions_.size(), 1u);
  EXPECT_EQ(versions_[0].tenant, "owner");
  ExpectTaken(SubmitFor("other", "k", "intents"), "output_model");
  ExpectTaken(SubmitFor("other", "intents"), "job_id");
  ASSERT_TRUE(state_.DeleteVersion("intents", 1, {}, /*bytes=*/0).ok());
  EndBatch();
  ExpectTaken(SubmitFor("other", "k", "intents"), "output_model");
  EXPECT_TRUE(SubmitFor("owner", "k", "intents").ok());
}

TEST_F(ModelNameTest, APublicationThatCouldNotBeWrittenTakesNoName) {
  ASSERT_TRUE(SubmitFor("owner", "j", "intents").ok());
  Connect("n1");
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  ASSERT_TRUE(state_.Record({.attempt = {"j", 1}, .sequence = 3, .input = JobInput::kArtifactStored}, now_));
  state_.Rollback();
  Report("j", 1, 3, JobInput::kAttemptFailed);
  EXPECT_TRUE(SubmitFor("other", "k", "intents").ok());
}

TEST_F(ModelNameTest, IsKnownAfterARestart) {
  ASSERT_TRUE(SubmitFor("owner", "j", "intents").ok());
  ASSERT_TRUE(SubmitFor("owner", "k").ok());
  State restarted;
  restarted.LoadResource(ResourceKind::kBaseModel, "base");
  for (const char* id : {"j", "k"}) restarted.LoadJob(std::make_unique<Job>(job(id)), now_);
  restarted.LoadVersion("labels", 3, "owner");
  state_ = std::move(restarted);
  for (const char* model : {"intents", "k", "labels"}) ExpectTaken(SubmitFor("other", "l", model), "output_model");
  EXPECT_TRUE(SubmitFor("owner", "l", "labels").ok());
}

}  // namespace
}  // namespace luthier
