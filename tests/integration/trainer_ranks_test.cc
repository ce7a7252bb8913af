// A run of several processes: it trains what one does, and its processes live, stop and die together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/program.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// The numbers of an fp32 safetensors file.
std::vector<float> Numbers(const std::string& path) {
  const std::string bytes = ReadText(path);
  uint64_t header = 0;
  if (bytes.size() < sizeof header) return {};
  std::memcpy(&header, bytes.data(), sizeof header);
  std::vector<float> numbers((bytes.size() - sizeof header - header) / sizeof(float));
  std::memcpy(numbers.data(), bytes.data() + sizeof header + header, numbers.size() * sizeof(float));
  return numbers;
}

// Processes that a running one has started and that are not over.
std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string text;
    if (!std::getline(file, text)) continue;
    std::istringstream fields(text.substr(text.rfind(')') + 1));
    char state = 0;
    pid_t parent_of = 0;
    fields >> state >> parent_of;
    if (parent_of == parent && state != 'Z') children.push_back(std::stoi(entry.path().filename()));
  }
  std::sort(children.begin(), children.end());
  return children;
}

bool IsOver(pid_t pid) {
  const std::string stat = ReadText("/proc/" + std::to_string(pid) + "/stat");
  return stat.empty() || stat.substr(stat.rfind(')') + 2, 1) == "Z";
}

class RanksTest : public TrainerProgramTest {
 protected:
  static json SpecOf(int devices, double dropout) {
    json spec = LoraSpec();
    spec["lora"]["dropout"] = dropout;
    spec["resources"] = {{"devices", devices}, {"threads", 2}};
    return spec;
  }
};

// The same batches, mean and schedule, so the same run up to the rounding of sums in another order.
TEST_F(RanksTest, TwoRanksTrainWhatOneDoes) {
  const std::vector<json> one = Events(Train(SpecOf(1, 0), Out("one")).output);
  const ProgramResult run = Train(SpecOf(2, 0), Out("two"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> two = Events(run.output);
  const json& started = *Find(two, "started");
  EXPECT_EQ(started["devices"], 2);
  EXPECT_EQ(started["total_steps"], (*Find(one, "started"))["total_steps"]);
  const auto values_of = [](const std::vector<json>& events, const std::string& event, const char* field) {
    std::vector<double> values;
    for (const json& found : events) {
      if (found["event"] == event &&
          (event != "progress" || found["step"] == 1 || found["step"] == found["total_steps"]))
        values.push_back(found[field].get<double>());
    }
    return values;
  };
  const auto near = [](const std::vector<double>& expected) {
    return ::testing::Pointwise(::testing::DoubleNear(1e-4), expected);
  };
  for (const char* field : {"loss", "learning_rate", "grad_norm", "tokens"})
    EXPECT_THAT(values_of(two, "progress", field), near(values_of(one, "progress", field))) << field;
  EXPECT_THAT(values_of(two, "evaluation", "loss"), near(values_of(one, "evaluation", "loss")));
  EXPECT_EQ(values_of(two, "started", "total_steps").size(), 1u) << "more than one rank reports";
  EXPECT_EQ(values_of(two, "finished", "step").size(), 1u);
  EXPECT_EQ(two.back()["event"], "finished");
  EXPECT_EQ(ReadText(Out("two") + "/row_losses.jsonl").empty(), false);

  const std::vector<float> expected = Numbers(Out("one") + "/adapter/adapter_model.safetensors");
  const std::vector<float> got = Numbers(Out("two") + "/adapter/adapter_model.safetensors");
  ASSERT_EQ(got.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(got[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  EXPECT_LT(std::sqrt(difference / norm), 1e-4);
}

// With dropout, of which each rank draws its own: the random numbers of both are in the checkpoint.
TEST_F(RanksTest, KilledAndResumedTheyEndWithBitIdenticalWeights) {
  ASSERT_EQ(Train(SpecOf(2, 0.1), Out("whole")).exit_code, 0);
  const std::string expected = ReadText(Out("whole") + "/adapter/adapter_model.safetensors");
  ASSERT_FALSE(expected.empty());
  int kills = 0;
  ProgramResult last;
  for (int round = 0; round < 40 && last.exit_code != 0; ++round) {
    std::vector<pid_t> ranks;
    last = Train(SpecOf(2, 0.1), Out("killed"), [&](const std::string& output, pid_t pid) {
      if (ranks.empty() && output.find("\"event\":\"checkpoint\"") != std::string::npos) {
        ranks = ChildrenOf(pid);
        EXPECT_EQ(ranks.size(), 2u);
        kill(pid, SIGKILL);
      }
    });
    if (last.signal == SIGKILL) ++kills;
    for (const pid_t rank : ranks) EXPECT_TRUE(WaitFor([&] { return IsOver(rank); })) << "rank " << rank << " lives on";
  }
  ASSERT_EQ(last.exit_code, 0);
  EXPECT_GE(kills, 4);
  EXPECT_EQ(ReadText(Out("killed") + "/adapter/adapter_model.safetensors"), expected);
}

// Whichever rank dies: the others end, and who started the run sees the signal, as if the run had one process.
TEST_F(RanksTest, TheDeathOfOneEndsAll) {
  for (const size_t victim : {0, 1}) {
    json spec = SpecOf(2, 0);
    spec["training"]["epochs"] = 300;
    const std::string out = Out("run" + std::to_string(victim));
    WriteText(out + ".spec.json", spec.dump());
    CaptureOptions options;
    std::vector<pid_t> ranks;
    options.on_output = [&](const CapturedResult& result, pid_t pid) {
      if (!ranks.empty() || result.out.find("\"event\":\"progress\"") == std::string::npos) return;
      ranks = ChildrenOf(pid);
      if (ranks.size() == 2u) kill(ranks[victim], SIGKILL);
    };
    const CapturedResult run =
        RunCaptured({LUTHIER_TRAINER_PROGRAM, "run", "--spec", out + ".spec.json", "--out", out}, options);
    ASSERT_EQ(ranks.size(), 2u) << run.err;
    EXPECT_EQ(run.exit_code, -1) << "not ended by a signal";
    EXPECT_THAT(run.err, HasSubstr("rank " + std::to_string(victim) + " of 2 was ended by signal 9"));
    for (const char* event : {"finished", "stopped", "failed"}) EXPECT_EQ(Find(Events(run.out), event), nullptr);
    for (const pid_t rank : ranks) EXPECT_TRUE(WaitFor([&] { return IsOver(rank); })) << "rank " << rank << " lives on";
  }
}

TEST_F(RanksTest, SigtermWritesACheckpointFromWhichTheyGoOn) {
  json spec = SpecOf(2, 0.1);
  spec["training"]["epochs"] = 30;
  const ProgramResult stopped = Train(spec, Out("run"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"progress\"") != std::string::npos) kill(pid, SIGTERM);
  });
  EXPECT_EQ(stopped.exit_code, 0);
  const json last = Events(stopped.output).back();
  ASSERT_EQ(last["event"], "stopped") << last;
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ((*Find(Events(run.output), "started"))["resumed_step"], last["step"]);
}

}  // namespace
}  // namespace luthier
