// Sweeps through the API.
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/wire/json_wire.h"
#include "server/rpc/stored_files.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using Sweeps = v1::SweepService::Stub;

class SweepsTest : public ServicesTest {
 protected:
  void SetUp() override { AddInputs(); }

  static v1::CreateSweepRequest RequestOf(const std::string& id) {
    v1::CreateSweepRequest request;
    request.set_sweep_id(id);
    *request.mutable_sweep()->mutable_job() = RequestFor("").job();
    return request;
  }
  static void AddField(v1::CreateSweepRequest& request, const std::string& field,
                       const std::vector<std::string>& values) {
    v1::SweepField& added = *request.mutable_sweep()->add_grid();
    added.set_field(field);
    for (const std::string& value : values) added.add_values(value);
  }
  grpc::Status Create(const v1::CreateSweepRequest& request) {
    return Call(*sweeps_, &Sweeps::CreateSweep, request, sweep_);
  }
  void Get(const std::string& id) {
    v1::GetSweepRequest request;
    request.set_name("sweeps/" + id);
    ASSERT_TRUE(Call(*sweeps_, &Sweeps::GetSweep, request, sweep_).ok());
  }
  // The first attempt of a job comes to this validation loss and, unless it fails, is published.
  void Run(const std::string& job, double loss, bool succeeds = true) {
    Do([&](State& state, absl::Time now) {
      v1::FineTuningJob report;
      v1::Evaluation& evaluation = *report.add_evaluations();
      evaluation.set_split("validation");
      evaluation.set_model("tuned");
      evaluation.set_loss(loss);
      luthier::Report started{.attempt = {job, 1}, .sequence = 1, .input = JobInput::kTrainerStarted};
      started.job_report = report.SerializeAsString();
      EXPECT_TRUE(state.Record(started, now));
    });
    if (!succeeds) {
      Report(job, 1, 2, JobInput::kAttemptFailed);
      return;
    }
    Report(job, 1, 2, JobInput::kTrainerFinished);
    Report(job, 1, 3, JobInput::kArtifactStored);
  }

  // An event of the trainer of a job's first attempt.
  void Tell(const std::string& job, int64_t sequence, const nlohmann::json& event) {
    v1::AttemptReport message;
    message.set_attempt(absl::StrCat("jobs/", job, "/attempts/1"));
    message.set_sequence(sequence);
    *message.mutable_trainer_event() = *JsonToStruct(event);
    const absl::StatusOr<AgentReport> read = ReadReport(message, "n1");
    ASSERT_TRUE(read.ok()) << read.status();
    Do([&](State& state, absl::Time now) {
      EXPECT_TRUE(state.Record(CompleteReport(*read, state.Find(job)->report), now));
    });
  }

  v1::Sweep sweep_;  // the last answer
};

TEST_F(SweepsTest, RunsNoMoreJobsAtATimeThanItMay) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "lora.rank", {"4", "8", "16"});
  request.mutable_sweep()->set_max_parallel(-1);
  EXPECT_THAT(Create(request).error_message(), HasSubstr("sweep.max_parallel: -1 is negative"));
  request.mutable_sweep()->set_max_parallel(2);
  ASSERT_TRUE(Create(request).ok());
  EXPECT_EQ(sweep_.max_parallel(), 2);
  Connect("n1", 8);
  Get("s");
  EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("STARTING", 2), Pair("QUEUED", 1)));
  EXPECT_EQ(GetJob("s-3").pending_code(), v1::PENDING_REASON_SWEEP_LIMIT);
  v1::ExplainFineTuningJobRequest why;
  why.set_name("jobs/s-3");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::ExplainFineTuningJob, why, explained).ok());
  EXPECT_EQ(explained.pending_code(), v1::PENDING_REASON_SWEEP_LIMIT);
  EXPECT_TRUE(explained.has_expected_start_time()) << "when one of the two is expected to end";
}

TEST_F(SweepsTest, CreatesAJobForEachCombinationOfValues) {
  v1::CreateSweepRequest request = RequestOf("s");
  (*request.mutable_sweep()->mutable_job()->mutable_labels())["team"] = "search";
  request.mutable_sweep()->mutable_job()->set_service_class(v1::SERVICE_CLASS_BACKGROUND);
  AddField(request, "lora.rank", {"4", "8"});
  AddField(request, "training.schedule", {"cosine", "linear"});
  const grpc::Status status = Create(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(sweep_.jobs_size(), 4);
  EXPECT_EQ(sweep_.jobs(1).job(), "jobs/s-2");
  EXPECT_THAT(sweep_.jobs(1).values(),
              UnorderedElementsAre(Pair("lora.rank", "4"), Pair("training.schedule", "linear")));
  EXPECT_EQ(sweep_.metric(), "validation.loss");
  EXPECT_EQ(sweep_.job_counts().at("QUEUED"), 4);
  EXPECT_EQ(sweep_.best_job(), "");
  const v1::FineTuningJob third = GetJob("s-3");
  EXPECT_EQ(third.spec().lora().rank(), 8);
  EXPECT_EQ(third.spec().training().schedule(), v1::SCHEDULE_COSINE);
  EXPECT_EQ(third.labels().at("team"), "search");
  EXPECT_EQ(third.service_class(), v1::SERVICE_CLASS_BACKGROUND);
  EXPECT_EQ(third.sweep(), "sweeps/s");
}

TEST_F(SweepsTest, CreatesAJobForEachPointOfAList) {
  v1::CreateSweepRequest request = RequestOf("");
  (*request.mutable_sweep()->add_points()->mutable_values())["tuning"] = "full";
  (*request.mutable_sweep()->add_points()->mutable_values())["lora.target_modules"] = "[\"q_proj\"]";
  const grpc::Status status = Create(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const std::string id = sweep_.name().substr(sweep_.name().find('/') + 1);
  EXPECT_TRUE(GetJob(id + "-1").spec().has_full());
  EXPECT_THAT(GetJob(id + "-2").spec().lora().target_modules(), ElementsAre("q_proj"));
}

TEST_F(SweepsTest, WhatGoesWithOneKindOfTuningIsLeftOutOfJobsOfTheOther) {
  v1::CreateSweepRequest request = RequestOf("s");
  request.mutable_sweep()->mutable_job()->mutable_spec()->mutable_lora()->set_rank(8);
  AddField(request, "tuning", {"lora", "full", "\"full\""});
  EXPECT_THAT(Create(request).error_message(),
              HasSubstr("points 2 (tuning: full) and 3 (tuning: \"full\") are the same"));
  request.mutable_sweep()->mutable_grid(0)->mutable_values()->RemoveLast();
  for (const bool only_validated : {true, false}) {
    request.set_validate_only(only_validated);
    const grpc::Status status = Create(request);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_THAT(sweep_.warnings(), Contains("lora: that of sweep.job is left out with tuning: full, as in jobs/s-2"));
  }
  EXPECT_EQ(GetJob("s-1").spec().lora().rank(), 8);
  EXPECT_TRUE(GetJob("s-2").spec().has_full());
  EXPECT_EQ(sweep_.job().spec().lora().rank(), 8) << "what all have in common is shown as it was given";

  v1::CreateSweepRequest frozen = RequestOf("t");
  frozen.mutable_sweep()->mutable_job()->mutable_spec()->mutable_full();
  frozen.mutable_sweep()->mutable_job()->mutable_spec()->mutable_training()->add_freeze("model.embed_tokens");
  AddField(frozen, "tuning", {"full", "lora"});
  const grpc::Status status = Create(frozen);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(sweep_.warnings(),
              Contains("training.freeze: that of sweep.job is left out with tuning: lora, as in jobs/t-2"));
  EXPECT_THAT(GetJob("t-1").spec().training().freeze(), ElementsAre("model.embed_tokens"));
  EXPECT_TRUE(GetJob("t-2").spec().has_lora());
  EXPECT_EQ(GetJob("t-2").spec().training().freeze_size(), 0);
}

TEST_F(SweepsTest, APointThatContradictsItselfIsRefusedWhateverAllHaveInCommon) {
  for (const bool in_common : {true, false}) {
    v1::CreateSweepRequest request = RequestOf("s");
    if (in_common) request.mutable_sweep()->mutable_job()->mutable_spec()->mutable_lora()->set_rank(8);
    auto& values = *request.mutable_sweep()->add_points()->mutable_values();
    values["lora.rank"] = "4";
    values["tuning"] = "full";
    const grpc::Status status = Create(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(),
              "lora: has values, but tuning is full; remove the block, or give tuning: lora (jobs/s-1)");
  }
}

TEST_F(SweepsTest, ARepeatedRequestMakesNoSecondSweep) {
  v1::CreateSweepRequest request = RequestOf("");
  request.set_request_id("0c5e3c5e-0000-4000-8000-000000000000");
  AddField(request, "training.seed", {"1", "2"});
  ASSERT_TRUE(Create(request).ok());
  const std::string name = sweep_.name();
  ASSERT_TRUE(Create(request).ok());
  EXPECT_EQ(sweep_.name(), name);
  EXPECT_EQ(store_->ListJobs({})->jobs.size(), 2u);
  AddField(request, "lora.rank", {"4"});
  EXPECT_EQ(Create(request).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  v1::CreateFineTuningJobRequest job = RequestFor("j");
  job.set_request_id(request.request_id());
  v1::FineTuningJob created;
  EXPECT_EQ(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, job, created).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(SweepsTest, SaysOfATakenNameThatItIsTheSweeps) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "training.seed", {"1"});
  ASSERT_TRUE(Create(request).ok());
  for (const bool only_validated : {false, true}) {
    request.set_validate_only(only_validated);
    const grpc::Status status = Create(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
    EXPECT_THAT(status.error_message(), HasSubstr("sweep_id: jobs/s-1 exists; choose another one"));
  }
}

TEST_F(SweepsTest, RefusesWhatIsWrongWithFieldAndJobAndCreatesNothing) {
  struct Row {
    std::string what;
    std::function<void(v1::CreateSweepRequest&)> change;
    std::string message;
  };
  const std::vector<Row> rows = {
      {"a value", [](auto& r) { AddField(r, "lora.rank", {"4", "999"}); }, "lora.rank: 999 is out of range"},
      {"which job", [](auto& r) { AddField(r, "lora.rank", {"4", "999"}); }, "(jobs/s-2)"},
      {"a field", [](auto& r) { AddField(r, "lora.size", {"4"}); }, "lora.size"},
      {"no values", [](auto& r) { AddField(r, "lora.rank", {}); }, "'lora.rank' has no values"},
      {"a field twice",
       [](auto& r) {
         AddField(r, "lora.rank", {"4"});
         AddField(r, "lora.rank", {"8"});
       },
       "'lora.rank' is there twice"},
      {"a value twice", [](auto& r) { AddField(r, "lora.rank", {"4", "8", "4"}); },
       "grid: points 1 (lora.rank: 4) and 3 (lora.rank: 4) are the same job"},
      {"a point twice",
       [](auto& r) {
         for (const char* rate : {"1e-4", "0.0001"})
           (*r.mutable_sweep()->add_points()->mutable_values())["training.learning_rate"] = rate;
       },
       "points: points 1 (training.learning_rate: 1e-4) and 2 (training.learning_rate: 0.0001) are the same job"},
      {"a value that would end the server",
       [](auto& r) { AddField(r, "lora.rank", {std::string(1'000'000, '[') + std::string(1'000'000, ']')}); },
       "lora.rank: is nested deeper than 64 levels"},
      {"a field that would end the server",
       [](auto& r) {
         std::string field = "lora.rank_pattern";
         for (int i = 0; i < 1'000'000; ++i) field += ".a";
         AddField(r, field, {"1"});
       },
       "lora.rank_pattern.a.a"},
      {"nothing to try", [](auto&) {}, "give either a grid or points"},
      {"too many",
       [](auto& r) {
         std::vector<std::string> seeds;
         for (int seed = 0; seed < 1001; ++seed) seeds.push_back(absl::StrCat(seed));
         AddField(r, "training.seed", seeds);
       },
       "more than 1000 jobs"},
      {"more fields than there are",
       [](auto& r) {
         for (int i = 0; i < 101; ++i) AddField(r, absl::StrCat("field", i), {"1"});
       },
       "grid: has 101 fields; give at most 100"},
      {"jobs that are too large together",
       [](auto& r) {
         r.mutable_sweep()->mutable_job()->mutable_spec()->set_chat_template(std::string(200'000, 'x'));
         std::vector<std::string> seeds;
         for (int seed = 0; seed < 400; ++seed) seeds.push_back(absl::StrCat(seed));
         AddField(r, "training.seed", seeds);
       },
       "in all, and may have 64.0 MB"},
      {"a value that is too large for so many jobs",
       [](auto& r) {
         std::vector<std::string> seeds;
         for (int seed = 0; seed < 100; ++seed) seeds.push_back(absl::StrCat(seed));
         AddField(r, "training.seed", seeds);
         AddField(r, "chat_template", {std::string(1'000'000, 'x')});
       },
       "in all, and may have 64.0 MB"},
      {"an id without room", [](auto& r) { r.set_sweep_id(std::string(59, 'a')); }, "sweep_id"},
      {"a metric", [](auto& r) { r.mutable_sweep()->set_metric("validation.speed"); }, "sweep.metric"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    v1::CreateSweepRequest request = RequestOf("s");
    row.change(request);
    const grpc::Status status = Create(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(row.message));
  }
  v1::CreateSweepRequest good = RequestOf("s");
  AddField(good, "training.seed", {"1", "2"});
  good.set_validate_only(true);
  ASSERT_TRUE(Create(good).ok());
  EXPECT_EQ(sweep_.jobs_size(), 2);
  EXPECT_EQ(store_->ListJobs({})->jobs.size(), 0u);
}

// A value of a grid is in many jobs, and is said once.
TEST_F(SweepsTest, SaysWhatIsWrongWithAllOfItsJobsAndWhichTheyAre) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "lora.rank", {"4", "999", "0"});
  AddField(request, "training.schedule", {"linear", "bent"});
  const grpc::Status refused = Create(request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const std::vector<FieldViolation> violations = ParseErrorDetails(refused.error_details()).violations;
  ASSERT_EQ(violations.size(), 3u) << refused.error_message();
  const auto says = [](const std::string& field, const std::string& value, const std::string& jobs) {
    return testing::AllOf(
        testing::Field(&FieldViolation::field, field),
        testing::Field(&FieldViolation::description, testing::AllOf(HasSubstr(value), testing::EndsWith(jobs))));
  };
  EXPECT_THAT(violations, UnorderedElementsAre(says("lora.rank", "999", "(jobs/s-3, jobs/s-4)"),
                                               says("lora.rank", "0", "(jobs/s-5, jobs/s-6)"),
                                               says("training.schedule", "bent", "(jobs/s-2, jobs/s-4, jobs/s-6)")));
}

// What only a plan can know, of each job as well.
TEST_F(SweepsTest, SaysOfAllOfItsJobsWhatTheModelCannotDo) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "lora.target_modules", {R"(["c_attn"])", R"(["q_proj"])", R"(["c_proj"])"});
  AddField(request, "training.seed", {"1", "2"});
  const grpc::Status refused = Create(request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), testing::AllOf(HasSubstr("'c_attn'"), HasSubstr("(jobs/s-1, jobs/s-2)"),
                                                      HasSubstr("'c_proj'"), HasSubstr("(jobs/s-5, jobs/s-6)")));
  EXPECT_EQ(store_->ListJobs({})->jobs.size(), 0u);
}

TEST_F(SweepsTest, NamesTwentyViolationsAndAFewJobsOfEachAndCountsTheOthers) {
  v1::CreateSweepRequest request = RequestOf("s");
  std::vector<std::string> ranks;
  for (int rank = 1000; rank < 1030; ++rank) ranks.push_back(absl::StrCat(rank));
  AddField(request, "lora.rank", ranks);
  EXPECT_THAT(Create(request).error_message(), testing::EndsWith("(jobs/s-20)\n… and 10 more"));
  AddField(request, "training.seed", {"1", "2"});
  EXPECT_THAT(Create(request).error_message(), testing::EndsWith("(jobs/s-39, jobs/s-40)\n… and 10 more"));
  request = RequestOf("s");
  AddField(request, "lora.rank", {"999"});
  AddField(request, "training.seed", {"1", "2", "3", "4", "5", "6", "7"});
  EXPECT_THAT(Create(request).error_message(),
              testing::EndsWith("(jobs/s-1, jobs/s-2, jobs/s-3, jobs/s-4, jobs/s-5 and 2 more)"));
}

TEST_F(SweepsTest, SaysWhatIsWrongWithAllFieldsOfAGrid) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "lora.rank", {});
  AddField(request, "training.seed", {"1"});
  AddField(request, "training.seed", {"2"});
  EXPECT_EQ(Create(request).error_message(),
            "grid: 'lora.rank' has no values; give one or more\ngrid: 'training.seed' is there twice; give it once");
}

TEST_F(SweepsTest, SaysWhatIsWrongWithAllPartsOfARequestAtOnce) {
  v1::CreateSweepRequest request = RequestOf("No Id");
  request.mutable_sweep()->set_max_parallel(-1);
  v1::FineTuningJob& job = *request.mutable_sweep()->mutable_job();
  (*job.mutable_labels())[""] = "no key";
  job.mutable_spec()->mutable_dataset()->set_dataset("gone");
  AddField(request, "training.seed", {});
  AddField(request, "training.seed", {"1"});
  job.mutable_spec()->mutable_lora()->set_rank(0);
  const grpc::Status refused = Create(request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused),
              ElementsAre("sweep_id", "labels", "sweep.max_parallel", "grid", "grid", "lora.rank", "dataset"));
  job.clear_labels();
  job.mutable_spec()->mutable_lora()->set_rank(4);
  request.mutable_sweep()->clear_grid();
  AddField(request, "lora.alpha", {"-1", "8"});
  EXPECT_THAT(FieldsOf(Create(request)), ElementsAre("sweep_id", "sweep.max_parallel", "lora.alpha", "dataset"))
      << "what a value makes wrong, too";
  AddField(request, "dataset.train", {"rows"});
  EXPECT_THAT(FieldsOf(Create(request)), testing::Not(Contains("dataset"))) << "which each job has of its own";
}

TEST_F(SweepsTest, NamesEveryDatasetThatDoesNotExistAndGoesOnToWhatElseIsWrong) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "dataset", {"nope1", "nope2"});
  const grpc::Status missing = Create(request);
  EXPECT_EQ(missing.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(missing.error_message(),
            "dataset: datasets/nope1 does not exist (jobs/s-1)\ndataset: datasets/nope2 does not exist (jobs/s-2)");
  AddField(request, "lora.target_modules", {R"(["q_proj"])", R"(["c_attn"])"});
  request.mutable_sweep()->mutable_grid(0)->add_values("rows");
  const grpc::Status mixed = Create(request);
  EXPECT_EQ(mixed.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(mixed.error_message(), testing::AllOf(HasSubstr("nope1"), HasSubstr("nope2"), HasSubstr("'c_attn'")));
}

TEST_F(SweepsTest, LabelsOfAllJobsHideNothingThatIsWrongWithAGrid) {
  v1::CreateSweepRequest request = RequestOf("s");
  (*request.mutable_sweep()->mutable_job()->mutable_labels())[""] = "no key";
  AddField(request, "lora.rank", {"0", "999"});
  EXPECT_THAT(FieldsOf(Create(request)), ElementsAre("labels", "lora.rank", "lora.rank"));
}

// Its dataset has a train part only, and is the test part of some jobs, too.
TEST_F(SweepsTest, AMetricThatAJobWillNotHaveIsRefusedIfItWasAskedForAndElseWarnedOf) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "training.seed", {"1", "2"});
  for (const bool only_validated : {true, false}) {
    request.set_validate_only(only_validated);
    ASSERT_TRUE(Create(request).ok());
    EXPECT_THAT(sweep_.warnings(),
                ElementsAre("sweep.metric: validation.loss is measured on a validation part, which the dataset lacks; "
                            "give dataset.validation, or a metric of another part (jobs/s-1)"));
  }
  request = RequestOf("t");
  v1::FineTuningSpec& spec = *request.mutable_sweep()->mutable_job()->mutable_spec();
  spec.clear_dataset();
  spec.mutable_dataset()->set_train("rows/train");
  spec.mutable_dataset()->set_test("rows/train");
  AddField(request, "evaluation.metric", {"exact_match", "loss"});
  request.mutable_sweep()->set_metric("validation.loss");
  EXPECT_THAT(Create(request).error_message(), HasSubstr("which the dataset lacks"));
  request.mutable_sweep()->set_metric("test.exact_match");
  const grpc::Status refused = Create(request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(),
            "sweep.metric: test.exact_match is measured on answers, and with evaluation.metric: loss the model gives "
            "none; give another evaluation.metric, or test.loss (jobs/t-2)");
  request.mutable_sweep()->set_metric("test.loss");
  const grpc::Status created = Create(request);
  ASSERT_TRUE(created.ok()) << created.error_message();
  EXPECT_THAT(sweep_.warnings(), testing::IsEmpty());
}

TEST_F(SweepsTest, TheBestHasTheLowestLossOfThoseThatSucceeded) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "training.seed", {"1", "2", "3", "4"});
  ASSERT_TRUE(Create(request).ok());
  Connect("n1", 4);
  Run("s-1", 1.5);
  Run("s-2", 1.25);
  Run("s-3", 0.5, /*succeeds=*/false);
  Get("s");
  EXPECT_EQ(sweep_.best_job(), "jobs/s-2");
  EXPECT_EQ(sweep_.jobs(1).metric(), 1.25);
  EXPECT_EQ(sweep_.jobs(1).model_version(), "models/s-2/versions/1");
  EXPECT_FALSE(sweep_.jobs(3).has_metric());
  EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("SUCCEEDED", 2), Pair("FAILED", 1), Pair("STARTING", 1)));
}

// One job publishes the weights of its second evaluation, the other its last ones though an earlier evaluation was
// better than any.
TEST_F(SweepsTest, AMetricIsOfTheWeightsThatArePublished) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "training.seed", {"1", "2"});
  ASSERT_TRUE(Create(request).ok());
  Connect("n1", 2);
  const auto train = [&](const std::string& job, const std::vector<double>& losses) {
    Tell(job, 1, {{"event", "started"}, {"device", "cpu"}});
    double best = 1e9;
    for (size_t i = 0; i < losses.size(); ++i) {
      const auto step = static_cast<int64_t>(i) + 1;
      Tell(job, step + 1,
           {{"event", "evaluation"},
            {"step", step},
            {"split", "validation"},
            {"model", "tuned"},
            {"loss", losses[i]},
            {"best", losses[i] < best}});
      best = std::min(best, losses[i]);
    }
  };
  train("s-1", {1.0, 0.5, 2.0});
  train("s-2", {0.25, 1.5, 1.75});
  Get("s");
  EXPECT_EQ(sweep_.jobs(0).metric(), 2.0) << "so far";
  EXPECT_EQ(GetJob("s-1").best_validation().step(), 2);
  Tell("s-1", 5, {{"event", "finished"}, {"published_step", 2}});
  Tell("s-2", 5, {{"event", "finished"}, {"published_step", 3}});
  for (const char* job : {"s-1", "s-2"}) Report(job, 1, 6, JobInput::kArtifactStored);
  Get("s");
  EXPECT_EQ(sweep_.jobs(0).metric(), 0.5);
  EXPECT_EQ(sweep_.jobs(1).metric(), 1.75);
  EXPECT_EQ(sweep_.best_job(), "jobs/s-1");
  const v1::FineTuningJob first = GetJob("s-1");
  ASSERT_EQ(first.evaluations_size(), 1);
  EXPECT_EQ(first.evaluations(0).step(), first.summary().published_step());
}

TEST_F(SweepsTest, OnHoldStartsAsOne) {
  v1::CreateSweepRequest request = RequestOf("s");
  request.set_request_id("0c5e3c5e-0000-4000-8000-000000000001");
  request.set_hold(true);
  AddField(request, "training.seed", {"1", "2", "3"});
  request.set_validate_only(true);
  ASSERT_TRUE(Create(request).ok());
  EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("HELD", 3)));
  request.set_validate_only(false);
  Connect("n1", 2);
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(Create(request).ok());
    EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("HELD", 3)));
  }
  v1::CreateSweepRequest other = request;
  other.set_hold(false);
  EXPECT_EQ(Create(other).error_code(), grpc::StatusCode::ALREADY_EXISTS) << "that is another request";

  v1::CancelFineTuningJobRequest cancel;
  cancel.set_name("jobs/s-1");
  v1::FineTuningJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, cancel, job).ok());
  v1::StartSweepRequest start;
  start.set_name("sweeps/s");
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(Call(*sweeps_, &Sweeps::StartSweep, start, sweep_).ok());
    EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("CANCELLED", 1), Pair("STARTING", 2)));
  }
  start.set_name("sweeps/nobody");
  EXPECT_EQ(Call(*sweeps_, &Sweeps::StartSweep, start, sweep_).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(SweepsTest, IsCancelledAsOne) {
  v1::CreateSweepRequest request = RequestOf("s");
  AddField(request, "training.seed", {"1", "2", "3"});
  ASSERT_TRUE(Create(request).ok());
  Connect("n1", 2);
  Run("s-1", 1.0);
  v1::CancelSweepRequest cancel;
  cancel.set_name("sweeps/s");
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(Call(*sweeps_, &Sweeps::CancelSweep, cancel, sweep_).ok());
    EXPECT_THAT(sweep_.job_counts(), UnorderedElementsAre(Pair("SUCCEEDED", 1), Pair("CANCELLING", 2)));
  }
  cancel.set_name("sweeps/nobody");
  EXPECT_EQ(Call(*sweeps_, &Sweeps::CancelSweep, cancel, sweep_).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(SweepsTest, AValueWithALineBreakIsStillOneViolation) {
  v1::CreateSweepRequest request = RequestOf("a\nb: c");
  AddField(request, "lora.rank", {"4"});
  request.mutable_sweep()->set_metric("d\ne: f");
  const grpc::Status refused = Create(request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused), ElementsAre("sweep_id", "sweep.metric"));
}

TEST_F(SweepsTest, ListsNewestFirstInPages) {
  for (const char* id : {"a", "b", "c"}) {
    v1::CreateSweepRequest request = RequestOf(id);
    AddField(request, "training.seed", {"1", "2"});
    ASSERT_TRUE(Create(request).ok());
  }
  v1::ListSweepsRequest request;
  request.set_page_size(2);
  v1::ListSweepsResponse page;
  ASSERT_TRUE(Call(*sweeps_, &Sweeps::ListSweeps, request, page).ok());
  ASSERT_EQ(page.sweeps_size(), 2);
  EXPECT_EQ(page.sweeps(0).name(), "sweeps/c");
  EXPECT_EQ(page.sweeps(0).job_counts().at("QUEUED"), 2);
  EXPECT_EQ(page.sweeps(0).jobs_size(), 0);
  request.set_page_token(page.next_page_token());
  ASSERT_TRUE(Call(*sweeps_, &Sweeps::ListSweeps, request, page).ok());
  ASSERT_EQ(page.sweeps_size(), 1);
  EXPECT_EQ(page.sweeps(0).name(), "sweeps/a");
  EXPECT_EQ(page.next_page_token(), "");
}

// Each of its plans would take a turn from others.
TEST_F(SweepsTest, PlansNothingMoreForACallerThatIsGone) {
  v1::CreateSweepRequest request = RequestOf("s");
  std::vector<std::string> rates;
  for (int i = 1; i <= 500; ++i) rates.push_back(absl::StrCat(i, "e-6"));
  AddField(request, "training.learning_rate", rates);
  const auto gone = KeepPlanningBusy();
  grpc::ClientContext context;
  std::thread caller([&] {
    v1::Sweep sweep;
    EXPECT_EQ(sweeps_->CreateSweep(&context, request, &sweep).error_code(), grpc::StatusCode::CANCELLED);
  });
  // It has been made when the first of its rows wait to be read.
  EXPECT_TRUE(WaitFor([&] { return std::filesystem::exists(BaseModelsFolder(folder_.path())); }));
  context.TryCancel();
  caller.join();
  gone->Notify();
  EXPECT_TRUE(WaitFor([&] { return HasAnswered("CreateSweep", "CANCELLED"); }));
  EXPECT_TRUE(absl::IsNotFound(store_->GetSweep("s").status()));
}

}  // namespace
}  // namespace luthier
