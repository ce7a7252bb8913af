// What ranks say to each other, here as threads of one process.
#include "worker/trainer/distributed/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/free_port.h"

namespace luthier {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

Meeting MeetingHere(const std::string& run) {
  return {.host = "127.0.0.1", .port = static_cast<uint16_t>(FreePort()), .address = "127.0.0.1", .run = run};
}

// Why that rank does not meet the others.
std::string WhyAlone(const RankPlace& place) {
  try {
    const Ranks ranks(place);
  } catch (const LostRank& lost) {
    return lost.what();
  }
  return "it met them";
}

// Does the same in every rank of three, which `meeting` has on a node each.
void InEveryRank(const std::optional<Meeting>& meeting, const std::function<void(const Ranks&)>& what) {
  constexpr int kRanks = 3;
  const int rendezvous = MakeRendezvous(meeting, /*leads=*/true).value();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back(
        [&, rank] { what(Ranks({.rank = rank, .size = kRanks, .rendezvous = rendezvous, .meeting = meeting})); });
  }
  for (std::thread& thread : threads) thread.join();
  if (!meeting) close(rendezvous);  // the one that leads has closed its socket
}

TEST(RanksTest, DoNotWaitForEverForOneThatDoesNotCome) {
  const int rendezvous = MakeRendezvous({}, /*leads=*/true).value();
  EXPECT_THAT(WhyAlone({.rank = 1, .size = 3, .rendezvous = rendezvous, .patience = milliseconds(200)}),
              HasSubstr("of 3 ranks 1 have come within 200 ms"));
  close(rendezvous);
}

TEST(RanksTest, DoNotWaitForEverForOneOfAnotherNode) {
  const Meeting meeting = MeetingHere("run");
  const int rendezvous = MakeRendezvous(meeting, /*leads=*/true).value();
  EXPECT_THAT(WhyAlone({.size = 2, .rendezvous = rendezvous, .patience = milliseconds(1000), .meeting = meeting}),
              HasSubstr(absl::StrCat("of 2 ranks 1 have come within 1000 ms; their nodes have to reach 127.0.0.1:",
                                     meeting.port)));
}

TEST(RanksTest, DoNotLookForEverForANodeThatDoesNotServe) {
  EXPECT_THAT(WhyAlone({.rank = 1, .size = 2, .patience = milliseconds(1000), .meeting = MeetingHere("run")}),
              HasSubstr("nobody listens at 127.0.0.1:"));
}

// The port of a run that is over serves the next one, and a node may not know yet that the first is over.
TEST(RanksTest, DoNotMeetThoseOfAnotherRun) {
  const Meeting meeting = MeetingHere("jobs/j/attempts/2");
  Meeting earlier = meeting;
  earlier.run = "jobs/j/attempts/1";
  const int rendezvous = MakeRendezvous(meeting, /*leads=*/true).value();
  std::thread latecomer([&] {
    EXPECT_NE(WhyAlone({.rank = 1, .size = 2, .patience = milliseconds(1000), .meeting = earlier}), "it met them");
  });
  EXPECT_THAT(WhyAlone({.size = 2, .rendezvous = rendezvous, .patience = milliseconds(2000), .meeting = meeting}),
              HasSubstr("of 2 ranks 1 have come"));
  latecomer.join();
}

// Also numbers that a sum with zeros would change.
TEST(RanksTest, ShareWhatTheLeadingOneHasBitForBit) {
  const std::vector<float> numbers = {-0.0f, 1e-42f, std::numeric_limits<float>::quiet_NaN(), 3};
  for (const std::optional<Meeting>& meeting : {std::optional<Meeting>(), std::optional(MeetingHere("run"))}) {
    InEveryRank(meeting, [&](const Ranks& ranks) {
      const Tensor mine = ranks.leads() ? at::tensor(numbers) : at::full({4}, 7.0f);
      const Tensor shared = ranks.Share(mine);
      EXPECT_TRUE(at::equal(shared.view(at::kInt), at::tensor(numbers).view(at::kInt))) << "rank " << ranks.rank();
      EXPECT_EQ(ranks.Share(ranks.leads() ? std::string("what rank 0 says") : std::string("x")), "what rank 0 says");
      EXPECT_EQ(ranks.Agree(ranks.leads() ? 5 : 6), 5);
      EXPECT_TRUE(at::equal(ranks.Gather(at::full({1}, ranks.rank(), at::kLong)), at::arange(3, at::kLong)));
    });
  }
}

TEST(RanksTest, AMeetingIsAHostAndAPort) {
  EXPECT_EQ(ParseMeeting("node-7:29400")->host, "node-7");
  EXPECT_EQ(ParseMeeting("node-7:29400")->port, 29400);
  EXPECT_EQ(ParseMeeting("[fd00::1]:80")->host, "fd00::1");
  for (const char* wrong : {"", "node-7", ":80", "node-7:", "node-7:0", "node-7:65536", "node-7:http"}) {
    EXPECT_THAT(std::string(ParseMeeting(wrong).status().message()), HasSubstr("is no HOST:PORT")) << wrong;
  }
}

// 203.0.113.0/24 is for documentation: no machine has it.
TEST(RanksTest, AnAddressOfAnotherMachineIsRefused) {
  Meeting meeting = MeetingHere("run");
  meeting.address = "203.0.113.1";
  EXPECT_THAT(std::string(MakeRendezvous(meeting, /*leads=*/false).status().message()),
              HasSubstr("--address: '203.0.113.1' is no address of this machine"));
  meeting = MeetingHere("run");
  meeting.host = "203.0.113.1";
  EXPECT_THAT(std::string(MakeRendezvous(meeting, /*leads=*/true).status().message()),
              HasSubstr("--meeting: 203.0.113.1:"));
  EXPECT_EQ(MakeRendezvous(meeting, /*leads=*/false).value(), -1) << "the meeting is another machine's";
}

}  // namespace
}  // namespace luthier
