#include "server/store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1700000000);

class StoreTest : public testing::Test {
 protected:
  void Open() {
    absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(folder_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  State Running() {
    State state;
    state.Register(Node{.id = "n1"}, {}, kNow);
    Job job{.id = "j", .uid = "u", .request_id = "r", .body_sha256 = "b", .base_model = "base"};
    EXPECT_TRUE(state.Create(job, std::string("spec\0bytes", 10), kNow).ok());
    return state;
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, BringsBackWhatWasCommitted) {
  Open();
  State state = Running();
  ASSERT_TRUE(store_->Commit(state.TakeWrites(), state).ok());
  store_.reset();
  Open();
  absl::StatusOr<State> again = store_->LoadState(kNow);
  ASSERT_TRUE(again.ok()) << again.status();
  const Job* job = again->Find("j");
  ASSERT_NE(job, nullptr);
  EXPECT_EQ(job->state, JobState::kStarting);
  EXPECT_EQ(job->attempt, 1);
  EXPECT_EQ(job->node, "n1");
  EXPECT_EQ(job->create_time, kNow);
  EXPECT_EQ(job->end_time, absl::InfinitePast());
  EXPECT_EQ(*store_->Spec("j"), std::string("spec\0bytes", 10));
  EXPECT_EQ(store_->Events("j", 0, 100)->size(), static_cast<size_t>(job->last_event));
  Job repeated{.id = "other", .request_id = "r", .body_sha256 = "b"};
  ASSERT_TRUE(again->Create(repeated, "", kNow).ok());
  EXPECT_EQ(repeated.id, "j");
}

TEST_F(StoreTest, WritesNothingOfABatchThatFails) {
  Open();
  State state = Running();
  Writes writes = state.TakeWrites();
  writes.events.push_back(writes.events.front());  // the same sequence twice
  EXPECT_TRUE(absl::IsUnavailable(store_->Commit(writes, state)));
  EXPECT_TRUE(store_->LoadState(kNow)->jobs().empty());
}

TEST_F(StoreTest, RefusesASecondServerOnTheSameFolder) {
  Open();
  const absl::Status second = Store::Open(folder_.path()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(second));
  EXPECT_THAT(std::string(second.message()), HasSubstr("another luthierd"));
}

TEST_F(StoreTest, RefusesAnEventOfAJobThatDoesNotExist) {
  Open();
  Writes writes;
  writes.events.push_back({.job = "nobody", .sequence = 1, .time = kNow, .type = "log"});
  EXPECT_FALSE(store_->Commit(writes, State()).ok());
}

TEST_F(StoreTest, KeepsResourcesUntilTheyAreDeleted) {
  Open();
  ASSERT_TRUE(store_->Insert(ResourceKind::kDataset, {"d", kNow, "payload"}).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(store_->Insert(ResourceKind::kDataset, {"d", kNow, "other"})));
  EXPECT_EQ(store_->Get(ResourceKind::kDataset, "d")->payload, "payload");
  EXPECT_TRUE(store_->Delete(ResourceKind::kDataset, "d").ok());
  EXPECT_TRUE(absl::IsNotFound(store_->Get(ResourceKind::kDataset, "d").status()));
}

}  // namespace
}  // namespace luthier
