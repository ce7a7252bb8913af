// The loop's own promises; what it runs is the core's, and tested there.
#include "server/loop/state_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/core/reason.h"
#include "server/store/store.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

absl::Status Nothing(State&, absl::Time) { return absl::OkStatus(); }

class StateLoopTest : public testing::Test {
 protected:
  void Start(StateLoop::Options options = {}) {
    loop_ = std::make_unique<StateLoop>(*store_, State(), std::move(options));
  }
  // Keeps the loop in one command, so that what is posted meanwhile waits in its queue.
  void Hold() {
    loop_->Post(
        [this](State&, absl::Time) {
          held_.Notify();
          release_.WaitForNotification();
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
    held_.WaitForNotification();
  }
  void Post(std::vector<absl::Status>& answers, size_t at) {
    loop_->Post(Nothing, [&answers, at](const absl::Status& status) { answers[at] = status; });
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_ = *Store::Open(folder_.path());
  absl::Notification held_, release_;
  std::unique_ptr<StateLoop> loop_;
};

TEST_F(StateLoopTest, AFullQueueRefusesAtOnceAndFinishesWhatItTook) {
  Start({.queue_capacity = 2});
  Hold();
  std::vector<absl::Status> answers(3, absl::UnknownError("none yet"));
  for (size_t i = 0; i < answers.size(); ++i) Post(answers, i);
  EXPECT_EQ(answers[2].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(answers[2]), "OVERLOADED");
  EXPECT_EQ(answers[0].message(), "none yet");
  release_.Notify();
  loop_.reset();
  EXPECT_TRUE(answers[0].ok());
  EXPECT_TRUE(answers[1].ok());
}

TEST_F(StateLoopTest, AfterStopWhatWasTakenIsFinishedAndTheRestRefused) {
  Start();
  Hold();
  std::vector<absl::Status> answers(2, absl::UnknownError("none yet"));
  Post(answers, 0);
  loop_->Stop();
  Post(answers, 1);
  EXPECT_EQ(ReasonOf(answers[1]), "SHUTTING_DOWN");
  release_.Notify();
  loop_.reset();
  EXPECT_TRUE(answers[0].ok());
}

TEST_F(StateLoopTest, WhatNobodyWaitsForRunsBeforeTheNextCommand) {
  Start({.tick = absl::Hours(1)});
  std::vector<int> order;
  loop_->PostIdly([&](State&, absl::Time) {
    order.push_back(1);
    return absl::OkStatus();
  });
  EXPECT_TRUE(loop_
                  ->Run([&](State&, absl::Time) {
                    order.push_back(2);
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

// A look at the log's file makes the next commit slower (kWeighLogEvery).
TEST_F(StateLoopTest, TheLogIsNotWeighedAfterEveryBatch) {
  std::atomic<int> weighed = 0;
  Start({.on_log_bytes = [&](int64_t) { ++weighed; }});
  const absl::Time start = absl::Now();
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(loop_->Run(Nothing).ok());
  const absl::Duration took = absl::Now() - start;
  EXPECT_GE(weighed, 1);
  EXPECT_LE(weighed, 1 + took / absl::Seconds(1));
}

}  // namespace
}  // namespace luthier
