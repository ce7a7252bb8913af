// A run over two nodes, which are both this machine: it trains what as many ranks of one node do, and its programs stop
// and end together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/free_port.h"
#include "tests/support/processes.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr int kLostPeer = 3;

std::string Said(const CapturedResult& result, const std::string& event) {
  const std::vector<json> events = Events(result.out);
  const json* found = Find(events, event);
  return found == nullptr ? "" : found->dump();
}

// `pid` may be that of none, and kill() has another meaning for it.
bool Send(int signal, pid_t pid) { return pid > 0 && kill(pid, signal) == 0; }

bool HasLastWord(const CapturedResult& result) {
  return !Said(result, "finished").empty() || !Said(result, "stopped").empty() || !Said(result, "failed").empty();
}

class NodesTest : public TrainerProgramTest {
 protected:
  using OnOutput = std::function<void(const CapturedResult&, pid_t)>;

  // Two ranks with a thread each, on as many nodes. Enough steps that a run is still at it when it is to be ended.
  static json SpecOf(int nodes) {
    json spec = LoraSpec();
    spec["training"]["epochs"] = 10;
    spec["resources"] = {{"nodes", nodes}, {"devices", 2 / nodes}, {"threads", 2 / nodes}};
    return spec;
  }

  static CapturedResult RunOne(const json& spec, const std::string& out, const std::vector<std::string>& flags,
                               const OnOutput& on_output = {}) {
    WriteText(out + ".spec.json", spec.dump());
    std::vector<std::string> command = {LUTHIER_TRAINER_PROGRAM, "run", "--spec", out + ".spec.json", "--out", out};
    command.insert(command.end(), flags.begin(), flags.end());
    CaptureOptions options;
    options.on_output = on_output;
    return RunCaptured(command, options);
  }

  static std::vector<std::string> Flags(int node, const std::string& meeting) {
    return {"--node-rank", std::to_string(node), "--meeting", meeting, "--address", "127.0.0.1"};
  }

  static std::string FreeMeeting() { return "127.0.0.1:" + std::to_string(FreePort()); }

  // The programs of the nodes, whose folders are Out(name + "0") and Out(name + "1"). `on_output` is told what node 0
  // says.
  std::vector<CapturedResult> RunBoth(const json& spec, const std::string& name, const OnOutput& on_output = {}) const {
    const std::string meeting = FreeMeeting();
    CapturedResult leading;
    std::thread node0([&] { leading = RunOne(spec, Out(name + "0"), Flags(0, meeting), on_output); });
    const CapturedResult other = RunOne(spec, Out(name + "1"), Flags(1, meeting));
    node0.join();
    return {leading, other};
  }

  // The program of node 1, which its ranks are younger than.
  pid_t ProgramOfNode1(const std::string& name) const {
    const std::vector<pid_t> processes = ProcessesWith(Out(name + "1") + ".spec.json");
    return processes.empty() ? -1 : *std::min_element(processes.begin(), processes.end());
  }

  std::string AdapterOf(const std::string& name) const {
    return ReadText(Out(name) + "/adapter/adapter_model.safetensors");
  }
};

TEST_F(NodesTest, TwoNodesTrainTheBitsOfTwoRanksOnOne) {
  ASSERT_EQ(Train(SpecOf(1), Out("one")).exit_code, 0) << "one node has two devices";
  const std::string expected = AdapterOf("one");
  ASSERT_FALSE(expected.empty());
  const std::vector<CapturedResult> nodes = RunBoth(SpecOf(2), "node");
  ASSERT_EQ(nodes[0].exit_code, 0) << nodes[0].err;
  EXPECT_EQ(nodes[1].exit_code, 0) << nodes[1].err;
  EXPECT_EQ(json::parse(Said(nodes[0], "started"))["devices"], 2);
  EXPECT_NE(Said(nodes[0], "finished"), "");
  EXPECT_EQ(AdapterOf("node0"), expected);
  EXPECT_EQ(nodes[1].out, "") << "a node that does not lead reports something";
  EXPECT_FALSE(std::filesystem::exists(Out("node1"))) << "a node that does not lead writes something";
}

// Four ranks, of which each node has two, so that a rank's number and its number on its node differ.
TEST_F(NodesTest, TwoNodesOfTwoDevicesTrainWhatOneDeviceDoes) {
  json spec = LoraSpec();
  spec["lora"]["dropout"] = 0;
  const ProgramResult one = Train(spec, Out("one"));
  ASSERT_EQ(one.exit_code, 0) << one.output;
  spec["resources"] = {{"nodes", 2}, {"devices", 2}, {"threads", 2}};
  const std::vector<CapturedResult> nodes = RunBoth(spec, "node");
  ASSERT_EQ(nodes[0].exit_code, 0) << nodes[0].err;
  EXPECT_EQ(nodes[1].exit_code, 0) << nodes[1].err;
  EXPECT_EQ(json::parse(Said(nodes[0], "started"))["devices"], 4);
  EXPECT_NEAR(json::parse(Said(nodes[0], "finished"))["train_loss"].get<double>(),
              (*Find(Events(one.output), "finished"))["train_loss"].get<double>(), 1e-4);
}

// Whichever node's program is killed: the other ends by itself and says that it lost its peer. Together they go on from
// the checkpoint of the leading node, the only one that has any.
TEST_F(NodesTest, KilledOnEitherNodeTheyEndTogetherAndGoOnWithTheSameBits) {
  ASSERT_EQ(Train(SpecOf(1), Out("whole")).exit_code, 0);
  const std::string expected = AdapterOf("whole");
  ASSERT_FALSE(expected.empty());
  for (int round = 0; round < 4; ++round) {
    const size_t victim = round % 2 == 0 ? 1 : 0;
    pid_t node1 = -1;
    bool killed = false;
    const std::vector<CapturedResult> nodes =
        RunBoth(SpecOf(2), "node", [&](const CapturedResult& so_far, pid_t node0) {
          if (node1 < 0 && so_far.out.find("\"event\":\"started\"") != std::string::npos)
            node1 = ProgramOfNode1("node");
          if (killed || so_far.out.find("\"event\":\"checkpoint\"") == std::string::npos) return;
          killed = Send(SIGKILL, victim == 0 ? node0 : node1);
        });
    ASSERT_TRUE(killed) << nodes[0].err;
    EXPECT_EQ(nodes[victim].exit_code, -1) << "not ended by the signal";
    const CapturedResult& other = nodes[1 - victim];
    EXPECT_EQ(other.exit_code, kLostPeer) << other.err;
    EXPECT_FALSE(HasLastWord(other)) << other.out;
    EXPECT_TRUE(WaitFor([&] { return ProcessesWith(Out("node")).empty(); })) << "a rank lives on";
    EXPECT_FALSE(std::filesystem::exists(Out("node1")));
  }
  const std::vector<CapturedResult> nodes = RunBoth(SpecOf(2), "node");
  ASSERT_EQ(nodes[0].exit_code, 0) << nodes[0].err;
  EXPECT_EQ(nodes[1].exit_code, 0) << nodes[1].err;
  EXPECT_GE(json::parse(Said(nodes[0], "started"))["resumed_step"], 4);
  EXPECT_EQ(AdapterOf("node0"), expected);
}

// A run goes from one node to two and back: the ranks are the same.
TEST_F(NodesTest, ARunThatBeganOnOneNodeGoesOnOnTwo) {
  ASSERT_EQ(Train(SpecOf(1), Out("whole")).exit_code, 0);
  const ProgramResult begun = Train(SpecOf(1), Out("node0"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"checkpoint\"") != std::string::npos) kill(pid, SIGKILL);
  });
  ASSERT_EQ(begun.signal, SIGKILL);
  const std::vector<CapturedResult> nodes = RunBoth(SpecOf(2), "node");
  ASSERT_EQ(nodes[0].exit_code, 0) << nodes[0].err;
  EXPECT_GE(json::parse(Said(nodes[0], "started"))["resumed_step"], 1);
  EXPECT_EQ(AdapterOf("node0"), AdapterOf("whole"));
}

TEST_F(NodesTest, TheLeadingNodeStopsBothAndNoOtherDoes) {
  json spec = SpecOf(2);
  spec["training"]["epochs"] = 300;
  bool told_node1 = false;
  const std::vector<CapturedResult> nodes = RunBoth(spec, "node", [&](const CapturedResult& so_far, pid_t node0) {
    const size_t first = so_far.out.find("\"event\":\"progress\"");
    if (first == std::string::npos) return;
    if (!told_node1) told_node1 = Send(SIGTERM, ProgramOfNode1("node"));
    if (so_far.out.find("\"event\":\"progress\"", first + 1) != std::string::npos) Send(SIGTERM, node0);
  });
  EXPECT_TRUE(told_node1);
  EXPECT_EQ(nodes[0].exit_code, 0) << nodes[0].err;
  EXPECT_EQ(nodes[1].exit_code, 0) << nodes[1].err;
  EXPECT_EQ(Events(nodes[0].out).back()["event"], "stopped");
}

// What a node finds wrong with its own files it says, and no rank waits for it.
TEST_F(NodesTest, ANodeThatFailsSaysSoAndTheOtherHasLostIt) {
  const std::string meeting = FreeMeeting();
  json broken = SpecOf(2);
  broken["dataset"]["train"] = "/nowhere.jsonl";
  CapturedResult leading;
  std::thread node0([&] { leading = RunOne(SpecOf(2), Out("node0"), Flags(0, meeting)); });
  const CapturedResult failing = RunOne(broken, Out("node1"), Flags(1, meeting));
  node0.join();
  EXPECT_EQ(failing.exit_code, 1) << failing.err;
  EXPECT_THAT(Said(failing, "failed"), HasSubstr("nowhere.jsonl"));
  EXPECT_EQ(leading.exit_code, kLostPeer) << leading.err;
  EXPECT_FALSE(HasLastWord(leading)) << leading.out;
}

TEST_F(NodesTest, FlagsAndNodesGoTogether) {
  struct Case {
    int nodes;
    std::vector<std::string> flags;
    std::string message;
  };
  const std::vector<Case> cases = {
      {2,
       {},
       "resources.nodes: 2 nodes train together where each is told which one it is; give --node-rank, --meeting"},
      {1, Flags(0, "127.0.0.1:29400"),
       "--node-rank: goes with several nodes, and resources.nodes is 1; leave out --node-rank, --meeting and "
       "--address"},
      {2, Flags(2, "127.0.0.1:29400"), "--node-rank: 2 is out of range; resources.nodes is 2, so give 0 to 1"},
      {2, Flags(0, "127.0.0.1"), "--meeting: 127.0.0.1 is no HOST:PORT"}};
  for (const Case& refused : cases) {
    const CapturedResult result = RunOne(SpecOf(refused.nodes), Out("refused"), refused.flags);
    EXPECT_EQ(result.exit_code, 1) << refused.message;
    const json failed = json::parse(Said(result, "failed"));
    EXPECT_EQ(failed["cause"], "CONFIG");
    EXPECT_THAT(failed["message"].get<std::string>(), HasSubstr(refused.message));
  }
  const CapturedResult alone = RunOne(SpecOf(2), Out("refused"), {"--node-rank", "0"});
  EXPECT_EQ(alone.exit_code, 2);
  EXPECT_THAT(alone.err, HasSubstr("--node-rank requires --"));
}

// No last word: the node is at fault, and another one may do better.
TEST_F(NodesTest, APortThatIsTakenEndsTheProgramWithoutALastWord) {
  const int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(taken, 1), 0);
  getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size);
  const std::string meeting = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const CapturedResult result = RunOne(SpecOf(2), Out("node0"), Flags(0, meeting));
  close(taken);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("--meeting: " + meeting + ": Address already in use"));
}

}  // namespace
}  // namespace luthier
