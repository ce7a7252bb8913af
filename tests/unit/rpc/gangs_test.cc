// Jobs that run on several nodes, between the server and the agents of these.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kAttempt[] = "jobs/j/attempts/1";

class GangsTest : public ServicesTest {
 protected:
  static v1::Register At(const std::string& node, const std::string& address, int port) {
    v1::Register registration = PlayedAgent::Registration(node);
    registration.set_gang_address(address);
    registration.set_gang_port(port);
    return registration;
  }
  // Job `j`, of two nodes, starts on n1 and n2.
  void Start() {
    ASSERT_TRUE(loop_
                    .Run([](State& state, absl::Time now) {
                      (void)state.AddResource(ResourceKind::kBaseModel, {.id = "base", .create_time = now});
                      Job job{.id = "j", .base_model = "base"};
                      job.nodes = 2;
                      return state.Create(job, {}, {.own = JoinStoredSpec("", "")}, now);
                    })
                    .ok());
    n1_ = std::make_unique<PlayedAgent>(*workers_, At("n1", "10.0.0.1", 29400));
    n2_ = std::make_unique<PlayedAgent>(*workers_, At("n2", "10.0.0.2", 30000));
    first_ = n1_->TakeStart();
    second_ = n2_->TakeStart();
    n1_leads_ = first_.gang().node_rank() == 0;
  }
  PlayedAgent& leading() { return n1_leads_ ? *n1_ : *n2_; }
  PlayedAgent& other() { return n1_leads_ ? *n2_ : *n1_; }
  std::string OtherNode() const { return n1_leads_ ? "n2" : "n1"; }
  Job Recorded() { return store_->GetJob("j")->job; }

  std::unique_ptr<PlayedAgent> n1_, n2_;
  v1::StartAttempt first_, second_;  // orders for n1 and n2
  bool n1_leads_ = false;
};

TEST_F(GangsTest, EveryNodeHearsItsPlaceAndWhereTheLeadingOneWaits) {
  Start();
  EXPECT_EQ(first_.attempt(), kAttempt);
  EXPECT_EQ(second_.attempt(), kAttempt);
  EXPECT_EQ(first_.gang().node_rank() + second_.gang().node_rank(), 1);
  EXPECT_EQ(first_.gang().meeting(), n1_leads_ ? "10.0.0.1:29400" : "10.0.0.2:30000");
  EXPECT_EQ(second_.gang().meeting(), first_.gang().meeting());
  EXPECT_EQ(first_.gang().address(), "10.0.0.1");
  EXPECT_EQ(second_.gang().address(), "10.0.0.2");
}

TEST_F(GangsTest, AJobOfOneNodeHasNone) {
  Submit("j");
  PlayedAgent agent(*workers_, At("n1", "10.0.0.1", 29400));
  EXPECT_FALSE(agent.TakeStart().has_gang());
}

TEST_F(GangsTest, ATrainerThatDiesOnAnyNodeEndsTheAttemptAndIsThatNodesFault) {
  Start();
  leading().ReportEvent({{"event", "started"}});
  other().ReportEnd(v1::AttemptEnded::LOST, "CRASHED", "ended by signal 9");
  leading().TakeStop();
  EXPECT_EQ(Recorded().state, JobState::kRecovering);
  EXPECT_EQ(Recorded().lost_attempts, 1);
  EXPECT_THAT(Recorded().crashed_on, ElementsAre(OtherNode()));
  leading().ReportStopped();  // is acknowledged, and changes nothing
  EXPECT_EQ(Recorded().lost_attempts, 1);
}

TEST_F(GangsTest, AFailureOnAnyNodeIsTheJobs) {
  Start();
  other().ReportEnd(v1::AttemptEnded::FAILED, "OOM", "out of memory on rank 1");
  leading().TakeStop();
  EXPECT_EQ(Recorded().state, JobState::kFailed);
  const v1::FineTuningJob job = GetJob("j");
  EXPECT_EQ(job.failure().cause(), v1::JobFailure::OOM);
  EXPECT_EQ(job.failure().message(), "out of memory on rank 1");
  EXPECT_EQ(job.failure().node(), absl::StrCat("nodes/", OtherNode())) << "where nobody looks who knows job.node only";
}

TEST_F(GangsTest, RanksThatEndedSinceThoseOfAnotherNodeDidAreNobodysFault) {
  Start();
  leading().ReportEnd(v1::AttemptEnded::LOST, "PEER", "ranks of another node are gone");
  other().TakeStop();
  EXPECT_EQ(Recorded().state, JobState::kRecovering);
  EXPECT_EQ(Recorded().lost_attempts, 1);
  EXPECT_THAT(Recorded().crashed_on, IsEmpty());
}

TEST_F(GangsTest, AnAgentThatLeavesHasTheWholeAttemptStopWithACheckpoint) {
  Start();
  leading().ReportEvent({{"event", "started"}});
  other().Leave();
  EXPECT_TRUE(leading().TakeStop().job_goes_on());
  EXPECT_TRUE(other().TakeStop().job_goes_on());
  other().ReportStopped();
  leading().ReportStopped();
  EXPECT_EQ(Recorded().state, JobState::kQueued);
  EXPECT_EQ(Recorded().lost_attempts, 0);
}

TEST_F(GangsTest, EverythingElseIsHeardFromTheLeadingNodeOnly) {
  Start();
  other().ReportEvent({{"event", "started"}});
  EXPECT_EQ(Recorded().state, JobState::kStarting);
  other().ReportStopped();
  EXPECT_EQ(Recorded().state, JobState::kStarting);
  leading().ReportEvent({{"event", "started"}});
  EXPECT_EQ(Recorded().state, JobState::kRunning) << "its reports are counted by themselves";
}

// The other node's `ended` has the number 1, of which the server may have one from the leading node.
TEST_F(GangsTest, EveryNodeThatComesBackHearsWhatOfItsOwnReportsIsThere) {
  Start();
  leading().ReportEvent({{"event", "started"}});
  for (const bool n1 : {true, false}) {
    v1::Register registration = n1 ? At("n1", "10.0.0.1", 29400) : At("n2", "10.0.0.2", 30000);
    registration.add_attempts(kAttempt);
    const PlayedAgent again(*workers_, registration);
    ASSERT_EQ(again.registered().acks_size(), 1);
    EXPECT_EQ(again.registered().acks(0).sequence(), n1 == n1_leads_ ? 1 : 0);
    EXPECT_EQ(again.registered().credentials().at(kAttempt), access_.CredentialOf(kAttempt));
    EXPECT_EQ(again.registered().stale_attempts_size(), 0);
  }
}

TEST_F(GangsTest, ANodeThatTakesNoPartInAnAttemptGetsNoCredentialOfIt) {
  Start();
  v1::Register registration = At("n3", "10.0.0.3", 29400);
  registration.add_attempts(kAttempt);
  const PlayedAgent third(*workers_, registration);
  EXPECT_THAT(third.registered().stale_attempts(), ElementsAre(kAttempt));
  EXPECT_EQ(third.registered().acks_size(), 0);
  EXPECT_EQ(third.registered().credentials_size(), 0);
}

TEST_F(GangsTest, AnAddressThatNobodyCanDialIsRefused) {
  for (const auto& [address, port] : {std::pair("--out", 29400), {"10.0.0.1", 80}}) {
    const grpc::Status status = PlayedAgent::RefusalOf(*workers_, At("n1", address, port));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << address;
    EXPECT_THAT(status.error_message(), HasSubstr("register.gang_address"));
  }
}

}  // namespace
}  // namespace luthier
