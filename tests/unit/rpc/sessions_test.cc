// Sessions of agents: orders that cannot be read, reports that lack others, answers that nobody reads, and uploads of
// nothing.
#include "server/rpc/sessions.h"

#include <SQLiteCpp/SQLiteCpp.h>
#include <gmock/gmock.h>

#include <chrono>
#include <string>

#include "tests/support/wait_for.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

class SessionsTest : public ServicesTest {
 protected:
  int LostAttemptsOf(const std::string& job) {
    int lost = 0;
    Do([&](State& state, absl::Time) { lost = state.Find(job)->lost_attempts; });
    return lost;
  }
};

// Nothing else ends the attempt: its node is heard of, and its agent knows nothing of it.
TEST_F(SessionsTest, AnOrderThatCannotBeReadLosesItsAttemptAndTheNextOneIsTried) {
  Submit("j");
  SQLite::Database record(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE, /*aBusyTimeoutMs=*/5000);
  record.exec("UPDATE job_specs SET job = -job");
  PlayedAgent agent(*workers_, "n1");
  ASSERT_TRUE(WaitFor([&] { return LostAttemptsOf("j") > 0; }));
  record.exec("UPDATE job_specs SET job = -job");
  const std::string attempt = agent.TakeStart().attempt();
  EXPECT_THAT(attempt, testing::StartsWith("jobs/j/attempts/"));
  EXPECT_NE(attempt, "jobs/j/attempts/1");
}

// As when the disk is full for a moment: what is under way behind the first of them would leave a gap for ever.
TEST_F(SessionsTest, WhatFollowsAReportThatWasRefusedIsRefusedTooAndTakenBehindItInTheNextSession) {
  Submit("j");
  std::string attempt;
  {
    PlayedAgent agent(*workers_, "n1");
    attempt = agent.TakeStart().attempt();
    SQLite::Database record(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE);
    record.exec("BEGIN IMMEDIATE");  // the server cannot write, until its patience is over
    EXPECT_EQ(agent.EndAfterReports(16).error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  int64_t last_report = -1;
  const auto ask = [&](State& state, absl::Time) { last_report = state.Find("j")->last_report; };
  Do(ask);
  EXPECT_EQ(last_report, 0);
  v1::Register registration = PlayedAgent::Registration("n1");
  registration.add_attempts(attempt);
  PlayedAgent again(*workers_, registration);
  ASSERT_EQ(again.registered().acks_size(), 1);
  EXPECT_EQ(again.registered().acks(0).sequence(), 0);
  again.GoOnWith(attempt, 0);
  again.ReportEvent({{"event", "started"}});
  again.ReportEvent({{"event", "warning"}, {"message", "the disk is nearly full"}});
  Do(ask);
  EXPECT_EQ(last_report, 2);
}

TEST_F(SessionsTest, AnArtifactWithoutFilesIsRefusedAndTheRealOneIsTaken) {
  Submit("j");
  PlayedAgent agent(*workers_, "n1");
  agent.TakeStart();
  const grpc::Status refused = agent.Announce({});
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(), "header.files: is empty; name every file");
  ASSERT_TRUE(agent.Upload({{"weights", "weights"}}).ok());  // as a checkpoint, so that the store has it
  v1::UploadArtifactHeader header;
  v1::ModelFile& file = *header.add_files();
  file.set_path("weights");
  file.set_size_bytes(7);
  file.set_sha256(Sha256Hex("weights"));
  const grpc::Status taken = agent.Announce(header);
  EXPECT_TRUE(taken.ok()) << taken.error_message();
}

TEST_F(SessionsTest, AnAgentThatSendsAndNeverReadsLosesItsSessionAndGetsAnother) {
  constexpr int kMost = 200;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const auto session = workers_->Session(&context);
  v1::SessionRequest request;
  *request.mutable_register_() = PlayedAgent::Registration("n1");
  ASSERT_TRUE(session->Write(request));
  request.mutable_report()->set_attempt(std::string(size_t{1} << 20, 'a'));  // which the answer names
  int reports = 0;
  while (reports < kMost && session->Write(request)) ++reports;
  EXPECT_LT(reports, kMost);
  EXPECT_TRUE(WaitFor([&] { return HasAnswered("Session", "RESOURCE_EXHAUSTED"); }));
  context.TryCancel();
  session->Finish();
  Submit("j");
  PlayedAgent again(*workers_, "n1");
  EXPECT_EQ(again.TakeStart().attempt(), "jobs/j/attempts/1");
}

}  // namespace
}  // namespace luthier
