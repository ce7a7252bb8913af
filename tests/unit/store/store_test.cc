#include "server/store/store.h"

#include <SQLiteCpp/SQLiteCpp.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/loop/recorded_jobs.h"
#include "server/store/migrations.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1700000000);

class StoreTest : public testing::Test {
 protected:
  void Open() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(folder_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    absl::StatusOr<State> state = store_->LoadState(kNow);
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = *std::move(state);
  }
  void Write() {
    ASSERT_TRUE(store_->Commit(state_.TakeWrites()).ok());
    state_.Commit();
  }
  void AddBase() {
    ASSERT_TRUE(state_.AddResource(ResourceKind::kBaseModel, {"base", kNow, "payload"}).ok());
    Write();
  }
  absl::Status Create(const std::string& id, const JobRequest& request = {}, const SpecBytes& spec = {.own = "spec"}) {
    Job job{.id = id, .base_model = "base"};
    const absl::Status status = CreateJob(state_, *store_, job, request, spec, kNow);
    created_ = job.id;
    return status;
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  State state_;
  std::string created_;
};

TEST_F(StoreTest, BringsBackWhatWasCommitted) {
  Open();
  AddBase();
  state_.Register(Node{.id = "n1", .devices = 2, .gpus = true}, {}, kNow);
  const std::string spec("spec\0bytes", 10);
  ASSERT_TRUE(Create("j", {"r", "b"}, {.own = spec}).ok());
  state_.Tick(kNow);
  Write();
  Open();
  const Job* job = state_.Find("j");
  ASSERT_NE(job, nullptr);
  EXPECT_EQ(job->state, JobState::kStarting);
  EXPECT_EQ(job->attempt, 1);
  EXPECT_EQ(job->node, "n1");
  EXPECT_THAT(job->held, ElementsAre(0));
  EXPECT_THAT(job->crashed_on, ElementsAre());
  EXPECT_EQ(job->model, "j");
  EXPECT_EQ(job->create_time, kNow);
  EXPECT_EQ(job->end_time, absl::InfinitePast());
  EXPECT_EQ(store_->Spec(job->number)->own, spec);
  EXPECT_EQ(store_->GetJob("j")->spec.own, spec);
  EXPECT_EQ(store_->GetJob("j")->spec.plan, nullptr);
  EXPECT_EQ(store_->Events(job->number, 0, 100)->size(), static_cast<size_t>(job->last_event));
}

TEST_F(StoreTest, BringsBackAllNodesOfAJobAndWhatItHoldsOfEach) {
  Open();
  AddBase();
  for (const char* node : {"n1", "n2", "n3"})
    state_.Register(Node{.id = node, .devices = 2, .gpus = true, .gang_address = node}, {}, kNow);
  Job asked{.id = "j", .base_model = "base", .devices = 2, .nodes = 3};
  ASSERT_TRUE(CreateJob(state_, *store_, asked, {}, {.own = "spec"}, kNow).ok());
  Write();
  Open();
  EXPECT_EQ(state_.Find("j")->nodes, 3);
  for (const char* node : {"n1", "n2", "n3"})
    state_.Register(Node{.id = node, .devices = 2, .gpus = true, .gang_address = node}, {}, kNow);
  state_.Tick(kNow);
  Report ended{.attempt = {"j", 1}, .input = JobInput::kAttemptStopped};
  ended.node = "n3";
  ASSERT_TRUE(state_.Record(ended, kNow));
  Write();
  Open();
  const Job* job = state_.Find("j");
  ASSERT_NE(job, nullptr);
  EXPECT_EQ(job->node, "n1");
  EXPECT_THAT(job->held, ElementsAre(0, 1));
  EXPECT_THAT(job->others, ElementsAre(Place{"n2", {0, 1}}, Place{"n3", {}}));
  EXPECT_EQ(store_->GetJob("j")->job.others, job->others);
  EXPECT_THAT(state_.jobs().OnNode("n2"), ElementsAre("j"));
  EXPECT_THAT(state_.jobs().OnNode("n3"), ElementsAre()) << "its part has ended there";
  EXPECT_EQ(state_.jobs().LoadOf("default").running_devices, 4);
}

TEST_F(StoreTest, KeepsOnceWhatJobsOfOnePlanShare) {
  Open();
  AddBase();
  const auto plan_of = [](char c) { return std::make_shared<const std::string>(100000, c); };
  ASSERT_TRUE(Create("a", {}, {plan_of('p'), "own of a"}).ok());
  ASSERT_TRUE(Create("b", {}, {plan_of('p'), "own of b"}).ok());
  Write();
  ASSERT_TRUE(Create("c", {}, {plan_of('p'), "own of c"}).ok());
  ASSERT_TRUE(Create("d", {}, {plan_of('q'), "own of d"}).ok());
  Write();
  Open();
  for (const char* id : {"a", "b", "c", "d"}) {
    const absl::StatusOr<RecordedJob> job = store_->GetJob(id);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->spec.own, absl::StrCat("own of ", id));
    ASSERT_NE(job->spec.plan, nullptr);
    EXPECT_EQ(*job->spec.plan, *plan_of(*id == 'd' ? 'q' : 'p'));
    EXPECT_EQ(*store_->Spec(job->job.number)->plan, *job->spec.plan);
  }
  ASSERT_TRUE(store_->EmptyLog().ok());
  EXPECT_LT(std::filesystem::file_size(folder_.path() + "/luthier.db"), 4 * 100000);
}

TEST_F(StoreTest, KeepsOneCheckpointOfAJobUntilItIsOver) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("j").ok());
  state_.Register(Node{.id = "n1"}, {}, kNow);
  state_.Tick(kNow);
  const int64_t number = state_.Find("j")->number;
  for (const int64_t step : {10, 20}) {
    Report report{.attempt = {"j", 1}, .sequence = step};
    report.checkpoint = {step, absl::StrCat("files of ", step)};
    ASSERT_TRUE(state_.Record(std::move(report), kNow));
    Write();
  }
  Open();
  EXPECT_EQ(state_.Find("j")->stored_step, 20);
  EXPECT_EQ(*store_->Checkpoint(number), "files of 20");
  EXPECT_THAT(*store_->Checkpoints(), ElementsAre("files of 20"));
  ASSERT_TRUE(state_.Record({.attempt = {"j", 1}, .sequence = 21, .input = JobInput::kAttemptFailed}, kNow));
  Write();
  EXPECT_TRUE(absl::IsNotFound(store_->Checkpoint(number).status()));
  EXPECT_THAT(*store_->Checkpoints(), ElementsAre());
  EXPECT_EQ(store_->GetJob("j")->job.stored_step, 0);
}

TEST_F(StoreTest, BringsBackWhatATenantStoresAndWhatItIsMadeOf) {
  Open();
  AddBase();
  const auto stored = [&] { return state_.TenantOf("default").storage_bytes; };
  ASSERT_TRUE(state_
                  .AddResource(ResourceKind::kDataset,
                               {.id = "d", .create_time = kNow, .payload = "p", .tenant = "default", .bytes = 100})
                  .ok());
  state_.Register(Node{.id = "n1", .devices = 2, .gpus = true}, {}, kNow);
  for (const char* id : {"publishes", "trains"}) ASSERT_TRUE(Create(id).ok());
  state_.Tick(kNow);
  Report checkpoint{.attempt = {"trains", 1}, .sequence = 1};
  checkpoint.checkpoint = {10, "files", 30};
  ASSERT_TRUE(state_.Record(std::move(checkpoint), kNow));
  int64_t sequence = 0;
  for (const JobInput input : {JobInput::kTrainerStarted, JobInput::kTrainerFinished, JobInput::kArtifactStored}) {
    Report report{.attempt = {"publishes", 1}, .sequence = ++sequence, .input = input};
    report.version_bytes = 500;
    ASSERT_TRUE(state_.Record(std::move(report), kNow));
  }
  Write();
  Open();
  EXPECT_EQ(stored(), 630);
  EXPECT_EQ(state_.Find("trains")->stored_bytes, 30);
  EXPECT_EQ(store_->Versions("publishes")->at(0).bytes, 500);
  EXPECT_EQ(*store_->VersionBytes("publishes", 1), 500);
  EXPECT_EQ(*store_->VersionBytes("publishes", 2), 0);
  ASSERT_TRUE(state_.Record({.attempt = {"trains", 1}, .sequence = 2, .input = JobInput::kAttemptFailed}, kNow));
  ASSERT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  Write();
  Open();
  EXPECT_EQ(stored(), 500);
}

TEST_F(StoreTest, BringsBackOnWhichNodesATrainerDied) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("j").ok());
  absl::Time now = kNow;
  for (const char* node : {"n1", "n2"}) {
    state_.Register(Node{.id = node}, {}, now += absl::Minutes(1));
    state_.Tick(now);
    Report died{.attempt = {"j", state_.Find("j")->attempt}, .sequence = 1, .input = JobInput::kAttemptLost};
    died.crashed = true;
    ASSERT_TRUE(state_.Record(std::move(died), now));
    state_.Disconnect(node);
    Write();
  }
  Open();
  EXPECT_THAT(state_.Find("j")->crashed_on, ElementsAre("n1", "n2"));
  EXPECT_THAT(state_.Find("j")->lost_on, ElementsAre("n1", "n2"));
}

TEST_F(StoreTest, RemembersRequestsAndIdsOfJobsThatAreOver) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("j", {"r", "b"}).ok());
  ASSERT_TRUE(state_.Cancel("j", kNow).ok());
  Write();
  Open();
  EXPECT_EQ(state_.Find("j"), nullptr);
  EXPECT_EQ(state_.jobs().count(JobState::kCancelled), 1);
  EXPECT_TRUE(Create("other", {"r", "b"}).ok());
  EXPECT_EQ(created_, "j");
  EXPECT_TRUE(absl::IsAlreadyExists(Create("other", {"r", "another body"})));
  EXPECT_TRUE(absl::IsAlreadyExists(Create("j", {"another request", "b"})));
  EXPECT_EQ((*store_->ReplayedRequest("r"))->second.job.id, "j");
  EXPECT_FALSE(store_->ReplayedRequest("never seen")->has_value());
}

TEST_F(StoreTest, KeepsSweepsWithTheirJobsAndTheRequestsThatMadeThem) {
  Open();
  AddBase();
  const auto create = [&](const std::string& id, const JobRequest& request) {
    std::vector<Job> jobs = {{.id = id + "-1", .base_model = "base"}, {.id = id + "-2", .base_model = "base"}};
    for (Job& job : jobs) job.max_parallel = 7;
    Sweep sweep{.id = id, .tenant = "default", .payload = "payload of " + id};
    const absl::Status status =
        CreateSweep(state_, *store_, sweep, jobs, request, {{.own = "spec 1"}, {.own = "spec 2"}}, kNow);
    created_ = jobs.front().id;
    return status;
  };
  ASSERT_TRUE(create("a", {"r", "b"}).ok());
  ASSERT_TRUE(Create("between").ok());
  ASSERT_TRUE(create("b", {}).ok());
  ASSERT_TRUE(state_.Cancel("a-2", kNow).ok());
  Write();
  Open();
  const absl::StatusOr<Sweep> sweep = store_->GetSweep("a");
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  EXPECT_EQ(sweep->payload, "payload of a");
  EXPECT_EQ(sweep->create_time, kNow);
  ASSERT_EQ(store_->JobsOf(*sweep)->size(), 2u);
  EXPECT_EQ(store_->JobsOf(*sweep)->at(1).id, "a-2");
  EXPECT_EQ(store_->JobsOf(*sweep)->at(1).sweep, sweep->first_job);
  EXPECT_EQ(store_->JobsOf(*sweep)->at(1).max_parallel, 7);
  EXPECT_EQ(store_->CountJobsOf(*sweep)->at(JobState::kCancelled), 1);
  EXPECT_EQ(store_->GetJob("a-2")->spec.own, "spec 2");
  EXPECT_EQ(store_->ListSweeps("", 0, 10)->size(), 2u);
  EXPECT_EQ(store_->ListSweeps("", 0, 10)->at(0).id, "b") << "newest first";
  EXPECT_EQ(store_->ListSweeps("", store_->ListSweeps("", 0, 1)->at(0).first_job, 10)->at(0).id, "a");
  EXPECT_EQ(store_->ListSweeps("another", 0, 10)->size(), 0u);
  EXPECT_TRUE(absl::IsNotFound(store_->GetSweep("nobody").status()));
  ASSERT_TRUE(create("c", {"r", "b"}).ok());
  EXPECT_EQ(created_, "a-1");
  EXPECT_TRUE(absl::IsAlreadyExists(create("c", {"r", "another body"})));
  EXPECT_TRUE(absl::IsAlreadyExists(create("a", {})));
}

TEST_F(StoreTest, NumbersGoOnAfterARestart) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("a").ok());
  ASSERT_TRUE(state_.Cancel("a", kNow).ok());
  Write();
  Open();
  ASSERT_TRUE(Create("b").ok());
  Write();
  EXPECT_GT(store_->GetJob("b")->job.number, store_->GetJob("a")->job.number);
}

TEST_F(StoreTest, WritesNothingOfABatchThatFails) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("j").ok());
  Writes writes = state_.TakeWrites();
  writes.events.push_back(writes.events.front());  // the same sequence twice
  EXPECT_TRUE(absl::IsUnavailable(store_->Commit(writes)));
  state_.Rollback();
  EXPECT_TRUE(absl::IsNotFound(store_->GetJob("j").status()));
  EXPECT_TRUE(Create("j").ok());
  Write();
  EXPECT_TRUE(store_->GetJob("j").ok());
}

TEST_F(StoreTest, ListsJobsNewestFirstInPagesAndByState) {
  Open();
  AddBase();
  for (const char* id : {"a", "b", "c", "d"}) ASSERT_TRUE(Create(id).ok());
  ASSERT_TRUE(state_.Cancel("b", kNow).ok());
  ASSERT_TRUE(state_.Cancel("d", kNow).ok());
  Write();
  const auto ids = [&](const JobQuery& query) {
    std::string all;
    const absl::StatusOr<JobPage> page = store_->ListJobs(query);
    for (const RecordedJob& job : page->jobs) all += job.job.id;
    return all;
  };
  EXPECT_EQ(ids({}), "dcba");
  EXPECT_EQ(ids({.limit = 2}), "dc");
  EXPECT_EQ(ids({.cursor = store_->GetJob("c")->job.number, .limit = 2}), "ba");
  EXPECT_EQ(ids({.oldest_first = true}), "abcd");
  EXPECT_EQ(ids({.oldest_first = true, .cursor = store_->GetJob("b")->job.number, .limit = 1}), "c");
  EXPECT_EQ(store_->ListJobs({.limit = 3})->next, store_->GetJob("b")->job.number);
  EXPECT_EQ(store_->ListJobs({.limit = 4})->next, 0);
  EXPECT_EQ(ids({.base_model = "base"}), "dcba");
  EXPECT_EQ(ids({.base_model = "another"}), "");
  EXPECT_EQ(ids({.model = "c"}), "c");
  EXPECT_EQ(ids({.tenant = "default", .of_tenant = "another"}), "");
  EXPECT_EQ(ids({.created_from = kNow, .created_before = kNow + absl::Seconds(1)}), "dcba");
  EXPECT_EQ(ids({.created_before = kNow}), "");
  EXPECT_EQ(ids({.ended_from = kNow}), "db");
  EXPECT_EQ(ids({.states = {JobState::kCancelled}}), "db");
  EXPECT_EQ(ids({.states = {JobState::kCancelled, JobState::kQueued}, .limit = 3}), "dcb");
}

TEST_F(StoreTest, AListLooksAtSoManyJobsAndGoesOnWhereItStopped) {
  Open();
  AddBase();
  constexpr int64_t kJobs = Store::kListWindow + 10;
  for (int64_t i = 1; i <= kJobs; ++i) {
    Job job{.id = absl::StrCat("j", i), .base_model = "base"};
    job.model = i == 3 || i == kJobs - 3 ? "rare" : "";
    ASSERT_TRUE(state_.Create(job, {}, {}, kNow).ok());
  }
  Write();
  for (const bool oldest_first : {false, true}) {
    JobQuery query{.model = "rare", .oldest_first = oldest_first};
    std::vector<std::string> found;
    int pages = 0;
    do {
      const absl::StatusOr<JobPage> page = store_->ListJobs(query);
      for (const RecordedJob& job : page->jobs) found.push_back(job.job.id);
      query.cursor = page->next;
    } while (query.cursor != 0 && ++pages < 10);
    EXPECT_EQ(pages, 1);
    EXPECT_EQ(found.size(), 2u);
    EXPECT_EQ(found.front(), oldest_first ? "j3" : absl::StrCat("j", kJobs - 3));
  }
}

// Run from the repository's root.
TEST_F(StoreTest, TakesOverADatabaseOfVersion1WithEverythingInIt) {
  {
    std::ifstream stream("tests/unit/store/version1.sql");
    const std::string sql(std::istreambuf_iterator<char>(stream), {});
    ASSERT_FALSE(sql.empty());
    SQLite::Database old(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    old.exec(sql);
  }
  for (int start = 0; start < 2; ++start) {  // migrated, and as it was migrated
    Open();
    EXPECT_EQ(state_.jobs().size(), 2u);
    EXPECT_EQ(state_.jobs().count(JobState::kSucceeded), 1);
    const Job* waiting = state_.Find("waiting");
    ASSERT_NE(waiting, nullptr);
    EXPECT_EQ(waiting->state, JobState::kQueued);
    EXPECT_EQ(waiting->tenant, "default");
    EXPECT_EQ(waiting->service_class, ServiceClass::kStandard);
    EXPECT_EQ(waiting->nodes, 1);
    EXPECT_EQ(waiting->priority, 0);
    EXPECT_EQ(waiting->revision, 1);
    EXPECT_EQ(store_->GetJob("done")->spec.own, "spec 1");
    EXPECT_FALSE(store_->GetJob("done")->labels.has_value());
    EXPECT_EQ(store_->GetJob("done")->job.model_version, "models/intents/versions/1");
    EXPECT_EQ((*store_->ReplayedRequest("request-1"))->second.job.id, "done");
    EXPECT_EQ(store_->Events(1, 0, 10)->size(), 2u);
    ASSERT_EQ(store_->Versions("intents")->size(), 1u);
    EXPECT_EQ(store_->Versions("intents")->at(0).tenant, "default");
    EXPECT_EQ(store_->GetResource(ResourceKind::kDataset, "rows")->payload, "\x02");
  }
  // The attempt that ran on is adopted, costs its tenant what it took and no more, and what is new can be written.
  EXPECT_THAT(state_.Register(Node{.id = "n1", .gpus = true}, {"jobs/running/attempts/1"}, kNow), ElementsAre());
  Report failed;
  failed.attempt = {"running", 1};
  failed.sequence = 2;
  failed.input = JobInput::kAttemptFailed;
  ASSERT_TRUE(state_.Record(std::move(failed), kNow));
  EXPECT_LE(state_.TenantOf("default").UsageAt(kNow), 60);
  ASSERT_TRUE(state_.Update("waiting", {.priority = 3, .labels = "new"}, kNow).ok());
  ASSERT_TRUE(state_.SetAlias({"intents", "production", 1}).ok());
  ASSERT_TRUE(state_.Drain("n1", false, kNow).ok());
  Write();
  Open();
  EXPECT_EQ(state_.Find("waiting")->priority, 3);
  EXPECT_EQ(store_->GetJob("waiting")->labels, "new");
  EXPECT_EQ(store_->GetJob("running")->job.state, JobState::kFailed);
  EXPECT_EQ(store_->Aliases("intents")->size(), 1u);
  EXPECT_EQ(state_.tenants().size(), 1u);
}

// What was expected when they were submitted stays with the jobs of before; so does what was charged for them.
TEST_F(StoreTest, TakesOverJobsOfWhichTheRecordDidNotSayWhatTheyHaveToDo) {
  constexpr int kVersion = 17;
  {
    std::ifstream stream("tests/unit/store/version1.sql");
    const std::string sql(std::istreambuf_iterator<char>(stream), {});
    SQLite::Database old(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    old.exec(sql);
    for (int next = 1; next < kVersion; ++next) old.exec(kMigrations[next]);
    old.exec("UPDATE jobs SET estimate = 120000000 WHERE id = 'waiting'");
    old.exec(absl::StrCat("PRAGMA user_version = ", kVersion));
  }
  Open();
  state_.LoadSpeed({"base", Tuning::kLora, 1, 1, 1});
  EXPECT_EQ(KnownDuration(*state_.Find("waiting"), state_.speeds()), absl::Minutes(2));
  EXPECT_EQ(KnownDuration(*state_.Find("running"), state_.speeds()), std::nullopt);
  EXPECT_EQ(state_.Find("running")->charged, absl::Hours(1));
  EXPECT_EQ(store_->GetJob("done")->job.charged, absl::ZeroDuration());
}

TEST_F(StoreTest, BringsBackWhatJobsHaveToDoAndHowFastOthersHaveTrained) {
  Open();
  AddBase();
  state_.Register(Node{.id = "n1", .devices = 4, .gpus = true}, {}, kNow);
  const auto submit = [&](const std::string& id, int devices) {
    Job job{.id = id, .base_model = "base", .devices = devices};
    job.tuning = Tuning::kLora;
    job.work_tokens = 36000;
    ASSERT_TRUE(CreateJob(state_, *store_, job, {}, {.own = "spec"}, kNow).ok());
    state_.Tick(kNow);
  };
  const auto report = [&](int64_t sequence, double tokens_per_second) {
    ASSERT_TRUE(state_.Record({.attempt = {"runs", 1}, .sequence = sequence, .tokens_per_second = tokens_per_second},
                              kNow + absl::Minutes(sequence)));
    Write();
  };
  submit("runs", 4);
  submit("waits", 4);
  report(1, 10);
  report(2, 1000);
  Open();
  EXPECT_EQ(state_.Find("waits")->tuning, Tuning::kLora);
  EXPECT_EQ(state_.Find("waits")->work_tokens, 36000);
  EXPECT_NEAR(state_.speeds().Of(*state_.Find("waits"))->tokens_per_second, 10 + 0.1 * (1000 - 10), 1e-9);
  EXPECT_EQ(state_.Find("runs")->charged, kUnknownDuration) << "what was charged before any had reported its speed";
  for (const char* id : {"runs", "waits"}) ASSERT_TRUE(state_.Cancel(id, kNow).ok());
  ASSERT_TRUE(state_.Record({.attempt = {"runs", 1}, .sequence = 3, .input = JobInput::kAttemptStopped}, kNow));
  Write();
  ASSERT_TRUE(state_.DeleteResource(ResourceKind::kBaseModel, "base").ok());
  Write();
  AddBase();
  Open();
  EXPECT_FALSE(state_.speeds().Of(store_->GetJob("waits")->job).has_value()) << "it may be another one of that name";
}

TEST_F(StoreTest, CountsOnceWhatAnOlderVersionStored) {
  {
    std::ifstream stream("tests/unit/store/version1.sql");
    const std::string sql(std::istreambuf_iterator<char>(stream), {});
    SQLite::Database(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE).exec(sql);
  }
  const Store::OlderSizes sizes = {
      .of_dataset = [](const Resource& dataset) { return Stored{"support", dataset.payload == "\x02" ? 300 : 1}; },
      .of_version = [](const ModelVersion& version) { return version.payload == "\x04" ? 40 : 1; }};
  Open();
  for (int start = 0; start < 2; ++start) {
    ASSERT_TRUE(store_->CountOlder(sizes).ok());
    Open();
    EXPECT_EQ(state_.TenantOf("support").storage_bytes, 300);
    EXPECT_EQ(state_.TenantOf("default").storage_bytes, 40);
    EXPECT_EQ(state_.TenantOf("default").weight, 1);
    EXPECT_EQ(*store_->VersionBytes("intents", 1), 40);
  }
  ASSERT_TRUE(state_.DeleteVersion("intents", 1, {}, 40).ok());
  Write();
  Open();
  EXPECT_EQ(state_.TenantOf("default").storage_bytes, 0);
}

TEST_F(StoreTest, BringsBackWhatUsersChangedOfJobsTenantsAndNodes) {
  Open();
  AddBase();
  const Tenant research{.id = "research",
                        .weight = 2.5,
                        .max_devices = 3,
                        .max_queued_jobs = 9,
                        .guaranteed_devices = 2,
                        .max_storage_bytes = 5'000'000'000'000};
  ASSERT_TRUE(state_.SetTenant(research, kNow).ok());
  Job job{.id = "j", .base_model = "base"};
  job.tenant = "research";
  job.service_class = ServiceClass::kBackground;
  job.priority = -4;
  job.estimate = absl::Minutes(7);
  job.state = JobState::kHeld;
  ASSERT_TRUE(CreateJob(state_, *store_, job, {}, {.own = "spec"}, kNow).ok());
  state_.Register(Node{.id = "n1"}, {}, kNow);
  ASSERT_TRUE(state_.Drain("n1", false, kNow).ok());
  Write();
  Open();
  const Job* read = state_.Find("j");
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(read->state, JobState::kHeld);
  EXPECT_EQ(read->tenant, "research");
  EXPECT_EQ(read->service_class, ServiceClass::kBackground);
  EXPECT_EQ(read->priority, -4);
  EXPECT_EQ(read->estimate, absl::Minutes(7));
  const Tenant tenant = state_.TenantOf("research");
  EXPECT_EQ(tenant.weight, 2.5);
  EXPECT_EQ(tenant.max_devices, 3);
  EXPECT_EQ(tenant.max_queued_jobs, 9);
  EXPECT_EQ(tenant.guaranteed_devices, 2);
  EXPECT_EQ(tenant.max_storage_bytes, 5'000'000'000'000);
  ASSERT_TRUE(state_.StartHeld("j", kNow).ok());
  state_.Register(Node{.id = "n1"}, {}, kNow);
  state_.Tick(kNow);
  EXPECT_EQ(state_.Find("j")->state, JobState::kQueued) << "its only node is drained";
  ASSERT_TRUE(state_.Undrain("n1").ok());
  state_.Tick(kNow);
  EXPECT_EQ(state_.Find("j")->state, JobState::kStarting);
}

TEST_F(StoreTest, AQuarantineOutlivesTheServer) {
  Open();
  AddBase();
  absl::Time now = kNow - kQuarantine / 2;  // the server starts again, at kNow, in the middle of it
  state_.Register(Node{.id = "n1"}, {}, now);
  for (const char* id : {"a", "b", "c"}) {
    ASSERT_TRUE(Create(id).ok());
    state_.Tick(now);
    ASSERT_TRUE(state_.Record({.attempt = {id, 1}, .sequence = 1, .input = JobInput::kAttemptLost}, now));
    ASSERT_TRUE(state_.Cancel(id, now).ok());
    Write();
    now += kIncident;
  }
  const absl::Time end = state_.nodes().at("n1").quarantine_end;
  ASSERT_GT(end, kNow);
  ASSERT_TRUE(Create("d").ok());
  Write();
  Open();
  EXPECT_EQ(state_.nodes().at("n1").quarantine_end, end);
  EXPECT_EQ(state_.nodes().at("n1").losses.size(), 3u);
  state_.Register(Node{.id = "n1"}, {}, kNow);
  state_.Tick(kNow);
  EXPECT_EQ(state_.WhyItWaits(*state_.Find("d"), kNow).code, Wait::kQuarantined);
  state_.Register(Node{.id = "n1"}, {}, end);
  state_.Tick(end);
  EXPECT_EQ(state_.Find("d")->state, JobState::kStarting);
  EXPECT_EQ(state_.TakeWrites().quarantines.at(0).node, "n1") << "it is over";
}

TEST_F(StoreTest, AQuarantineThatAnOperatorEndedDoesNotComeBackAndNoClockMakesOneLonger) {
  Open();
  Writes writes;
  writes.quarantines = {{.node = "n1", .jobs = {"a", "b", "c"}, .end = kNow + kQuarantine},
                        {.node = "n2", .jobs = {"a"}, .end = kNow + absl::Hours(5)},
                        {.node = "n3", .jobs = {"a"}, .end = kNow}};
  ASSERT_TRUE(store_->Commit(writes).ok());
  Open();
  EXPECT_EQ(state_.nodes().at("n2").quarantine_end, kNow + kQuarantine);
  EXPECT_EQ(state_.nodes().count("n3"), 0u);
  ASSERT_TRUE(state_.Undrain("n1").ok());
  Write();
  Open();
  EXPECT_EQ(state_.nodes().count("n1"), 0u);
  EXPECT_EQ(state_.nodes().count("n2"), 1u);
}

TEST_F(StoreTest, ACopyIsOfOneMomentAndOpensAsAnyOther) {
  Open();
  AddBase();
  ASSERT_TRUE(Create("before", {"r", "b"}).ok());
  Write();
  state_.BeginEpoch(4, kNow);
  Write();
  const TempFolder other;
  ASSERT_TRUE(store_->CopyTo(other.path() + "/luthier.db").ok());
  ASSERT_TRUE(Create("after").ok());
  Write();
  auto copy = Store::Open(other.path());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE((*copy)->Check().ok());
  EXPECT_TRUE((*copy)->GetJob("before").ok());
  EXPECT_TRUE(absl::IsNotFound((*copy)->GetJob("after").status()));
  EXPECT_EQ((*copy)->LoadState(kNow)->epoch(), 4);
}

// A reader that stays, such as somebody's sqlite3 with an open transaction.
TEST_F(StoreTest, ALogThatAReaderHeldIsEmptiedOnceTheReaderIsGone) {
  Open();
  AddBase();
  const auto write_some = [&](const std::string& name) {
    for (int i = 0; i < 200; ++i)
      ASSERT_TRUE(Create(absl::StrCat(name, i), {}, SpecBytes{.own = std::string(2000, 's')}).ok());
    Write();
  };
  {
    SQLite::Database other(folder_.path() + "/luthier.db", SQLite::OPEN_READONLY);
    const SQLite::Transaction reading(other);
    EXPECT_EQ(other.execAndGet("SELECT count(*) FROM jobs").getInt(), 0);
    write_some("a");
    const int64_t held = store_->LogBytes();
    EXPECT_GT(held, 200 * 2000);
    const absl::Time start = absl::Now();
    EXPECT_TRUE(store_->EmptyLog().ok());
    EXPECT_LT(absl::Now() - start, absl::Seconds(1)) << "commits wait behind it";
    EXPECT_EQ(store_->LogBytes(), held);
    write_some("b");
    EXPECT_GT(store_->LogBytes(), held);
    EXPECT_EQ(other.execAndGet("SELECT count(*) FROM jobs").getInt(), 0) << "it reads what it began with";
  }
  EXPECT_TRUE(store_->EmptyLog().ok());
  EXPECT_EQ(store_->LogBytes(), 0);
  Open();
  EXPECT_EQ(state_.jobs().waiting(), 400);
}

TEST_F(StoreTest, NamesTheFileWhosePagesAreDamaged) {
  Open();
  AddBase();
  for (int i = 0; i < 200; ++i)
    ASSERT_TRUE(Create(absl::StrCat("job-", i), {}, SpecBytes{.own = std::string(2000, 's')}).ok());
  Write();
  store_.reset();
  {
    std::fstream file(folder_.path() + "/luthier.db", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(folder_.path() + "/luthier.db")) / 2);
    file << std::string(4096, 'x');
  }
  const auto store = Store::Open(folder_.path());
  const absl::Status found = store.ok() ? (*store)->Check() : store.status();
  EXPECT_TRUE(absl::IsDataLoss(found)) << found;
  EXPECT_THAT(std::string(found.message()), HasSubstr(folder_.path() + "/luthier.db"));
}

// A page that a start does not read. What is damaged is not migrated on top of it.
TEST_F(StoreTest, ADamagedPageIsFoundBeforeMigrationsUnlessThatWouldTakeLong) {
  Open();
  AddBase();
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(Create(absl::StrCat("job-", i)).ok());
  Write();
  store_.reset();
  EXPECT_TRUE(Store::Open(folder_.path(), Store::kCheckedAtStart).ok());
  const std::string path = folder_.path() + "/luthier.db";
  const int page =
      SQLite::Database(path).execAndGet("SELECT rootpage FROM sqlite_schema WHERE name = 'events'").getInt();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp((page - 1) * 4096);
    file << std::string(4096, 'x');
  }
  EXPECT_TRUE(Store::Open(folder_.path(), /*checked_bytes=*/4096).ok()) << "the database is larger";
  SQLite::Database(path, SQLite::OPEN_READWRITE).exec("PRAGMA user_version = 1");
  const absl::Status found = Store::Open(folder_.path(), Store::kCheckedAtStart).status();
  EXPECT_TRUE(absl::IsDataLoss(found)) << found;
  EXPECT_EQ(SQLite::Database(path).execAndGet("PRAGMA user_version").getInt(), 1);
  EXPECT_THAT(std::string(found.message()),
              AllOf(HasSubstr(path + " is damaged: "), HasSubstr("luthierd restore --from")));
}

TEST_F(StoreTest, RemembersDeadlinesAndWhichVersionsWereDeleted) {
  Open();
  AddBase();
  state_.Register(Node{.id = "n1", .labels = {{"gpu", "h100"}}}, {}, kNow);
  for (const char* id : {"first", "second"}) {
    Job job{.id = id,
            .base_model = "base",
            .model = "intents",
            .cpu_memory_bytes = 5,
            .gpu_memory_bytes = 7,
            .node_selector = "gpu=h100",
            .deadline = kNow + absl::Hours(1)};
    ASSERT_TRUE(CreateJob(state_, *store_, job, {}, {.own = "spec"}, kNow).ok());
    state_.Tick(kNow);
    ASSERT_EQ(state_.Find(id)->state, JobState::kStarting);
    for (const JobInput input : {JobInput::kTrainerStarted, JobInput::kTrainerFinished, JobInput::kArtifactStored}) {
      Report report;
      report.attempt = {id, 1};
      report.sequence = static_cast<int64_t>(input) + 1;
      report.input = input;
      state_.Record(std::move(report), kNow);
    }
    Write();
  }
  ASSERT_TRUE(Create("waits").ok());
  JobUpdate update;
  update.deadline = kNow + absl::Hours(2);
  ASSERT_TRUE(state_.Update("waits", update, kNow).ok());
  ASSERT_TRUE(state_.DeleteVersion("intents", 2, {}, /*bytes=*/0).ok());
  Write();
  Open();
  const Job first = store_->GetJob("first")->job;
  EXPECT_EQ(first.deadline, kNow + absl::Hours(1));
  EXPECT_EQ(first.cpu_memory_bytes, 5);
  EXPECT_EQ(first.gpu_memory_bytes, 7);
  EXPECT_EQ(first.node_selector, "gpu=h100");
  EXPECT_EQ(state_.Find("waits")->deadline, kNow + absl::Hours(2));
  const auto versions = store_->Versions("intents");
  ASSERT_EQ(versions->size(), 1u);
  EXPECT_EQ(versions->at(0).version, 1);
  EXPECT_TRUE(absl::IsNotFound(state_.DeleteVersion("intents", 2, {}, /*bytes=*/0)));
  ASSERT_TRUE(state_.SetAlias({"intents", "production", 1}).ok());
  EXPECT_TRUE(absl::IsNotFound(state_.SetAlias({"intents", "production", 3}))) << "its number is still known";
}

// While its job waits, and once it is published.
TEST_F(StoreTest, TheNameOfAModelIsOneTenantsAfterARestart) {
  Open();
  AddBase();
  Job job{.id = "j", .base_model = "base", .model = "intents", .tenant = "owner"};
  ASSERT_TRUE(CreateJob(state_, *store_, job, {}, {.own = "spec"}, kNow).ok());
  Write();
  for (const bool published : {false, true}) {
    Open();
    Job other{.id = "k", .base_model = "base", .model = "intents", .tenant = "other"};
    EXPECT_TRUE(absl::IsAlreadyExists(CheckJobs(state_, *store_, {other})));
    EXPECT_TRUE(absl::IsAlreadyExists(CreateJob(state_, *store_, other, {}, {.own = "spec"}, kNow)));
    if (published) continue;
    state_.Register(Node{.id = "n1"}, {}, kNow);
    state_.Tick(kNow);
    for (const JobInput input : {JobInput::kTrainerStarted, JobInput::kTrainerFinished, JobInput::kArtifactStored}) {
      ASSERT_TRUE(
          state_.Record({.attempt = {"j", 1}, .sequence = static_cast<int64_t>(input) + 1, .input = input}, kNow));
    }
    Write();
    EXPECT_EQ(state_.Find("j"), nullptr);
    EXPECT_EQ(store_->Versions("intents")->at(0).tenant, "owner");
  }
}

TEST_F(StoreTest, RefusesAFileOfAnEarlyDevelopmentVersion) {
  {
    SQLite::Database early(folder_.path() + "/luthier.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    early.exec("CREATE TABLE jobs (id TEXT PRIMARY KEY) STRICT; PRAGMA user_version = 1");
  }
  const absl::Status refused = Store::Open(folder_.path()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr("another --data-dir"));
}

TEST_F(StoreTest, RefusesAFileOfANewerVersionAndLeavesIt) {
  Open();
  store_.reset();
  const std::string path = folder_.path() + "/luthier.db";
  SQLite::Database(path, SQLite::OPEN_READWRITE).exec("PRAGMA user_version = 1000");
  const absl::Status refused = Store::Open(folder_.path()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("newer luthierd"));
  EXPECT_EQ(SQLite::Database(path).execAndGet("PRAGMA user_version").getInt(), 1000);
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
  writes.events.push_back({.job = 7, .sequence = 1, .time = kNow, .type = "log"});
  EXPECT_FALSE(store_->Commit(writes).ok());
}

TEST_F(StoreTest, KeepsResourcesUntilTheyAreDeleted) {
  Open();
  ASSERT_TRUE(state_.AddResource(ResourceKind::kDataset, {"d", kNow, "payload"}).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(state_.AddResource(ResourceKind::kDataset, {"d", kNow, "other"})));
  Write();
  Open();
  EXPECT_EQ(store_->GetResource(ResourceKind::kDataset, "d")->payload, "payload");
  EXPECT_TRUE(absl::IsAlreadyExists(state_.AddResource(ResourceKind::kDataset, {"d", kNow, "other"})));
  EXPECT_TRUE(state_.DeleteResource(ResourceKind::kDataset, "d").ok());
  Write();
  EXPECT_TRUE(absl::IsNotFound(store_->GetResource(ResourceKind::kDataset, "d").status()));
  EXPECT_TRUE(state_.AddResource(ResourceKind::kDataset, {"d", kNow, "other"}).ok());
}

}  // namespace
}  // namespace luthier
