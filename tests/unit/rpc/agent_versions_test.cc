// Agents of older and newer versions than the server.
#include <gmock/gmock.h>

#include <memory>
#include <string>

#include "lib/wire/agent_protocol.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kAttempt[] = "jobs/j/attempts/1";

// The server speaks 2 and 3.
class AgentVersionsTest : public ServicesTest {
 protected:
  AgentVersionsTest() : ServicesTest({}, {.oldest = 2, .newest = 3}) {}

  static v1::Register Speaking(int oldest, int newest) {
    v1::Register registration = PlayedAgent::Registration("n1");
    registration.set_oldest_protocol(oldest);
    registration.set_protocol(newest);
    return registration;
  }
  // One that holds `kAttempt`.
  static v1::Register Holding(int oldest, int newest) {
    v1::Register registration = Speaking(oldest, newest);
    registration.add_attempts(kAttempt);
    registration.add_processes()->set_attempt(kAttempt);
    return registration;
  }
  Job Recorded(const std::string& id) { return store_->GetJob(id)->job; }
  v1::Node Node() {
    v1::ListNodesResponse nodes;
    EXPECT_TRUE(Call(*nodes_, &v1::NodeService::Stub::ListNodes, v1::ListNodesRequest(), nodes).ok());
    return nodes.nodes_size() == 1 ? nodes.nodes(0) : v1::Node();
  }
};

TEST_F(AgentVersionsTest, AnAgentOfTheSameOrANewerVersionGetsWork) {
  Submit("j");
  auto agent = std::make_unique<PlayedAgent>(*workers_, Speaking(2, 3));
  EXPECT_EQ(agent->registered().protocol(), 3);
  EXPECT_EQ(agent->TakeStart().attempt(), kAttempt);
  agent = std::make_unique<PlayedAgent>(*workers_, Holding(3, 5));
  EXPECT_EQ(agent->registered().protocol(), 3) << "what this server knows";
  EXPECT_THAT(agent->registered().stale_attempts(), IsEmpty());
  EXPECT_EQ(Node().state(), v1::Node::READY);
}

// The server was updated first: the node's agent comes back with what it was given by the one before.
TEST_F(AgentVersionsTest, AnAgentOfTheVersionBeforeKeepsWhatItRunsAndGetsNothingNewUntilItIsUpdated) {
  for (const char* id : {"j", "k"}) Submit(id);
  auto agent = std::make_unique<PlayedAgent>(*workers_, Speaking(2, 3));
  agent->TakeStart();
  agent = std::make_unique<PlayedAgent>(*workers_, Holding(1, 2));
  EXPECT_EQ(agent->registered().protocol(), 2);
  EXPECT_THAT(agent->registered().stale_attempts(), IsEmpty());
  agent->GoOnWith(kAttempt, agent->registered().acks(0).sequence());
  agent->ReportEvent({{"event", "started"}});
  EXPECT_EQ(Recorded("j").state, JobState::kRunning);
  agent->ReportEnd(v1::AttemptEnded::FAILED, "USER_DATA", "row 3 is empty");
  EXPECT_EQ(Recorded("j").state, JobState::kFailed);

  EXPECT_EQ(Node().state(), v1::Node::OUTDATED);
  EXPECT_THAT(Node().state_reason(), HasSubstr("update luthier-worker there"));
  EXPECT_FALSE(agent->told_to_stop());
  const v1::FineTuningJob waiting = GetJob("k");
  EXPECT_EQ(waiting.pending_code(), v1::PENDING_REASON_OUTDATED);
  EXPECT_EQ(waiting.pending_reason(),
            "node n1 would take it, but only with the server's version of luthier-worker; update it there");

  agent = std::make_unique<PlayedAgent>(*workers_, Speaking(2, 3));
  EXPECT_EQ(agent->TakeStart().attempt(), "jobs/k/attempts/1");
  EXPECT_EQ(Node().state(), v1::Node::READY);
}

TEST_F(AgentVersionsTest, OneWithoutACommonVersionIsRefusedWithWhatToUpdate) {
  // Of before there were versions.
  const grpc::Status older = PlayedAgent::RefusalOf(*workers_, PlayedAgent::Registration("n1"));
  EXPECT_EQ(older.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(older.error_message(), HasSubstr("register.protocol: this agent speaks 1 and the server 2 to 3; install "
                                               "the server's version of luthier-worker here"));
  const grpc::Status newer = PlayedAgent::RefusalOf(*workers_, Speaking(4, 6));
  EXPECT_EQ(newer.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(newer.error_message(),
              HasSubstr("register.protocol: this agent speaks 4 to 6 and the server 2 to 3; update luthierd first"));
  EXPECT_EQ(Node().name(), "") << "it is no node";
}

TEST_F(AgentVersionsTest, AReportOfAKindThatTheServerDoesNotKnowEndsNothing) {
  Submit("j");
  PlayedAgent agent(*workers_, Speaking(2, 3));
  agent.TakeStart();
  agent.ReportEvent({{"event", "started"}});
  agent.ReportOfNewKind();
  agent.ReportEvent({{"event", "warning"}, {"message", "the disk is nearly full"}});
  EXPECT_FALSE(agent.told_to_stop());
  EXPECT_EQ(Recorded("j").state, JobState::kRunning);
  EXPECT_EQ(Recorded("j").last_report, 3);
}

// Those of today.
using AgentOfBeforeVersionsTest = ServicesTest;
TEST_F(AgentOfBeforeVersionsTest, GetsWorkFromThisServer) {
  Submit("j");
  PlayedAgent agent(*workers_, "n1");
  EXPECT_EQ(agent.TakeStart().attempt(), kAttempt);
}

}  // namespace
}  // namespace luthier
