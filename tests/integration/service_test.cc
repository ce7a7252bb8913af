// The whole service with real programs: luthierd, luthier-worker, luthier-trainer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/service.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using State = v1::FineTuningJob;

class ServiceTest : public testing::Test {
 protected:
  // Short jobs, and jobs of some thousand steps that are killed or cancelled long before their end.
  static nlohmann::json Steps(int steps, int checkpoint_every = 10) {
    return {{"training", {{"max_steps", steps}, {"batch_tokens", 200}, {"epochs", 10000}}},
            {"checkpoint", {{"every", checkpoint_every}}},
            {"resources", {{"threads", 1}}}};  // two trainers' threads that wait for each other starve on two cores
  }
  bool WaitForState(const std::string& job, State::State state, std::chrono::seconds deadline = std::chrono::seconds(120)) {
    return WaitFor([&] { return service_.Job(job).state() == state; }, deadline);
  }
  bool WaitForEvent(const std::string& job, const std::string& type) {
    return WaitFor([&] {
      for (const v1::JobEvent& event : service_.Events(job)) {
        if (event.type() == type) return true;
      }
      return false;
    });
  }
  // Of the trainers of this test.
  std::vector<pid_t> Trainers() const { return ProcessesWith(folder_.path() + "/agent/jobs/"); }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

TEST_F(ServiceTest, ALocalWorkerRunsAJobToItsPublication) {
  service_.StartServer({"--with-local-worker"});
  service_.AddInputs();
  service_.Submit("j", Steps(20));
  ASSERT_TRUE(WaitForState("j", State::SUCCEEDED)) << service_.Job("j").DebugString();
  const v1::FineTuningJob job = service_.Job("j");
  EXPECT_EQ(job.model_version(), "models/j/versions/1");
  EXPECT_EQ(job.stop_reason(), "MAX_STEPS");
  EXPECT_EQ(job.progress().step(), 20);
  EXPECT_GT(job.summary().artifact_bytes(), 0);
}

}  // namespace
}  // namespace luthier
