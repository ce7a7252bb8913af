#include "server/metrics/server_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kStart = absl::FromUnixSeconds(1700000000);

class ServerMetricsTest : public testing::Test {
 protected:
  ServerMetricsTest() { EXPECT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok()); }
  void Submit(const std::string& id) {
    Job job{.id = id, .base_model = "base"};
    ASSERT_TRUE(state_.Create(job, {}, {.own = "spec"}, kStart).ok());
    state_.Tick(kStart);
  }
  void Connect(const std::string& node, absl::Time now) {
    state_.Register(Node{.id = node}, {}, now);
    state_.Tick(now);
  }
  void Observe(absl::Time now) {
    metrics_.ObserveBatch(state_, state_.TakeWrites(), now);
    state_.Commit();
  }
  std::string Text() { return prometheus::TextSerializer().Serialize(registry_.Collect()); }

  prometheus::Registry registry_;
  ServerMetrics metrics_{registry_, "test"};
  State state_;
};

TEST_F(ServerMetricsTest, CountsJobsByStateAndHowLongTheyWaited) {
  Submit("j");
  Observe(kStart + absl::Seconds(3));
  EXPECT_THAT(Text(), HasSubstr("luthier_jobs{state=\"queued\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_queue_depth 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_oldest_queued_job_age_seconds 3"));
  Connect("n", kStart + absl::Seconds(4));
  Observe(kStart + absl::Seconds(4));
  EXPECT_THAT(Text(), HasSubstr("luthier_jobs{state=\"starting\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_queue_depth 0"));
  EXPECT_THAT(Text(), HasSubstr("luthier_oldest_queued_job_age_seconds 0"));
  EXPECT_THAT(Text(), HasSubstr("luthier_job_queue_wait_seconds_sum 4"));
  EXPECT_THAT(Text(), HasSubstr("luthier_job_transitions_total{to=\"starting\"} 1"));
}

TEST_F(ServerMetricsTest, HasEveryStateOfNodesBeforeTheFirstBatch) {
  for (const char* state : {"ready", "drained", "outdated", "disconnected", "lost", "quarantined"})
    EXPECT_THAT(Text(), HasSubstr(absl::StrCat("luthier_agents{state=\"", state, "\"} 0")));
}

TEST_F(ServerMetricsTest, CountsNodesByState) {
  absl::Time now = kStart;
  Connect("bad", now);
  for (const char* id : {"a", "b", "c"}) {
    Submit(id);
    now += kIncident;
    Report lost{.attempt = {id, 1}, .sequence = 1, .input = JobInput::kAttemptLost};
    ASSERT_TRUE(state_.Record(lost, now));
    ASSERT_TRUE(state_.Cancel(id, now).ok());
    state_.Tick(now);
  }
  Connect("gone", now);
  state_.Disconnect("gone");
  now += kLease - kIncident;
  state_.Heartbeat("bad", "", {}, /*leaving=*/false, now);
  Connect("good", now);
  Connect("away", now);
  state_.Disconnect("away");
  Connect("leaves", now);
  state_.Heartbeat("leaves", "", {}, /*leaving=*/true, now);
  now += kIncident;
  state_.Tick(now);
  Connect("emptied", now);
  ASSERT_TRUE(state_.Drain("emptied", /*requeue=*/false, now).ok());
  Observe(now);
  EXPECT_THAT(Text(), HasSubstr("luthier_agents{state=\"ready\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_agents{state=\"drained\"} 2")) << "one of them leaves";
  EXPECT_THAT(Text(), HasSubstr("luthier_agents{state=\"disconnected\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_agents{state=\"lost\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_agents{state=\"quarantined\"} 1"));
}

TEST_F(ServerMetricsTest, AddsUpTheTokenRatesOfRunningAttemptsAndForgetsThemWhenTheyEnd) {
  for (const char* id : {"a", "b"}) {
    Submit(id);
    Connect(absl::StrCat("node-", id), kStart);
    Report started{.attempt = {id, 1}, .sequence = 1, .input = JobInput::kTrainerStarted};
    ASSERT_TRUE(state_.Record(started, kStart));
  }
  Observe(kStart);
  metrics_.ObserveProgress("a", 1000, absl::Milliseconds(20), 512);
  metrics_.ObserveProgress("b", 500, absl::Milliseconds(40), 256);
  metrics_.ObserveProgress("b", 700, absl::Milliseconds(40), 512);
  EXPECT_THAT(Text(), HasSubstr("luthier_train_tokens_per_second 1700"));
  EXPECT_THAT(Text(), HasSubstr("luthier_train_tokens_total 1024"));
  EXPECT_THAT(Text(), HasSubstr("luthier_train_step_seconds_count 3"));
  Report lost{.attempt = {"b", 1}, .sequence = 2, .input = JobInput::kAttemptLost};
  ASSERT_TRUE(state_.Record(lost, kStart));
  Observe(kStart);
  EXPECT_THAT(Text(), HasSubstr("luthier_train_tokens_per_second 1000"));
}

TEST_F(ServerMetricsTest, NamesCallsByMethodAndCodeAndSubmissionsByResult) {
  metrics_.ObserveCall("CreateFineTuningJob", absl::StatusCode::kOk, absl::Milliseconds(1));
  metrics_.ObserveCall("CreateFineTuningJob", absl::StatusCode::kInvalidArgument, absl::Milliseconds(1));
  EXPECT_THAT(
      Text(),
      HasSubstr("luthier_grpc_server_handled_total{code=\"INVALID_ARGUMENT\",method=\"CreateFineTuningJob\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_grpc_server_handling_seconds_count{method=\"CreateFineTuningJob\"} 2"));
  EXPECT_THAT(Text(), HasSubstr("luthier_job_submissions_total{result=\"accepted\"} 1"));
  EXPECT_THAT(Text(), HasSubstr("luthier_job_submissions_total{result=\"refused\"} 1"));
}

TEST_F(ServerMetricsTest, ShowsTheMemoryOfEveryGpu) {
  metrics_.ObserveGpus("n1", {{0, 100, 1000}, {1, 0, 1000}});
  EXPECT_THAT(Text(), HasSubstr("luthier_gpu_memory_used_bytes{gpu=\"0\",node=\"n1\"} 100"));
  EXPECT_THAT(Text(), HasSubstr("luthier_gpu_memory_total_bytes{gpu=\"1\",node=\"n1\"} 1000"));
  EXPECT_THAT(Text(), Not(HasSubstr("gpu=\"2\"")));
}

}  // namespace
}  // namespace luthier
