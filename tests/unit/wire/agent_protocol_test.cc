#include "lib/wire/agent_protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace luthier {
namespace {

using ::testing::HasSubstr;

TEST(AgentProtocolTest, BothSpeakTheNewestThatEachKnows) {
  struct Row {
    const char* what;
    ProtocolRange agent, server;
    int agreed;
  };
  for (const Row& row :
       {Row{"programs of before there were numbers", {}, {}, 1}, Row{"the same version", {2, 3}, {2, 3}, 3},
        Row{"the server was updated first", {1, 2}, {2, 3}, 2}, Row{"the agent was updated first", {2, 3}, {1, 2}, 2},
        Row{"an agent of before there were numbers, and a server that knows those", {}, {1, 4}, 1},
        Row{"a server of long ago, and an agent that knows it", {1, 9}, {1, 2}, 2}}) {
    const absl::StatusOr<int> agreed = AgreeOnProtocol(row.agent, row.server);
    ASSERT_TRUE(agreed.ok()) << row.what << ": " << agreed.status();
    EXPECT_EQ(*agreed, row.agreed) << row.what;
  }
}

TEST(AgentProtocolTest, WithoutACommonOneTheOlderProgramIsToBeUpdated) {
  const absl::Status old_agent = AgreeOnProtocol({.oldest = 1, .newest = 1}, {.oldest = 2, .newest = 3}).status();
  EXPECT_EQ(old_agent.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(old_agent.message()),
              HasSubstr("this agent speaks 1 and the server 2 to 3; install the server's version of luthier-worker"));
  const absl::Status old_server = AgreeOnProtocol({.oldest = 4, .newest = 5}, {.oldest = 2, .newest = 3}).status();
  EXPECT_EQ(old_server.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(old_server.message()),
              HasSubstr("this agent speaks 4 to 5 and the server 2 to 3; update luthierd first"));
}

TEST(AgentProtocolTest, OursIsARange) {
  EXPECT_GE(kAgentProtocol.oldest, 1);
  EXPECT_GE(kAgentProtocol.newest, kAgentProtocol.oldest);
}

}  // namespace
}  // namespace luthier
