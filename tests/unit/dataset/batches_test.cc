#include "lib/dataset/batches.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

int64_t Tokens(const MicroBatch& rows, const std::vector<int32_t>& lengths) {
  int64_t tokens = 0;
  for (const int32_t row : rows) tokens += lengths[row];
  return tokens;
}

std::vector<int32_t> RandomLengths(std::mt19937& random) {
  std::vector<int32_t> lengths(std::uniform_int_distribution<int>(1, 300)(random));
  for (int32_t& length : lengths) length = std::uniform_int_distribution<int>(1, 700)(random);
  return lengths;
}

TEST(BatchesTest, PutsEveryRowOnceIntoNearlyEqualStepsWhateverTheLengths) {
  const unsigned seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    const std::vector<int32_t> lengths = RandomLengths(random);
    const BatchOptions options{.batch_tokens = std::uniform_int_distribution<int>(1, 5000)(random),
                               .micro_batch_tokens = std::uniform_int_distribution<int>(1, 2000)(random),
                               .seed = random()};
    const std::vector<Step> plan = PlanEpoch(lengths, options, round);
    ASSERT_EQ(static_cast<int64_t>(plan.size()), StepsPerEpoch(lengths, options));
    const double mean = std::accumulate(lengths.begin(), lengths.end(), 0.0) / static_cast<double>(plan.size());
    std::vector<int> seen(lengths.size(), 0);
    for (const Step& step : plan) {
      ASSERT_FALSE(step.empty());
      int64_t step_tokens = 0;
      for (const MicroBatch& micro_batch : step) {
        ASSERT_FALSE(micro_batch.empty());
        for (const int32_t row : micro_batch) ++seen[row];
        if (micro_batch.size() > 1) {
          ASSERT_LE(Tokens(micro_batch, lengths), options.micro_batch_tokens);
        }
        step_tokens += Tokens(micro_batch, lengths);
      }
      if (options.batch_tokens > 700) {
        ASSERT_NEAR(static_cast<double>(step_tokens), mean, 701);
      }
    }
    ASSERT_TRUE(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  }
}

TEST(BatchesTest, PacksWithoutABinThatTwoCouldShare) {
  std::mt19937 random(7);
  const std::vector<int32_t> lengths = RandomLengths(random);
  const std::vector<MicroBatch> bins = PackBestFit(lengths, 1024);
  std::vector<int64_t> used;
  for (const MicroBatch& bin : bins) used.push_back(Tokens(bin, lengths));
  std::sort(used.begin(), used.end());
  ASSERT_GE(used.size(), 2u);
  EXPECT_GT(used[0] + used[1], 1024);
}

TEST(BatchesTest, PrefersTheFullestBinThatStillFits) {
  EXPECT_THAT(PackBestFit({5, 7, 3, 2, 11}, 10), ElementsAre(ElementsAre(4), ElementsAre(1, 2), ElementsAre(0, 3)));
  EXPECT_THAT(PackBestFit({}, 10), IsEmpty());
}

// A step of a few tokens more than two bins hold must not end with a bin of those few tokens.
TEST(BatchesTest, FillsTheBinsThatAreNeededEvenly) {
  const std::vector<int32_t> lengths = {1000, 1000, 1000, 1000, 100};
  ASSERT_EQ(PackBestFit(lengths, 2048).size(), 3u);
  EXPECT_THAT(PackEvenly(lengths, 2048), ElementsAre(ElementsAre(0, 3), ElementsAre(1, 4), ElementsAre(2)));
  EXPECT_THAT(PackEvenly({}, 10), IsEmpty());
}

TEST(BatchesTest, EvenBinsAreAsFewAsTightOnesAndHoldEveryRow) {
  std::mt19937 random(11);
  for (int round = 0; round < 100; ++round) {
    const std::vector<int32_t> lengths = RandomLengths(random);
    const int64_t capacity = std::uniform_int_distribution<int>(1, 3000)(random);
    const std::vector<MicroBatch> bins = PackEvenly(lengths, capacity);
    EXPECT_EQ(bins.size(), PackBestFit(lengths, capacity).size());
    size_t rows = 0;
    for (const MicroBatch& bin : bins) {
      rows += bin.size();
      if (bin.size() > 1) {
        EXPECT_LE(Tokens(bin, lengths), capacity);
      }
    }
    EXPECT_EQ(rows, lengths.size());
  }
}

// However many ranks share the steps, these have the same rows, and no rank more micro-batches than another unless rows
// are too few or too long.
TEST(BatchesTest, RanksShareTheStepsOfOne) {
  std::mt19937 random(13);
  for (int round = 0; round < 100; ++round) {
    const std::vector<int32_t> lengths = RandomLengths(random);
    BatchOptions options{.batch_tokens = 4000, .micro_batch_tokens = 1400};
    const std::vector<Step> alone = PlanEpoch(lengths, options, round);
    options.ranks = std::uniform_int_distribution<int>(2, 4)(random);
    const std::vector<Step> shared = PlanEpoch(lengths, options, round);
    ASSERT_EQ(shared.size(), alone.size());
    for (size_t i = 0; i < shared.size(); ++i) {
      std::vector<int32_t> expected, rows;
      for (const MicroBatch& micro_batch : alone[i])
        expected.insert(expected.end(), micro_batch.begin(), micro_batch.end());
      for (const MicroBatch& micro_batch : shared[i]) rows.insert(rows.end(), micro_batch.begin(), micro_batch.end());
      EXPECT_THAT(rows, ::testing::UnorderedElementsAreArray(expected));
    }
  }
  EXPECT_THAT(PackEvenly({4, 3, 2, 1}, 10, 2), ElementsAre(ElementsAre(0, 3), ElementsAre(1, 2)));
  EXPECT_THAT(PackEvenly({4, 3, 2, 1}, 5, 2).size(), 2u);
  EXPECT_THAT(PackEvenly({3, 3, 3, 3, 3}, 6, 2).size(), 4u);
  EXPECT_THAT(PackEvenly({7}, 10, 2).size(), 1u);
}

// Resumed jobs depend on these very numbers.
TEST(BatchesTest, ShufflesTheSameWayForEver) {
  EXPECT_EQ(Permutation(8, 1, 0), Permutation(8, 1, 0));
  EXPECT_NE(Permutation(100, 1, 0), Permutation(100, 1, 1));
  EXPECT_NE(Permutation(100, 1, 1), Permutation(100, 2, 0));
  EXPECT_THAT(Permutation(8, 1, 0), ElementsAre(0, 3, 4, 7, 5, 6, 1, 2));
}

TEST(BatchesTest, KeepsTheOrderOfTheFileWhenAsked) {
  const BatchOptions options{.batch_tokens = 10, .micro_batch_tokens = 10, .order = BatchOptions::Order::kFile};
  const std::vector<Step> expected = {{{0, 1}}, {{2, 3}}};
  EXPECT_EQ(PlanEpoch({5, 5, 5, 5}, options, 0), expected);
  EXPECT_EQ(PlanEpoch({5, 5, 5, 5}, options, 3), expected);
}

// Rows of a file of weight 2.5 come up two or three times an epoch, and each five times in two epochs.
TEST(BatchesTest, TakesTheRowsOfAFileAsOftenAsItsWeightSays) {
  std::mt19937 random(5);
  std::vector<int32_t> lengths(30);
  for (int32_t& length : lengths) length = std::uniform_int_distribution<int>(1, 300)(random);
  for (const auto order : {BatchOptions::Order::kShuffled, BatchOptions::Order::kGrouped, BatchOptions::Order::kFile}) {
    const BatchOptions options{
        .batch_tokens = 900, .seed = 3, .order = order, .mixture = {{10, 2.5}, {16, 0.25}, {4, 1}}};
    std::vector<int> seen(lengths.size(), 0);
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
      const std::vector<Step> plan = PlanEpoch(lengths, options, epoch);
      EXPECT_EQ(static_cast<int64_t>(plan.size()), StepsPerEpoch(lengths, options));
      EXPECT_EQ(plan, PlanEpoch(lengths, options, epoch));
      int rows = 0;
      for (const Step& step : plan) {
        for (const MicroBatch& micro_batch : step) {
          for (const int32_t row : micro_batch) ++seen[row];
          rows += static_cast<int>(micro_batch.size());
        }
      }
      EXPECT_EQ(rows, 25 + 4 + 4);
    }
    for (int row = 0; row < 30; ++row) EXPECT_EQ(seen[row], row < 10 ? 10 : row < 26 ? 1 : 4) << row;
  }
  // Another seed takes other rows of the file of which an epoch takes a quarter.
  const auto first_epoch = [&](uint64_t seed) {
    return PlanEpoch(lengths,
                     {.batch_tokens = 9'000,
                      .micro_batch_tokens = 9'000,
                      .seed = seed,
                      .order = BatchOptions::Order::kFile,
                      .mixture = {{30, 0.25}}},
                     0);
  };
  EXPECT_NE(first_epoch(1), first_epoch(2));
}

TEST(BatchesTest, AMixtureOfEqualWeightsIsNone) {
  const std::vector<int32_t> lengths = {5, 9, 2, 7, 7, 1, 4};
  const BatchOptions plain{.batch_tokens = 12}, mixture{.batch_tokens = 12, .mixture = {{3, 1}, {4, 1}}};
  for (int64_t epoch = 0; epoch < 3; ++epoch)
    EXPECT_EQ(PlanEpoch(lengths, plain, epoch), PlanEpoch(lengths, mixture, epoch));
}

// How far apart the lengths within a step lie, over all steps.
TEST(BatchesTest, GroupsRowsOfLikeLengthAndShufflesTheSteps) {
  std::mt19937 random(13);
  std::vector<int32_t> lengths(400);
  for (int32_t& length : lengths) length = std::uniform_int_distribution<int>(1, 700)(random);
  const auto plan_of = [&](BatchOptions::Order order, int64_t epoch) {
    return PlanEpoch(lengths, {.batch_tokens = 3000, .micro_batch_tokens = 3000, .order = order}, epoch);
  };
  const auto spread = [&](const std::vector<Step>& plan) {
    int64_t sum = 0;
    for (const Step& step : plan) {
      int32_t shortest = 1000, longest = 0;
      for (const MicroBatch& rows : step) {
        for (const int32_t row : rows) {
          shortest = std::min(shortest, lengths[row]);
          longest = std::max(longest, lengths[row]);
        }
      }
      sum += longest - shortest;
    }
    return sum;
  };
  using Order = BatchOptions::Order;
  const std::vector<Step> grouped = plan_of(Order::kGrouped, 0);
  EXPECT_LT(5 * spread(grouped), spread(plan_of(Order::kShuffled, 0)));
  EXPECT_NE(grouped, plan_of(Order::kGrouped, 1));
  std::vector<int> seen(lengths.size(), 0);
  std::vector<int32_t> longest_of_step;
  for (const Step& step : grouped) {
    for (const MicroBatch& rows : step) {
      for (const int32_t row : rows) ++seen[row];
    }
    longest_of_step.push_back(lengths[step[0][0]]);
  }
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  EXPECT_FALSE(std::is_sorted(longest_of_step.rbegin(), longest_of_step.rend()));
}

TEST(BatchesTest, HasNoStepWithoutRows) {
  EXPECT_EQ(StepsPerEpoch({}, {}), 0);
  EXPECT_THAT(PlanEpoch({}, {}, 0), IsEmpty());
}

}  // namespace
}  // namespace luthier
