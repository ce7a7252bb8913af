// Jobs as people read them: described, listed, watched, compared.
#include "client/cli/job_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "absl/strings/str_split.h"
#include "client/cli/comparison.h"
#include "client/cli/exit_code.h"
#include "client/cli/watch_view.h"
#include "client/lib/local_disk.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

// A LoRA job that has learned its task.
v1::FineTuningJob Succeeded(const std::string& id, bool full = false) {
  v1::FineTuningJob job;
  job.set_name("jobs/" + id);
  job.set_state(v1::FineTuningJob::SUCCEEDED);
  job.mutable_spec()->set_base_model("luthier-tiny");
  job.mutable_spec()->mutable_dataset()->set_dataset("intents");
  job.mutable_spec()->set_task(v1::TASK_CLASSIFICATION);
  if (full) job.mutable_spec()->mutable_full();
  job.mutable_create_time()->set_seconds(1'000'000 - 300);
  job.mutable_start_time()->set_seconds(1'000'000 - 290);
  job.mutable_end_time()->set_seconds(1'000'000 - 165);
  job.set_attempt(2);
  job.set_lost_attempts(1);
  job.set_node("nodes/n1");
  job.set_model_version("models/" + id + "/versions/1");
  v1::ResolvedValue& rank = *job.add_resolved();
  rank.set_field("lora.rank");
  rank.set_value("16");
  rank.set_reason("small model: 3.8M parameters");
  for (const bool tuned : {false, true}) {
    v1::Evaluation& evaluation = *job.add_evaluations();
    evaluation.set_split("test");
    evaluation.set_model(tuned ? "tuned" : "base");
    evaluation.set_rows(200);
    evaluation.set_loss(tuned ? 0.0123 : 4.5);
    evaluation.set_exact_match(tuned ? 0.965 : 0.03);
    v1::EvaluationExample& example = *evaluation.add_examples();
    example.set_prompt("Where is my parcel?\nIt is late.");
    example.set_expected("delivery_status");
    example.set_answer(tuned ? "delivery_status" : "the the the");
  }
  v1::RunSummary& summary = *job.mutable_summary();
  summary.set_trainable_parameters(full ? 3'812'096 : 131'072);
  summary.set_artifact_bytes(full ? 7'624'192 : 526'000);
  summary.set_peak_memory_bytes(400'000'000);
  summary.mutable_step_duration()->set_nanos(250'000'000);
  summary.mutable_duration()->set_seconds(120);
  return job;
}

TEST(JobTextTest, DescribesAJobWithItsValuesReasonsEvaluationsAndResult) {
  EXPECT_THAT(JobDescription(Succeeded("intents-1"), kNow, Terminal{}),
              AllOf(HasSubstr("State         SUCCEEDED\n"), HasSubstr("Attempt       2 on n1, 1 lost\n"),
                    HasSubstr("(5m ago), ran 2m 05s"), HasSubstr("model       models/intents-1/versions/1"),
                    HasSubstr("test, tuned: exact match 96.5 %, loss 0.0123 (200 rows)"),
                    HasSubstr("lora.rank  16     small model: 3.8M parameters"), Not(HasSubstr("Failure")),
                    Not(HasSubstr("\x1b"))));
}

TEST(JobTextTest, NamesTheTrainingRowsThatStayedHardByFileAndLine) {
  v1::FineTuningJob job = Succeeded("a");
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}), Not(HasSubstr("highest loss")));
  v1::RowLoss& row = *job.mutable_summary()->add_worst_rows();
  row.set_file("train.jsonl");
  row.set_line(17);
  row.set_first_loss(4.5);
  row.set_last_loss(3.25);
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}),
              HasSubstr("Training rows with the highest loss\n  train.jsonl:17  loss 3.25, at first 4.5\n"));
}

TEST(JobTextTest, NamesEveryNodeOfAJobAndWhichOneLeads) {
  v1::FineTuningJob job = Succeeded("a");
  job.add_other_nodes("nodes/n3");
  job.add_other_nodes("nodes/n2");
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}), HasSubstr("Attempt       2 on n1 (leads), n3, n2, 1 lost\n"));
  EXPECT_THAT(JobTable({job}, /*wide=*/true, kNow).Render(Terminal{}), HasSubstr("n1 (leads), n3, n2"));
}

TEST(JobTextTest, NamesWhatAJobPublishedByItsModelAndVersionAndNotByTheJob) {
  v1::FineTuningJob job = Succeeded("a");
  job.set_model_version("models/support/versions/4");
  EXPECT_EQ(WhatCameOut(job),
            "jobs/a succeeded after 2m 15s and published models/support/versions/4\n"
            "  compare with the base:  luthier job compare a\n"
            "  try it:                 luthier generate --model support/4 --prompt TEXT\n"
            "  download it:            luthier model download support/4");
  job.mutable_spec()->mutable_model_export()->set_format(v1::ModelExport::MERGED);
  EXPECT_THAT(WhatCameOut(job), AllOf(Not(HasSubstr("compare")), HasSubstr("generate --model support/4")));
  job.mutable_spec()->mutable_model_export()->set_format(v1::ModelExport::GGUF_ADAPTER);
  EXPECT_THAT(WhatCameOut(job), AllOf(Not(HasSubstr("generate")), HasSubstr("model download support/4")));
}

TEST(JobTextTest, SaysWhyAJobEndedAndHowUrgentItIsWhereThatIsNotTheRule) {
  v1::FineTuningJob job = Succeeded("a");
  job.set_tenant("default");
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}),
              AllOf(Not(HasSubstr("Ended because")), Not(HasSubstr("Urgency")), Not(HasSubstr("Tenant"))));
  job.set_state(v1::FineTuningJob::CANCELLED);
  job.set_stop_reason("DEADLINE");
  job.set_service_class(v1::SERVICE_CLASS_BACKGROUND);
  job.set_priority(-3);
  job.set_tenant("search");
  job.set_sweep("sweeps/seeds");
  EXPECT_THAT(
      JobDescription(job, kNow, Terminal{}),
      AllOf(HasSubstr("Ended because its deadline was over\n"), HasSubstr("Urgency       background, priority -3\n"),
            HasSubstr("Tenant        search\n"), HasSubstr("Sweep         seeds\n")));
}

TEST(JobTextTest, SaysWhyAJobWaits) {
  v1::FineTuningJob job = Succeeded("a");
  job.set_state(v1::FineTuningJob::QUEUED);
  job.set_pending_reason("no node is connected");
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}), HasSubstr("Waits because no node is connected\n"));
}

TEST(JobTextTest, NamesCauseAndRemedyOfEveryKindOfFailure) {
  for (int cause = v1::JobFailure::USER_DATA; cause <= v1::JobFailure::INTERNAL; ++cause) {
    v1::FineTuningJob job = Succeeded("a");
    job.set_state(v1::FineTuningJob::FAILED);
    job.mutable_failure()->set_cause(static_cast<v1::JobFailure::Cause>(cause));
    job.mutable_failure()->set_message("train:3: no token is trained\ntrain:4: the same");
    const std::string remedy = Remedy(job.failure().cause(), "a");
    EXPECT_THAT(remedy, Not(IsEmpty()));
    EXPECT_THAT(JobDescription(job, kNow, Terminal{}),
                AllOf(HasSubstr("  train:3: no token is trained\n  train:4: the same\n"),
                      HasSubstr(v1::JobFailure::Cause_Name(job.failure().cause())), HasSubstr("remedy  " + remedy)));
  }
}

TEST(JobTextTest, NamesTheNodeOnWhichAJobFailedWhereThatIsKnown) {
  v1::FineTuningJob job = Succeeded("a");
  job.set_state(v1::FineTuningJob::FAILED);
  job.mutable_failure()->set_cause(v1::JobFailure::OOM);
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}), Not(HasSubstr("  node ")));
  job.add_other_nodes("nodes/n2");
  job.mutable_failure()->set_node("nodes/n2");
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}),
              AllOf(HasSubstr("on n1 (leads), n2"), HasSubstr("  node    n2\n  cause   OOM\n")));
}

TEST(JobTextTest, ListsJobsInOneLineEachAndMoreWhenWide) {
  const std::vector<v1::FineTuningJob> jobs = {Succeeded("a"), Succeeded("b", /*full=*/true)};
  EXPECT_EQ(JobTable(jobs, /*wide=*/false, kNow).Render(Terminal{}),
            "NAME  STATE      STEP  TASK            TUNING  BASE MODEL    DATASET  AGE\n"
            "a     SUCCEEDED     -  classification  lora    luthier-tiny  intents   5m\n"
            "b     SUCCEEDED     -  classification  full    luthier-tiny  intents   5m\n");
  EXPECT_THAT(JobTable(jobs, /*wide=*/true, kNow).Render(Terminal{}),
              AllOf(HasSubstr("NODE"), HasSubstr("models/a/versions/1")));
}

// It is what the next command takes.
TEST(JobTextTest, ANameIsWholeOnANarrowTerminalToo) {
  const std::string name = "job-1k1eqb897rf";
  const Table table = JobTable({Succeeded(name)}, /*wide=*/true, kNow);
  for (const int width : {20, 60, 80})
    EXPECT_THAT(table.Render({.interactive = true, .width = width}), HasSubstr(name + "  SUCCEEDED")) << width;
}

TEST(JobTextTest, NoJobBeganBeforeItWasCreated) {
  v1::FineTuningJob job = Succeeded("a");
  job.set_state(v1::FineTuningJob::RUNNING);
  job.clear_end_time();
  *job.mutable_start_time() = job.create_time();
  EXPECT_THAT(JobDescription(job, kNow + absl::Milliseconds(800), Terminal{}), HasSubstr("(5m ago), began 5m ago\n"));
}

TEST(JobTextTest, NoStepHasMadeTheBaseWhatItIs) {
  v1::FineTuningJob job = Succeeded("a");
  for (v1::Evaluation& evaluation : *job.mutable_evaluations()) evaluation.set_step(201);
  EXPECT_THAT(JobDescription(job, kNow, Terminal{}),
              AllOf(HasSubstr("loss 4.5 (200 rows)\n"), HasSubstr("loss 0.0123 (200 rows), step 201\n")));
}

TEST(ExitCodeTest, TellsOutcomesOfJobsApart) {
  v1::FineTuningJob job = Succeeded("a");
  EXPECT_TRUE(OutcomeOf(job).ok());
  job.set_state(v1::FineTuningJob::FAILED);
  EXPECT_EQ(ExitCodeOf(OutcomeOf(job)), ExitCode::kJobFailed);
  job.set_state(v1::FineTuningJob::CANCELLED);
  EXPECT_EQ(ExitCodeOf(OutcomeOf(job)), ExitCode::kCancelled);
}

TEST(ExitCodeTest, HasACodeForEveryKindOfStatus) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), ExitCode::kUsage);
  EXPECT_EQ(ExitCodeOf(absl::UnauthenticatedError("")), ExitCode::kAuthentication);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), ExitCode::kAuthentication);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), ExitCode::kNotFound);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), ExitCode::kUnavailable);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), ExitCode::kTimeout);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("")), ExitCode::kCancelled);
  EXPECT_EQ(ExitCodeOf(absl::AlreadyExistsError("")), ExitCode::kFailure);
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("")), ExitCode::kFailure);
  EXPECT_EQ(ExitCodeOf(WithExitCode(absl::NotFoundError(""), ExitCode::kFailure)), ExitCode::kFailure);
  for (const absl::Status& ours : {absl::PermissionDeniedError(""), absl::NotFoundError(""), absl::UnknownError("")})
    EXPECT_EQ(ExitCodeOf(OnOurDisk(ours)), ExitCode::kFailure) << ours;
  EXPECT_EQ(ExitCodeOf(OnOurDisk(absl::OkStatus())), ExitCode::kOk);
}

TEST(ComparisonTest, PutsLoraBesideFullTrainingAndTheBaseOnce) {
  EXPECT_EQ(ComparisonTable({Succeeded("a"), Succeeded("b", /*full=*/true)}, {{"baseModels/luthier-tiny", 3'812'096}},
                            Terminal{}),
            "                    base luthier-tiny            LoRA a             full b\n"
            "exact match                     3.0 %            96.5 %             96.5 %\n"
            "loss                              4.5            0.0123             0.0123\n"
            "held-out rows                     200               200                200\n"
            "trained parameters                  -  131,072 (3.44 %)  3,812,096 (100 %)\n"
            "artifact size                       -          526.0 kB             7.6 MB\n"
            "peak memory                         -          400.0 MB           400.0 MB\n"
            "time a step                         -             250ms              250ms\n"
            "training time                       -            2m 00s             2m 00s\n");
}

// An exact match of 4 answers is not one of 200 rows.
TEST(ComparisonTest, SaysOfHowManyAnswersAScoreIs) {
  v1::FineTuningJob job = Succeeded("a");
  for (v1::Evaluation& evaluation : *job.mutable_evaluations()) evaluation.set_scored_rows(4);
  EXPECT_THAT(ComparisonTable({job}, {}, Terminal{}), HasSubstr("answers compared"));
  EXPECT_EQ(EvaluationText(job.evaluations(1)), "test, tuned: exact match 96.5 % (4 answers), loss 0.0123 (200 rows)");
  job.mutable_evaluations(1)->set_scored_rows(200);
  EXPECT_EQ(EvaluationText(job.evaluations(1)), "test, tuned: exact match 96.5 %, loss 0.0123 (200 rows)");
}

TEST(ComparisonTest, GivesDifferentBasesColumnsOfTheirOwn) {
  v1::FineTuningJob other = Succeeded("b");
  other.mutable_evaluations(0)->set_exact_match(0.5);
  EXPECT_THAT(ComparisonTable({Succeeded("a"), other}, {}, Terminal{}),
              AllOf(HasSubstr("3.0 %"), HasSubstr("50.0 %"), HasSubstr("base luthier-tiny (a)"),
                    HasSubstr("base luthier-tiny (b)")));
}

TEST(ComparisonTest, TheBaseHasTheFiguresOfTheJobThatMeasuredIt) {
  v1::FineTuningJob waiting;
  waiting.set_name("jobs/x");
  waiting.mutable_spec()->set_base_model("luthier-tiny");
  EXPECT_THAT(ComparisonTable({waiting, Succeeded("a")}, {}, Terminal{}), HasSubstr("3.0 %"));
}

TEST(ComparisonTest, ShowsRowsBeforeAndAfter) {
  EXPECT_EQ(ComparisonExamples({Succeeded("a")}, 3, Terminal{}),
            "1   Where is my parcel? It is late.\n"
            "    expected  delivery_status\n"
            "    base      the the the\n"
            "    LoRA      delivery_status\n");
  EXPECT_EQ(ComparisonExamples({Succeeded("a")}, 0, Terminal{}), "");
}

TEST(ComparisonTest, SaysOfEveryAnswerWhichJobGaveIt) {
  EXPECT_EQ(ComparisonExamples({Succeeded("a"), Succeeded("b")}, 3, Terminal{}),
            "1   Where is my parcel? It is late.\n"
            "    expected           delivery_status\n"
            "    base luthier-tiny  the the the\n"
            "    LoRA a             delivery_status\n"
            "    LoRA b             delivery_status\n");
}

TEST(ComparisonTest, AJobWithoutFiguresIsAColumnOfDashesAndNotACrash) {
  v1::FineTuningJob bare;
  bare.set_name("jobs/x");
  EXPECT_THAT(ComparisonTable({Succeeded("a"), bare}, {}, Terminal{}), HasSubstr("LoRA x"));
  EXPECT_EQ(ComparisonExamples({bare}, 3, Terminal{}), "");
}

v1::JobEvent ProgressEvent(int64_t sequence, int64_t step, int64_t total, int64_t second) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  event.set_type("progress");
  event.mutable_create_time()->set_seconds(second);
  event.mutable_progress()->set_step(step);
  event.mutable_progress()->set_total_steps(total);
  event.mutable_progress()->set_loss(1.0);
  return event;
}

v1::JobEvent StateEvent(v1::FineTuningJob::State state, const std::string& message) {
  v1::JobEvent event;
  event.set_type("state");
  event.set_state(state);
  event.set_message(message);
  event.mutable_create_time()->set_seconds(100);
  return event;
}

TEST(WatchViewTest, InAFileItWritesALineEachTenthOfTheWay) {
  std::ostringstream out;
  WatchView view(out, Terminal{});
  view.OnEvent(StateEvent(v1::FineTuningJob::RUNNING, "training on cpu"));
  for (int step = 1; step <= 100; ++step) view.OnEvent(ProgressEvent(step, step, 100, 100));
  view.Finish();
  const std::vector<std::string> lines = absl::StrSplit(out.str(), '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 12u) << out.str();  // the state, tenths 0 to 10
  EXPECT_THAT(lines[0], HasSubstr("RUNNING    training on cpu"));
  EXPECT_THAT(lines.back(), HasSubstr("step 100/100  100%"));
  EXPECT_THAT(out.str(), Not(HasSubstr("\r")));
}

TEST(WatchViewTest, InAFileALongSilenceIsBrokenEvenWithinOneTenth) {
  std::ostringstream out;
  WatchView view(out, Terminal{});
  for (int step = 1; step <= 4; ++step) view.OnEvent(ProgressEvent(step, step, 1000, 100 + 31 * step));
  const std::vector<std::string> lines = absl::StrSplit(out.str(), '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 4u) << out.str();
}

TEST(WatchViewTest, OnATerminalOneLineIsRedrawnBelowTheEvents) {
  std::ostringstream out;
  WatchView view(out, {.interactive = true, .colours = false, .width = 80});
  view.OnEvent(ProgressEvent(1, 1, 10, 100));
  view.OnEvent(ProgressEvent(2, 2, 10, 100));
  v1::JobEvent warning;
  warning.set_type("warning");
  warning.set_message("the disk is nearly full");
  view.OnEvent(warning);
  view.Finish();
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << "only the event is a line that stays";
  EXPECT_THAT(text, AllOf(HasSubstr("\rstep 1/10"), HasSubstr("\rstep 2/10"), HasSubstr("\r\x1b[K"),
                          HasSubstr("warning    the disk is nearly full\n\rstep 2/10")));
  EXPECT_EQ(text.substr(text.size() - 4), "\r\x1b[K") << "nothing is left of the redrawn line";
}

TEST(WatchViewTest, OnATerminalNoProgressIsShownOfAJobThatDoesNotTrainOrCannotBeSeen) {
  for (const bool interrupted : {false, true}) {
    std::ostringstream out;
    WatchView view(out, {.interactive = true, .colours = false, .width = 80});
    view.OnEvent(ProgressEvent(1, 1, 10, 100));
    if (interrupted) {
      view.OnInterrupted(absl::UnavailableError("no server answers at gpu1:7070"));
    } else {
      view.OnEvent(StateEvent(v1::FineTuningJob::RECOVERING, "the node was lost"));
    }
    const std::string shown = out.str().substr(out.str().rfind("\r\x1b[K"));
    EXPECT_THAT(shown,
                AllOf(HasSubstr(interrupted ? "no server answers" : "the node was lost"), testing::EndsWith("\n")));
    view.OnEvent(ProgressEvent(2, 2, 10, 101));
    EXPECT_THAT(out.str().substr(out.str().rfind('\r')), HasSubstr("\rstep 2/10")) << "it trains again";
  }
}

}  // namespace
}  // namespace luthier
