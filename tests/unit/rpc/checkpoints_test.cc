// The server's part in checkpoints that follow their job to another node.
#include <gmock/gmock.h>

#include <map>
#include <set>

#include "server/rpc/stored_files.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using Files = std::map<std::string, std::string>;  // content by path

// A node whose agent the test plays.
class PlayedAgent {
 public:
  PlayedAgent(v1::WorkerService::Stub& stub, const std::string& node) : stub_(stub), session_(stub.Session(&context_)) {
    v1::SessionRequest request;
    request.mutable_register_()->set_node_id(node);
    session_->Write(request);
    Await([](const v1::SessionResponse& response) { return response.has_registered(); });
  }
  ~PlayedAgent() {
    context_.TryCancel();
    session_->Finish();
  }

  v1::StartAttempt TakeStart() {
    v1::StartAttempt start =
        Await([](const v1::SessionResponse& response) { return response.has_start_attempt(); }).start_attempt();
    attempt_ = start.attempt();
    credential_ = start.credential();
    sequence_ = 0;
    return start;
  }
  v1::StopAttempt TakeStop() {
    return Await([](const v1::SessionResponse& response) { return response.has_stop_attempt(); }).stop_attempt();
  }
  // Files in `left_out` are named and not sent.
  grpc::Status Upload(const Files& files, const std::set<std::string>& left_out = {}) {
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    const auto writer = stub_.UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt_);
    request.mutable_header()->set_credential(credential_);
    request.mutable_header()->set_checkpoint(true);
    Fill(files, *request.mutable_header());
    writer->Write(request);
    int index = -1;
    for (const auto& [path, content] : files) {
      request.mutable_chunk()->set_file_index(++index);
      if (left_out.count(path) > 0) continue;
      request.mutable_chunk()->mutable_chunk()->set_data(content);
      request.mutable_chunk()->mutable_chunk()->set_crc32c(Crc32c(content));
      writer->Write(request);
    }
    writer->WritesDone();
    return writer->Finish();
  }
  void ReportStored(int64_t step, const Files& files) {
    v1::AttemptReport report;
    report.mutable_checkpoint_stored()->set_step(step);
    Fill(files, *report.mutable_checkpoint_stored());
    Report(std::move(report));
  }
  void ReportStopped() {
    v1::AttemptReport report;
    report.mutable_ended()->set_outcome(v1::AttemptEnded::STOPPED);
    Report(std::move(report));
  }

 private:
  template <typename Message>
  static void Fill(const Files& files, Message& message) {
    for (const auto& [path, content] : files) {
      v1::ModelFile& file = *message.add_files();
      file.set_path(path);
      file.set_size_bytes(static_cast<int64_t>(content.size()));
      file.set_sha256(Sha256Hex(content));
    }
  }
  void Report(v1::AttemptReport report) {
    report.set_attempt(attempt_);
    report.set_sequence(++sequence_);
    v1::SessionRequest request;
    *request.mutable_report() = std::move(report);
    session_->Write(request);
    Await([](const v1::SessionResponse& response) { return response.has_report_ack(); });
  }
  template <typename Wanted>
  v1::SessionResponse Await(const Wanted& wanted) {
    v1::SessionResponse response;
    while (session_->Read(&response)) {
      if (wanted(response)) return response;
    }
    ADD_FAILURE() << "the session is over";
    return {};
  }

  v1::WorkerService::Stub& stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> session_;
  std::string attempt_, credential_;
  int64_t sequence_ = 0;
};

using CheckpointsTest = ServicesTest;

TEST_F(CheckpointsTest, FollowTheirJobToAnotherNodeAndGoWhenItIsOver) {
  const Files first = {{"best-5/weights", "best"}, {"step-10/state.json", "state 10"}},
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
  const Files files = {{"step-10/state.json", "state"}, {"step-10/weights", "weights"}};
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

}  // namespace
}  // namespace luthier
