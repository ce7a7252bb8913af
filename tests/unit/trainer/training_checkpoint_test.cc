// What is on disk, and what is made of it. That runs go on from checkpoints exactly:
// tests/integration/trainer_resume_test.cc.
#include "worker/trainer/train/training_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/inotify.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "nlohmann/json.hpp"
#include "tests/support/file_size_limit.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What a process has no memory for any more, but for some `room`.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(rlim_t room) {
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    const rlimit lowered = {pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + room, before_.rlim_max};
    setrlimit(RLIMIT_AS, &lowered);
  }
  ~AddressSpaceLimit() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_;
};

EvaluationResult Loss(double loss) {
  EvaluationResult result;
  result.loss = loss;
  return result;
}

class TrainingCheckpointTest : public ::testing::Test {
 protected:
  static TrainingState StateAt(int64_t step) {
    TrainingState state;
    state.step = step;
    state.weights["w"] = at::full({3}, static_cast<double>(step));
    state.optimizer["m"] = at::full({3}, 0.1);
    state.generator_states = at::zeros({8}, at::kByte);
    state.spec_hash = "spec";
    state.machine = {100 * step, "fp32"};
    return state;
  }

  // Checkpoints of steps 1 to 3.
  void WriteRun(const std::string& name, double seconds = 0) {
    for (int64_t step = 1; step <= 3; ++step) {
      TrainingState state = StateAt(step);
      state.seconds = seconds;
      ASSERT_TRUE(WriteCheckpoint(Run(name), state, /*keep=*/5).ok());
    }
  }

  std::string Run(const std::string& name) const { return folder_.path() + "/" + name; }
  std::string Step(const std::string& run, int64_t step) const {
    return Run(run) + "/checkpoints/step-" + std::to_string(step);
  }

  void ChangeState(int64_t step, const std::function<void(json&)>& change) {
    json state = json::parse(std::ifstream(Step("a", step) + "/state.json"));
    change(state);
    WriteText(Step("a", step) + "/state.json", state.dump());
  }

  // 0: none. What was said on the way is in `warnings_`.
  int64_t Newest() {
    warnings_.clear();
    const auto state =
        ReadNewestCheckpoint(Run("a"), "spec", [&](std::string warning) { warnings_.push_back(warning); });
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() && state->has_value() ? (*state)->step : 0;
  }

  TempFolder folder_;
  std::vector<std::string> warnings_;
};

TEST_F(TrainingCheckpointTest, SaysWhatTheRunChoseByItsMachine) {
  EXPECT_FALSE(MachineValuesOfNewest(Run("a")).has_value());
  WriteRun("a");
  EXPECT_EQ(MachineValuesOfNewest(Run("a"))->micro_batch_tokens, 300);
  EXPECT_EQ(MachineValuesOfNewest(Run("a"))->precision, "fp32");
  ChangeState(3, [](json& state) { state["machine"]["micro_batch_tokens"] = 7; });
  EXPECT_EQ(MachineValuesOfNewest(Run("a"))->micro_batch_tokens, 200) << "what does not match its hash says nothing";
}

TEST_F(TrainingCheckpointTest, EachNamesTheOneBeforeByItsHash) {
  WriteRun("a");
  EXPECT_EQ(Newest(), 3);
  EXPECT_THAT(warnings_, IsEmpty());
  const auto state = [&](int64_t step) { return json::parse(std::ifstream(Step("a", step) + "/state.json")); };
  EXPECT_TRUE(state(1)["previous"].is_null());
  EXPECT_EQ(state(2)["previous"], json({{"step", 1}, {"hash", state(1)["hash"]}}));
  EXPECT_EQ(state(3)["previous"]["hash"], state(2)["hash"]);
}

TEST_F(TrainingCheckpointTest, AnAlteredFieldOfTheStateIsDamage) {
  for (const auto& change : std::vector<std::function<void(json&)>>{
           [](json& state) { state["step"] = 2; }, [](json& state) { state["tokens"] = 99; },
           [](json& state) { state["previous"] = nullptr; },
           [](json& state) { state["sha256"].erase("rows.safetensors"); }, [](json& state) { state.erase("hash"); }}) {
    WriteRun("a");
    ChangeState(3, change);
    EXPECT_EQ(Newest(), 2);
    EXPECT_THAT(warnings_, ElementsAre(HasSubstr("step-3 is damaged")));
  }
}

TEST_F(TrainingCheckpointTest, ACheckpointThatFollowsAnotherOneIsDamage) {
  WriteRun("a", /*seconds=*/1);
  WriteRun("b", /*seconds=*/2);  // another run of the same spec: each of its checkpoints is intact
  fs::remove_all(Step("a", 3));
  fs::copy(Step("b", 3), Step("a", 3));
  EXPECT_EQ(Newest(), 2);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("does not follow step-2")));
}

TEST_F(TrainingCheckpointTest, ACheckpointUnderTheNameOfAnotherStepIsDamage) {
  WriteRun("a");
  fs::rename(Step("a", 3), Step("a", 4));
  EXPECT_EQ(Newest(), 2);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("holds step 3")));
}

// One that was damaged is no link, and one that was removed for room is not missed.
TEST_F(TrainingCheckpointTest, TheChainGoesOnOverWhatIsGone) {
  WriteRun("a");
  ChangeState(2, [](json& state) { state["step"] = 7; });
  EXPECT_EQ(Newest(), 3);
  ASSERT_TRUE(WriteCheckpoint(Run("a"), StateAt(4), /*keep=*/1).ok());
  EXPECT_FALSE(fs::exists(Step("a", 3)));
  EXPECT_EQ(Newest(), 4);
  EXPECT_THAT(warnings_, IsEmpty());
}

// Bug 30: the disk is full when the weights are written and the optimizer's state is not.
TEST_F(TrainingCheckpointTest, OneThatCannotBeFinishedLeavesTheOneBefore) {
  TrainingState before = StateAt(1), after = StateAt(2);
  before.generator_states = after.generator_states = at::zeros({5000}, at::kByte);  // in the largest file
  ASSERT_TRUE(WriteCheckpoint(Run("a"), before, /*keep=*/1).ok());
  {
    const FileSizeLimit limit(2500);
    EXPECT_EQ(WriteCheckpoint(Run("a"), after, /*keep=*/1).status().code(), absl::StatusCode::kResourceExhausted);
  }
  const auto newest =
      ReadNewestCheckpoint(Run("a"), "spec", [](const std::string& warning) { ADD_FAILURE() << warning; });
  ASSERT_TRUE(newest.ok()) << newest.status();
  ASSERT_TRUE(newest->has_value());
  EXPECT_EQ((*newest)->step, 1);
  EXPECT_TRUE(at::equal((*newest)->weights.at("w"), before.weights.at("w")));
  ASSERT_TRUE(WriteCheckpoint(Run("a"), after, /*keep=*/1).ok());
  EXPECT_EQ(Newest(), 2);
}

// A run that ended in its last evaluation writes its last step once more when it has gone on. With keep: 1 there is no
// other checkpoint.
TEST_F(TrainingCheckpointTest, TheSameStepOnceMoreIsNeverRemovedBeforeItsSuccessor) {
  ASSERT_TRUE(WriteCheckpoint(Run("a"), StateAt(2), /*keep=*/1).ok());
  const int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  ASSERT_GE(inotify_add_watch(watch, (Run("a") + "/checkpoints").c_str(), IN_DELETE), 0);
  TrainingState again = StateAt(2);
  again.tokens = 7;
  ASSERT_TRUE(WriteCheckpoint(Run("a"), again, /*keep=*/1).ok());
  alignas(inotify_event) char events[4096];
  const ssize_t size = read(watch, events, sizeof events);
  close(watch);
  std::set<std::string> removed;
  for (ssize_t at = 0; at < size;) {
    const auto* event = reinterpret_cast<const inotify_event*>(events + at);
    removed.insert(event->name);
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
  }
  EXPECT_EQ(removed.count("step-2"), 0u);
  EXPECT_EQ(Newest(), 2);
  EXPECT_EQ(json::parse(std::ifstream(Step("a", 2) + "/state.json"))["tokens"], 7);
}

// A run that is killed here goes on from step 1, and may be told to evaluate at other steps than before.
TEST_F(TrainingCheckpointTest, TheBestWeightsStayAsLongAsACheckpointNamesThem) {
  TrainingState state = StateAt(1);
  state.selection.Add(1, Loss(2), "loss");
  ASSERT_TRUE(WriteBestWeights(Run("a"), 1, state.weights).ok());
  ASSERT_TRUE(WriteCheckpoint(Run("a"), state, /*keep=*/1).ok());
  ASSERT_TRUE(WriteBestWeights(Run("a"), 2, StateAt(2).weights).ok());
  ASSERT_TRUE(HasBestWeights(Run("a"), 1));
  EXPECT_TRUE(at::equal(ReadBestWeights(Run("a"), 1)->at("w"), state.weights.at("w")));
  TrainingState next = StateAt(2);
  next.selection = state.selection;
  next.selection.Add(2, Loss(1), "loss");
  ASSERT_TRUE(WriteCheckpoint(Run("a"), next, /*keep=*/1).ok());
  EXPECT_FALSE(HasBestWeights(Run("a"), 1));
  EXPECT_TRUE(HasBestWeights(Run("a"), 2));
}

// To go back for that to the one before would throw intact ones away, one after the other.
TEST_F(TrainingCheckpointTest, ACheckpointThatMemoryDoesNotSufficeForIsNotDamaged) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take more address space than there is";
#endif
  TrainingState large = StateAt(2);
  large.weights["w"] = at::zeros({int64_t{12} << 20});  // 48 MB
  ASSERT_TRUE(WriteCheckpoint(Run("a"), StateAt(1), /*keep=*/2).ok());
  ASSERT_TRUE(WriteCheckpoint(Run("a"), large, /*keep=*/2).ok());
  {
    const AddressSpaceLimit limit(rlim_t{24} << 20);
    const auto newest =
        ReadNewestCheckpoint(Run("a"), "spec", [](const std::string& warning) { ADD_FAILURE() << warning; });
    EXPECT_EQ(newest.status().code(), absl::StatusCode::kUnavailable) << newest.status();
  }
  EXPECT_EQ(Newest(), 2);
}

TEST_F(TrainingCheckpointTest, CheckpointsThatCannotBeListedAreNotTakenForNone) {
  fs::create_directories(Run("a"));
  WriteText(Run("a") + "/checkpoints", "no folder");
  EXPECT_FALSE(ReadNewestCheckpoint(Run("a"), "spec", [](const std::string&) {}).ok());
}

}  // namespace
}  // namespace luthier
