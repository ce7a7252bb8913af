#include "worker/agent/stall_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1000);
constexpr absl::Duration kPatience = absl::Minutes(15);

struct Row {
  const char* what;
  std::vector<json> said;  // one a minute
  absl::Duration limit;    // of the silence that follows
  const char* text;
};

TEST(StallWatchTest, GivesEachPhaseItsTime) {
  const json started = {{"event", "started"}}, step = {{"event", "progress"}, {"step_seconds", 0.5}},
             slow_step = {{"event", "progress"}, {"step_seconds", 120.0}},
             evaluates = {{"event", "busy"}, {"with", "evaluation"}}, exports = {{"event", "busy"}, {"with", "export"}},
             odd = {{"event", "progress"}, {"step_seconds", nullptr}}, odder = {{"event", "busy"}, {"with", 7}};
  const std::vector<Row> rows = {
      {"loads", {}, 4 * kPatience, "said nothing for 1h before its first step"},
      {"takes its first step", {started}, 4 * kPatience, "before its first step"},
      {"evaluates before its first step", {started, evaluates}, 4 * kPatience, "before its first step"},
      {"trains", {started, step}, kPatience, "said nothing for 15m while it trained"},
      {"takes slow steps", {started, step, slow_step}, absl::Minutes(20), "said nothing for 20m while it trained"},
      {"says no time of a step", {started, odd, odder}, kPatience, "while it trained"},
      {"evaluates", {started, step, evaluates}, kPatience, "while it trained"},
      {"exports", {started, step, exports}, 4 * kPatience, "said nothing for 1h while it wrote its result"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    absl::Time now = kStart;
    StallWatch watch(kPatience, now);
    for (const json& event : row.said) watch.Observe(event, now += absl::Minutes(1));
    EXPECT_FALSE(watch.HasStalled(now + row.limit - absl::Milliseconds(1)));
    EXPECT_TRUE(watch.HasStalled(now + row.limit));
    EXPECT_THAT(watch.Text(), HasSubstr(row.text));
  }
}

TEST(StallWatchTest, WaitsForEverIfItIsToldSo) {
  StallWatch watch(absl::InfiniteDuration(), kStart);
  EXPECT_FALSE(watch.HasStalled(kStart + absl::Hours(100000)));
  watch.Observe({{"event", "progress"}, {"step_seconds", 1.0}}, kStart);
  EXPECT_FALSE(watch.HasStalled(kStart + absl::Hours(100000)));
}

}  // namespace
}  // namespace luthier
