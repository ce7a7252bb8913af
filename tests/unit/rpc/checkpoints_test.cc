// The server's part in checkpoints that follow their job to another node.
#include <gmock/gmock.h>

#include "server/rpc/stored_files.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

using CheckpointsTest = ServicesTest;

TEST_F(CheckpointsTest, FollowTheirJobToAnotherNodeAndGoWhenItIsOver) {
  const PlayedAgent::Files first = {{"best-5/weights", "best"}, {"step-10/state.json", "state 10"}},
                           second = {{"best-5/weights", "best"}, {"step-20/state.json", "state 20"}};
  const auto stored = [&] { return ReferencesOf(*store_)->blobs; };
  Submit("j");
  PlayedAgent here(*workers_, "n1");
  EXPECT_FALSE(here.TakeStart().has_checkpoint());
  ASSERT_TRUE(here.Upload(first).ok());
  EXPECT_THAT(stored(), IsEmpty()) << "nothing names it yet";
  here.ReportStored(10, first);
  EXPECT_THAT(stored(), Contains(Sha256Hex("state 10")));

  PlayedAgent there(*workers_, "n2");
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Drain("n1", /*requeue=*/true, now).ok()); });
  EXPECT_TRUE(here.TakeStop().job_goes_on());
  here.ReportStopped();
  const v1::StartAttempt start = there.TakeStart();
  EXPECT_EQ(start.attempt(), "jobs/j/attempts/2");
  EXPECT_EQ(start.checkpoint().step(), 10);
  ASSERT_EQ(start.checkpoint().files_size(), 2);
  EXPECT_EQ(start.checkpoint().files(1).path(), "step-10/state.json");
  EXPECT_EQ(here.Upload(second).error_code(), grpc::StatusCode::FAILED_PRECONDITION) << "its attempt is over";

  ASSERT_TRUE(there.Upload(second, {"best-5/weights"}).ok()) << "the store has it";
  there.ReportStored(20, second);
  EXPECT_THAT(stored(), UnorderedElementsAre(Sha256Hex("best"), Sha256Hex("state 20")));

  ASSERT_TRUE(loop_.Run([](State& state, absl::Time now) { return state.Cancel("j", now); }).ok());
  const v1::StopAttempt stop = there.TakeStop();
  EXPECT_FALSE(stop.job_goes_on());
  EXPECT_LE(stop.grace().seconds(), 20) << "30 s after a cancellation no process is left";
  there.ReportStopped();
  EXPECT_THAT(stored(), IsEmpty());
}

TEST_F(CheckpointsTest, CountOnlyIfEveryFileIsStored) {
  const PlayedAgent::Files files = {{"step-10/state.json", "state"}, {"step-10/weights", "weights"}};
  Submit("j");
  PlayedAgent agent(*workers_, "n1");
  agent.TakeStart();
  const grpc::Status partial = agent.Upload(files, {"step-10/weights"});
  EXPECT_EQ(partial.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(partial.error_message(), ::testing::HasSubstr("step-10/weights is not stored; send it"));
  agent.ReportStored(10, files);
  EXPECT_THAT(*store_->Checkpoints(), IsEmpty());
  EXPECT_EQ(store_->GetJob("j")->job.stored_step, 0);
  ASSERT_TRUE(agent.Upload(files).ok());
  agent.ReportStored(10, files);
  EXPECT_EQ(store_->GetJob("j")->job.stored_step, 10);
}

// Nobody waits for a blob of that name to be removed.
TEST_F(CheckpointsTest, WithAFileThatHasNoHashAreRefusedAndDoNotCount) {
  Submit("j");
  PlayedAgent agent(*workers_, "n1");
  agent.TakeStart();
  v1::UploadArtifactHeader header;
  header.set_checkpoint(true);
  header.add_files()->set_path("step-10/weights");
  const grpc::Status refused = agent.Announce(header);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(),
              ::testing::HasSubstr("header.files.sha256: '' of 'step-10/weights' is no SHA-256; give that"));
  v1::CheckpointStored stored;
  stored.set_step(10);
  *stored.mutable_files() = header.files();
  agent.ReportStored(stored);
  EXPECT_THAT(*store_->Checkpoints(), IsEmpty());
}

}  // namespace
}  // namespace luthier
