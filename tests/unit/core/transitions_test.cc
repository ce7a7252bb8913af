#include <gtest/gtest.h>

#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/job.h"

namespace luthier {
namespace {

using Cell = std::tuple<JobState, JobInput>;

class TransitionTest : public testing::TestWithParam<Cell> {};

TEST_P(TransitionTest, NoRowIsDoubledAndOnlyARetryLeavesATerminalState) {
  const auto [state, input] = GetParam();
  int rows = 0;
  for (const Transition& row : kTransitions) rows += row.from == state && row.input == input ? 1 : 0;
  EXPECT_LE(rows, 1);
  EXPECT_EQ(NextState(state, input).has_value(), rows == 1);
  if (IsTerminal(state)) {
    EXPECT_EQ(rows, input == JobInput::kRetryRequested && state != JobState::kSucceeded ? 1 : 0);
  }
}

TEST_P(TransitionTest, OnlyAStoredArtifactSucceedsAndOnlyPlacementTakesDevices) {
  const auto [state, input] = GetParam();
  const std::optional<JobState> next = NextState(state, input);
  if (!next) return;
  if (*next == JobState::kSucceeded) {
    EXPECT_EQ(input, JobInput::kArtifactStored);
  }
  if (HoldsDevices(*next) && !HoldsDevices(state)) {
    EXPECT_EQ(input, JobInput::kPlaced);
  }
  if (state == JobState::kCancelling) {
    EXPECT_EQ(*next, JobState::kCancelled);
  }
}

// Devices come back only when an agent or a lease says that no process is left, or its end was reported: never because
// a user asked.
TEST_P(TransitionTest, DevicesAreFreeOnlyOnceNoProcessIsLeft) {
  const auto [state, input] = GetParam();
  const std::optional<JobState> next = NextState(state, input);
  if (!next || !HoldsDevices(state) || HoldsDevices(*next)) return;
  EXPECT_TRUE(input == JobInput::kArtifactStored || input == JobInput::kAttemptFailed ||
              input == JobInput::kAttemptLost || input == JobInput::kRetriesExhausted ||
              input == JobInput::kAttemptStopped);
}

INSTANTIATE_TEST_SUITE_P(EveryCell, TransitionTest,
                         testing::Combine(testing::ValuesIn(kAllStates), testing::ValuesIn(kAllInputs)));

TEST(TransitionsTest, EveryJobThatIsNotOverCanBeCancelledOrIsBeingCancelled) {
  for (const JobState state : kAllStates) {
    EXPECT_EQ(NextState(state, JobInput::kCancelRequested).has_value(),
              !IsTerminal(state) && state != JobState::kCancelling)
        << StateName(state);
  }
}

// From every state that holds devices, the loss of its node leads out: no job hangs on a machine that is gone.
TEST(TransitionsTest, NoAttemptOutlivesItsNode) {
  for (const JobState state : kAllStates) {
    if (!HoldsDevices(state)) continue;
    const std::optional<JobState> next = NextState(state, JobInput::kAttemptLost);
    ASSERT_TRUE(next.has_value()) << StateName(state);
    EXPECT_FALSE(HoldsDevices(*next)) << StateName(state);
  }
}

// Run from the repository's root.
TEST(TransitionsTest, TheDocumentShowsTheTable) {
  std::ifstream stream("docs/job-life.md");
  std::vector<std::string> rows, expected;
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind("| `", 0) == 0) rows.push_back(line);
  }
  for (const Transition& row : kTransitions) {
    expected.push_back(
        absl::StrCat("| `", StateName(row.from), "` | ", InputName(row.input), " | `", StateName(row.to), "` |"));
  }
  EXPECT_EQ(rows, expected);
}

TEST(TransitionsTest, EveryStateIsReachable) {
  std::set<JobState> reached = {JobState::kQueued, JobState::kHeld};  // in which jobs are created
  for (size_t round = 0; round < kAllStates.size(); ++round) {
    for (const Transition& row : kTransitions) {
      if (reached.count(row.from) > 0) reached.insert(row.to);
    }
  }
  EXPECT_EQ(reached.size(), kAllStates.size());
}

}  // namespace
}  // namespace luthier
