// Jobs that run on two nodes, with real programs: two agents of this machine, whose trainers meet on loopback.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/store/store.h"
#include "tests/support/captured_program.h"
#include "tests/support/free_port.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using State = v1::FineTuningJob;

// Some seconds: what is killed after the first checkpoint has most of them before it.
constexpr int kSteps = 600;
constexpr int kCheckpointEvery = 20;

class GangServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    service_.StartServer();
    for (const auto& [node, port] : ports_) StartNode(node);
    service_.AddInputs();
  }
  void StartNode(const std::string& node) {
    agents_[node] =
        service_.RunAgent(node, "127.0.0.1:0", {"--gang-address", absl::StrCat("127.0.0.1:", ports_.at(node))});
  }
  void SubmitJob() {
    service_.Submit("j", {{"training", {{"max_steps", kSteps}, {"batch_tokens", 200}, {"epochs", 10000}}},
                          {"checkpoint", {{"every", kCheckpointEvery}}},
                          {"resources", {{"nodes", 2}, {"threads", 1}}}});
  }
  // The newest event that `wanted` is true of, after waiting for it.
  template <typename Wanted>
  v1::JobEvent Await(const Wanted& wanted) {
    v1::JobEvent found;
    EXPECT_TRUE(WaitFor(
        [&] {
          for (const v1::JobEvent& event : service_.Events("j")) {
            if (wanted(event)) found = event;
          }
          return found.sequence() > 0;
        },
        std::chrono::seconds(120)))
        << service_.Job("j").DebugString();
    return found;
  }
  v1::JobEvent AwaitEvent(const std::string& type) {
    return Await([&](const v1::JobEvent& event) { return event.type() == type; });
  }
  // The node of the running attempt that does not lead.
  std::string OtherNode() {
    const v1::FineTuningJob job = service_.Job("j");
    EXPECT_EQ(job.other_nodes_size(), 1) << job.DebugString();
    return job.other_nodes_size() == 0 ? "" : std::string(absl::StripPrefix(job.other_nodes(0), "nodes/"));
  }
  std::vector<pid_t> Trainers(const std::string& node) const {
    return ProcessesWith(service_.AgentFolder(node) + "/jobs/");
  }
  void ExpectPublishedOnce(int attempts, int lost) {
    ASSERT_TRUE(WaitFor([&] { return service_.Job("j").end_time().seconds() > 0; }, std::chrono::seconds(120)))
        << service_.Job("j").DebugString();
    const v1::FineTuningJob job = service_.Job("j");
    EXPECT_EQ(job.state(), State::SUCCEEDED) << job.DebugString();
    EXPECT_EQ(job.progress().step(), kSteps);
    EXPECT_EQ(job.attempt(), attempts);
    EXPECT_EQ(job.lost_attempts(), lost);
    EXPECT_EQ(service_.Versions("j"), 1);
    for (const auto& [node, port] : ports_) {
      const std::string folder = service_.AgentFolder(node) + "/jobs/j";
      EXPECT_TRUE(WaitFor([&] { return !std::filesystem::exists(folder); })) << folder << " was left over";
    }
  }
  // Nodes on which the job's trainer is said to have died of itself. Ends everything.
  std::vector<std::string> BlamedNodes() {
    for (auto& [node, agent] : agents_) EXPECT_EQ(agent.End(SIGTERM), 0) << node;
    EXPECT_EQ(service_.server.End(SIGTERM), 0);
    EXPECT_THAT(ProcessesWith(folder_.path()), IsEmpty());
    return Store::Open(folder_.path() + "/server").value()->GetJob("j")->job.crashed_on;
  }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
  const std::map<std::string, int> ports_ = {{"n1", FreePort()}, {"n2", FreePort()}};
  std::map<std::string, BackgroundProgram> agents_;
};

TEST(GangAddressTest, AnAgentDoesNotStartWithTheAddressOfAnotherMachine) {
  const TempFolder folder;
  const CapturedResult refused = RunCaptured({LUTHIER_BIN_FOLDER "/luthier-worker", "--server", "127.0.0.1:1",
                                              "--metrics-listen", "127.0.0.1:0", "--data-dir", folder.path() + "/data",
                                              "--gang-address", "192.0.2.1"});  // of no machine at all (RFC 5737)
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("--gang-address: '192.0.2.1' is no address of this machine"));
}

TEST_F(GangServiceTest, AJobTrainsOnBothNodesAndIsPublishedByOne) {
  SubmitJob();
  AwaitEvent("progress");
  EXPECT_NE(service_.Job("j").node(), "nodes/" + OtherNode());
  for (const auto& [node, port] : ports_) EXPECT_FALSE(Trainers(node).empty()) << node;
  ExpectPublishedOnce(/*attempts=*/1, /*lost=*/0);
  EXPECT_THAT(BlamedNodes(), IsEmpty());
}

TEST_F(GangServiceTest, ATrainerThatIsKilledOnAnyNodeEndsTheAttemptAndTheJobGoesOnFromItsCheckpoint) {
  SubmitJob();
  AwaitEvent("checkpoint");
  const std::string node = OtherNode();
  for (const pid_t pid : Trainers(node)) kill(pid, SIGKILL);
  const v1::JobEvent lost = Await([](const v1::JobEvent& event) { return event.state() == State::RECOVERING; });
  EXPECT_THAT(lost.message(), HasSubstr("ended by signal 9"));
  ExpectPublishedOnce(/*attempts=*/2, /*lost=*/1);
  EXPECT_GE(AwaitEvent("started").data().fields().at("resumed_step").number_value(), kCheckpointEvery);
  EXPECT_THAT(BlamedNodes(), ElementsAre(node)) << "and not where the rest of its ranks ended for that";
}

TEST_F(GangServiceTest, AnAgentThatIsKilledTakesItsTrainerAlongAndTheJobGoesOnWhenItIsStartedAgain) {
  SubmitJob();
  AwaitEvent("checkpoint");
  const std::string node = OtherNode();
  agents_.at(node).End(SIGKILL);
  EXPECT_TRUE(WaitFor([&] { return Trainers(node).empty(); }));
  StartNode(node);
  ExpectPublishedOnce(/*attempts=*/2, /*lost=*/1);
  EXPECT_GE(AwaitEvent("started").data().fields().at("resumed_step").number_value(), kCheckpointEvery);
  EXPECT_THAT(BlamedNodes(), IsEmpty()) << "no trainer died of itself";
}

TEST_F(GangServiceTest, AnAgentThatIsAskedToEndLeavesACheckpointOnTheLeadingNode) {
  SubmitJob();
  AwaitEvent("progress");
  const std::string node = OtherNode();
  EXPECT_EQ(agents_.at(node).End(SIGTERM), 0);
  StartNode(node);
  ExpectPublishedOnce(/*attempts=*/2, /*lost=*/0);
  EXPECT_GT(AwaitEvent("started").data().fields().at("resumed_step").number_value(), 0);
}

}  // namespace
}  // namespace luthier
