// The shipped base model, tasks and job files, through the real service as a user runs them: what the README promises
// of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::Ge;
using ::testing::Le;
using ::testing::Lt;

// What a task must reach on its held-out rows.
struct Promise {
  const char* task;
  std::string job;  // its job file
  std::string data;
  double exact_match;
  double field_f1 = 0;   // 0: nothing is promised of it
  double full = 0;       // exact match of full training; 0: LoRA's, but for noise
  double seconds = 300;  // of a job, on two cores
};
// Names and phrasings of the held-out rows are those of no training row.
Promise Generated(const char* task, double exact_match, double field_f1 = 0) {
  const std::string folder = std::string(LUTHIER_EXAMPLES "/tasks/") + task;
  return {task, folder + "/job.yaml", folder, exact_match, field_f1};
}
const Promise kPromises[] = {Generated("classification", 0.85),
                             Generated("tool_calling", 0.85),
                             Generated("ner", 0.60, 0.85),
                             Generated("extraction", 0.60, 0.85),
                             Generated("qa", 0.60, 0.85),
                             {.task = "banking77",
                              .job = LUTHIER_EXAMPLES "/banking77/job.yaml",
                              .data = LUTHIER_SHARED_DATA "/banking77",
                              .exact_match = 0.45,
                              .full = 0.30,
                              .seconds = 900}};
constexpr double kBaseAtMost = 0.10;
// Of 200 rows, two figures less than this apart are the same figure.
constexpr double kNoise = 0.03;

class ExampleTasksTest : public testing::TestWithParam<Promise> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(GetParam().data))
      GTEST_SKIP() << "SKIPPED: " << GetParam().data << " is not here; " << GetParam().task << " was not tuned";
    service_.StartServer({"--with-local-worker"});
    v1::ListNodesResponse nodes;  // answered once the server serves
    service_.Call([&](grpc::ClientContext& context) { return service_.nodes->ListNodes(&context, {}, &nodes); });
    Luthier({"model", "import", "luthier-tiny", LUTHIER_EXAMPLES "/base/luthier-tiny"});
    Luthier({"dataset", "upload", DatasetId(), GetParam().data});
  }
  // Dataset ids have hyphens where task names have underscores.
  static std::string DatasetId() {
    std::string id = GetParam().task;
    for (char& letter : id) letter = letter == '_' ? '-' : letter;
    return id;
  }
  std::string Luthier(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), LUTHIER_BIN_FOLDER "/luthier");
    const CapturedResult result = RunCaptured(arguments, {.environment = {{"LUTHIER_SERVER", service_.Address()}}});
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return result.out;
  }
  // Runs the shipped job file to its end.
  v1::FineTuningJob Tune(const std::string& tuning) {
    Luthier({"job", "submit", "-f", GetParam().job, "--tuning", tuning, "--id", tuning, "--wait"});
    const v1::FineTuningJob job = service_.Job(tuning);
    EXPECT_EQ(job.state(), v1::FineTuningJob::SUCCEEDED) << job.DebugString();
    return job;
  }
  static const v1::Evaluation& HeldOut(const v1::FineTuningJob& job, const std::string& model) {
    for (const v1::Evaluation& evaluation : job.evaluations()) {
      if (evaluation.split() == "test" && evaluation.model() == model) return evaluation;
    }
    ADD_FAILURE() << "no held-out evaluation of the " << model << " model";
    return v1::Evaluation::default_instance();
  }
  static void Print(const char* tuning, const v1::FineTuningJob& job) {
    const v1::Evaluation& tuned = HeldOut(job, "tuned");
    std::printf("%s %s: exact match %.3f -> %.3f, field F1 %.3f, %.0f s\n", GetParam().task, tuning,
                HeldOut(job, "base").exact_match(), tuned.exact_match(), tuned.field_f1(), Seconds(job));
  }
  static double Seconds(const v1::FineTuningJob& job) {
    return static_cast<double>(job.end_time().seconds() - job.start_time().seconds());
  }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

TEST_P(ExampleTasksTest, LoraAndFullTrainingReachWhatTheReadmePromises) {
  const v1::FineTuningJob lora = Tune("lora");
  Print("LoRA", lora);
  EXPECT_THAT(HeldOut(lora, "base").exact_match(), Lt(kBaseAtMost));
  EXPECT_THAT(HeldOut(lora, "tuned").exact_match(), Ge(GetParam().exact_match));
  EXPECT_THAT(HeldOut(lora, "tuned").field_f1(), Ge(GetParam().field_f1));
  EXPECT_THAT(Seconds(lora), Le(GetParam().seconds));

  const v1::FineTuningJob full = Tune("full");
  Print("full", full);
  const double least = GetParam().full > 0 ? GetParam().full : HeldOut(lora, "tuned").exact_match() - kNoise;
  EXPECT_THAT(HeldOut(full, "tuned").exact_match(), Ge(least));
  EXPECT_THAT(Seconds(full), Le(GetParam().seconds));
}

INSTANTIATE_TEST_SUITE_P(EveryTask, ExampleTasksTest, testing::ValuesIn(kPromises),
                         [](const testing::TestParamInfo<Promise>& info) { return std::string(info.param.task); });

}  // namespace
}  // namespace luthier
