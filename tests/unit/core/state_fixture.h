// A State, driven as the loop drives it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/state.h"

namespace luthier {

inline const absl::Time kStart = absl::FromUnixSeconds(1700000000);

// Each step is a batch of its own, as the loop runs them, unless a test says otherwise.
class StateTest : public testing::Test {
 protected:
  StateTest() {
    EXPECT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
    EndBatch();
  }
  absl::Status Submit(const std::string& id, Job job = {}) {
    job.id = id;
    job.base_model = "base";
    const absl::Status status = state_.Create(job, {}, {.own = "spec"}, now_);
    EndBatch();
    return status;
  }
  void Connect(const std::string& id, int gpus = 0, const std::vector<std::string>& attempts = {},
               const Processes& processes = {}) {
    Node node{.id = id, .devices = std::max(1, gpus), .gpus = gpus > 0};
    node.processes = processes;
    stale_ = state_.Register(std::move(node), attempts, now_);
    EndBatch();
  }
  void Heartbeat(const std::string& node, const Processes& processes) {
    state_.Heartbeat(node, "", processes, false, now_);
    EndBatch();
  }
  bool Report(const std::string& job, int attempt, int64_t sequence, JobInput input, bool crashed = false) {
    luthier::Report report;
    report.crashed = crashed;
    report.attempt = {job, attempt};
    report.sequence = sequence;
    report.input = input;
    const bool current = state_.Record(std::move(report), now_);
    EndBatch();
    return current;
  }
  // One of a job that trains.
  void ReportProgress(const std::string& job, int attempt, int64_t sequence, double tokens_per_second,
                      absl::Duration time_left) {
    luthier::Report report{.attempt = {job, attempt}, .sequence = sequence};
    report.time_left = time_left;
    report.tokens_per_second = tokens_per_second;
    EXPECT_TRUE(state_.Record(std::move(report), now_));
    EndBatch();
  }
  void Wait(absl::Duration duration) {
    now_ += duration;
    EndBatch();
  }
  // As Wait, while the nodes are heard of.
  void Pass(absl::Duration duration, const std::vector<std::string>& nodes) {
    for (const absl::Time end = now_ + duration; now_ < end;) {
      now_ = std::min(end, now_ + kHeartbeatInterval);
      for (const std::string& node : nodes) state_.Heartbeat(node, "", {}, false, now_);
      EndBatch();
    }
  }
  // A further job starts on `node` and comes to such an end; then it is cancelled if it would be tried again.
  void RunOne(const std::string& id, const std::string& node, JobInput end) {
    ASSERT_TRUE(Submit(id).ok());
    ASSERT_EQ(job(id).node, node);
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, end);
    if (end == JobInput::kTrainerFinished) Report(id, 1, 3, JobInput::kArtifactStored);
    if (end == JobInput::kAttemptLost) {
      ASSERT_TRUE(state_.Cancel(id, now_).ok());
    }
    EndBatch();
  }
  bool IsQuarantined(const std::string& node) const { return state_.nodes().at(node).IsQuarantined(); }
  void EndBatch() {
    state_.Tick(now_);
    Writes writes = state_.TakeWrites();
    for (const Job& job : writes.jobs) record_[job.id] = job;
    for (Event& event : writes.events) events_.push_back(std::move(event));
    for (ModelVersion& version : writes.versions) versions_.push_back(std::move(version));
    for (const auto& change : writes.checkpoints) checkpoints_.push_back(change);
    for (const Speed& speed : writes.speeds) recorded_speeds_.push_back(speed);
    effects_ = state_.TakeEffects();
    state_.Commit();
  }
  // As it was last written, which is all that is left of a job that is over.
  const Job& job(const std::string& id) { return record_.at(id); }

  State state_;
  absl::Time now_ = kStart;
  std::map<std::string, Job> record_;
  std::vector<Event> events_;
  std::vector<ModelVersion> versions_;
  std::vector<Writes::CheckpointChange> checkpoints_;
  std::vector<Speed> recorded_speeds_;
  std::vector<Effect> effects_;  // of the last batch
  std::vector<std::string> stale_;
};

}  // namespace luthier
