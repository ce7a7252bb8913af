// Tenants, datasets, and versions that are published.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "server/core/reason.h"
#include "tests/unit/core/state_fixture.h"

namespace luthier {
namespace {

TEST_F(StateTest, PublishesOnceThoughTheReportArrivesTwice) {
  Connect("n1");
  ASSERT_TRUE(Submit("j").ok());
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 3, JobInput::kArtifactStored);
  Report("j", 1, 4, JobInput::kArtifactStored);
  EXPECT_EQ(versions_.size(), 1u);
}

TEST_F(StateTest, KeepsADatasetWhileAJobThatIsNotOverUsesIt) {
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d"}).ok());
  ASSERT_TRUE(Submit("j", {.datasets = "d"}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.DeleteResource(ResourceKind::kDataset, "d")));
  ASSERT_TRUE(state_.Cancel("j", now_).ok());
  EndBatch();
  EXPECT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  EXPECT_TRUE(absl::IsNotFound(state_.DeleteResource(ResourceKind::kDataset, "d")));
}

TEST_F(StateTest, PublishesUnderTheModelThatTheJobAskedForOneVersionAfterTheOther) {
  Connect("n1");
  for (const char* id : {"first", "second"}) {
    ASSERT_TRUE(Submit(id, {.model = "intents"}).ok());
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Report(id, 1, 3, JobInput::kArtifactStored);
  }
  EXPECT_EQ(job("first").model_version, "models/intents/versions/1");
  EXPECT_EQ(job("second").model_version, "models/intents/versions/2");
}

// A job that is charged an hour at its start and runs for six minutes has cost six minutes.
TEST_F(StateTest, ChargesATenantForWhatItUsed) {
  Connect("n1", 2);
  ASSERT_TRUE(Submit("j", {.devices = 2}).ok());
  EXPECT_NEAR(state_.tenants().at(0).usage, 2 * 3600, 1);
  state_.Heartbeat("n1", "", {}, false, now_ += absl::Seconds(20));
  now_ += absl::Seconds(20);
  Report("j", 1, 1, JobInput::kAttemptFailed);
  EXPECT_NEAR(state_.tenants().at(0).UsageAt(now_), 2 * 40, 5);
}

// Of everything that comes and goes: what it has stored afterwards.
TEST_F(StateTest, CountsWhatATenantStoresUntilItIsGone) {
  const auto stored = [&] { return state_.TenantOf("default").storage_bytes; };
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d", .tenant = "default", .bytes = 100}).ok());
  ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "large", .bytes = 7000}).ok());
  EndBatch();
  EXPECT_EQ(stored(), 100) << "base models are everybody's";
  Connect("n1");
  for (const char* id : {"publishes", "fails"}) {
    ASSERT_TRUE(Submit(id).ok());
    int64_t sequence = 0;
    for (const int64_t bytes : {20, 30}) {
      luthier::Report report{.attempt = {id, 1}, .sequence = ++sequence};
      report.checkpoint = {sequence, "files", bytes};
      ASSERT_TRUE(state_.Record(std::move(report), now_));
      EndBatch();
      EXPECT_EQ(stored(), (id == std::string("fails") ? 600 : 100) + bytes) << "the newest one alone is kept";
    }
    if (id == std::string("fails")) {
      Report(id, 1, 3, JobInput::kAttemptFailed);
      continue;
    }
    Report(id, 1, 3, JobInput::kTrainerStarted);
    Report(id, 1, 4, JobInput::kTrainerFinished);
    luthier::Report report{.attempt = {id, 1}, .sequence = 5, .input = JobInput::kArtifactStored};
    report.version_bytes = 500;
    ASSERT_TRUE(state_.Record(std::move(report), now_));
    EndBatch();
    EXPECT_EQ(stored(), 600) << "its checkpoint went";
    EXPECT_EQ(versions_.back().bytes, 500);
  }
  EXPECT_EQ(stored(), 600);
  ASSERT_TRUE(state_.DeleteVersion("publishes", 1, {}, /*bytes=*/500).ok());
  ASSERT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  EXPECT_EQ(stored(), 0);
  (void)state_.TakeWrites();
  state_.Rollback();
  EXPECT_EQ(stored(), 600);
  ASSERT_TRUE(state_.DeleteVersion("publishes", 1, {}, /*bytes=*/500).ok());
  ASSERT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  ASSERT_TRUE(state_.SetTenant({.id = "default", .weight = 2}, now_).ok());
  EndBatch();
  EXPECT_EQ(stored(), 0);
}

TEST_F(StateTest, ATenantThatStoresAsMuchAsItMayAddsNothingMore) {
  struct Row {
    int64_t limit;      // of 100 that it stores
    bool dataset_fits;  // of 50
    bool job_fits;
  };
  for (const Row& row : {Row{0, true, true}, Row{150, true, true}, Row{149, false, true}, Row{101, false, true},
                         Row{100, false, false}, Row{60, false, false}}) {
    SCOPED_TRACE(row.limit);
    state_ = State();
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {.id = "base"}).ok());
    ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "d", .tenant = "default", .bytes = 100}).ok());
    ASSERT_TRUE(state_.SetTenant({.id = "default", .max_storage_bytes = row.limit}, now_).ok());
    EXPECT_EQ(Submit("j").ok(), row.job_fits);
    const Resource more{.id = "more", .tenant = "default", .bytes = 50};
    const absl::Status dataset = state_.AddResource(ResourceKind::kDataset, more);
    EXPECT_EQ(dataset.ok(), row.dataset_fits);
    if (!row.dataset_fits) {
      EXPECT_TRUE(absl::IsResourceExhausted(dataset));
      EXPECT_EQ(QuotaSubjectOf(dataset), "tenants/default");
    }
    EXPECT_TRUE(absl::IsAlreadyExists(
        state_.CheckResource(ResourceKind::kDataset, {.id = "d", .tenant = "default", .bytes = 100})))
        << "also where nothing more fits";
    EXPECT_TRUE(state_.AddResource(ResourceKind::kDataset, {.id = "o", .tenant = "other", .bytes = 50}).ok());
    EndBatch();
  }
}

TEST_F(StateTest, AGuaranteeAboveTheLimitOfItsTenantIsRefused) {
  ASSERT_TRUE(state_.SetTenant({.id = "t", .max_devices = 2, .guaranteed_devices = 2}, now_).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(state_.SetTenant({.id = "t", .max_devices = 2, .guaranteed_devices = 3}, now_)));
  EXPECT_EQ(state_.TenantOf("t").guaranteed_devices, 2);
  EXPECT_TRUE(state_.SetTenant({.id = "t", .guaranteed_devices = 3}, now_).ok()) << "without a limit";
}

TEST_F(StateTest, AnAliasNeedsAVersion) {
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 1})));
  state_.LoadVersion("intents", 2, "default");
  EXPECT_TRUE(state_.SetAlias({"intents", "production", 2}).ok());
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 3})));
  EXPECT_EQ(state_.TakeWrites().aliases.size(), 1u);
}

}  // namespace
}  // namespace luthier
