#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "server/core/job.h"

namespace luthier {
namespace {

using Cell = std::tuple<JobState, JobInput>;

class TransitionTest : public testing::TestWithParam<Cell> {};

TEST_P(TransitionTest, NothingLeavesATerminalStateAndNoRowIsDoubled) {
  const auto [state, input] = GetParam();
  int rows = 0;
  for (const Transition& row : kTransitions) rows += row.from == state && row.input == input ? 1 : 0;
  EXPECT_LE(rows, 1);
  EXPECT_EQ(NextState(state, input).has_value(), rows == 1);
  if (IsTerminal(state)) {
    EXPECT_EQ(rows, 0);
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

INSTANTIATE_TEST_SUITE_P(EveryCell, TransitionTest,
                         testing::Combine(testing::ValuesIn(kAllStates), testing::ValuesIn(kAllInputs)));

TEST(TransitionsTest, EveryJobThatIsNotOverCanBeCancelledOrIsBeingCancelled) {
  for (const JobState state : kAllStates) {
    EXPECT_EQ(NextState(state, JobInput::kCancelRequested).has_value(), !IsTerminal(state) && state != JobState::kCancelling)
        << StateName(state);
  }
}

TEST(TransitionsTest, EveryStateIsReachable) {
  std::set<JobState> reached = {JobState::kQueued};
  for (size_t round = 0; round < kAllStates.size(); ++round) {
    for (const Transition& row : kTransitions) {
      if (reached.count(row.from) > 0) reached.insert(row.to);
    }
  }
  EXPECT_EQ(reached.size(), kAllStates.size());
}

}  // namespace
}  // namespace luthier
