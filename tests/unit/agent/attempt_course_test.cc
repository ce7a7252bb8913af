// Courses of attempts: what is heard, wished and ends, as literal rows, and what comes next.
#include "worker/agent/core/attempt_course.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/trainer_words.h"
#include "lib/wire/json_wire.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1700000000);
constexpr absl::Duration kGrace = absl::Seconds(60);
constexpr Wish kWishes[] = {Wish::kNone, Wish::kStop, Wish::kSuspend, Wish::kAbandon};

std::string Name(Wish wish) {
  constexpr const char* kNames[] = {"none", "stop", "suspend", "abandon"};
  return kNames[static_cast<int>(wish)];
}
std::string Name(AttemptCourse::Stage step) {
  constexpr const char* kNames[] = {"left",    "prepare",          "train",      "await server",
                                    "publish", "store checkpoint", "report end", "over"};
  return kNames[static_cast<int>(step)];
}
std::string Name(AttemptCourse::Command order) {
  constexpr const char* kNames[] = {"none", "checkpoint", "stop", "kill"};
  return kNames[static_cast<int>(order)];
}
std::string Name(AttemptCourse::Publication publication) {
  constexpr const char* kNames[] = {"stored", "again", "again with all", "over"};
  return kNames[static_cast<int>(publication)];
}

// As "LOST CRASHED: why", or "nothing".
std::string EndOf(const AttemptCourse& course) {
  const v1::AttemptEnded& ended = course.ended();
  if (ended.outcome() == v1::AttemptEnded::OUTCOME_UNSPECIFIED) return "nothing";
  return absl::StrCat(v1::AttemptEnded::Outcome_Name(ended.outcome()), ended.cause().empty() ? "" : " ", ended.cause(),
                      ": ", ended.message());
}

TrainerWord Word(const std::string& event, const std::string& message = "", const std::string& cause = "") {
  return {.event = event, .message = message, .cause = cause};
}
const TrainerWord kFinished = Word("finished"), kStopped = Word("stopped"),
                  kFailed = Word("failed", "the loss is not finite", "NAN"),
                  kDiskFull = Word("failed", "the disk is full", "STORAGE"), kSaidNothing = Word("");

TrainerEnd Exit(int code) { return {.code = code}; }
TrainerEnd Signal(int signal) { return {.signal = signal}; }
TrainerEnd Killed() { return {.signal = SIGKILL, .killed = true}; }
TrainerEnd KilledForMemory() { return {.signal = SIGKILL, .out_of_memory = true}; }
TrainerEnd Stalled() { return {.signal = SIGKILL, .killed = true, .stalled = "it said nothing"}; }
TrainerEnd NotStarted() { return {.failure = "no such program"}; }

v1::StartAttempt InGang(int node_rank) {
  v1::StartAttempt order;
  order.mutable_gang()->set_node_rank(node_rank);
  return order;
}
AttemptCourse Training(const v1::StartAttempt& order = {}) {
  AttemptCourse course(order);
  course.OnPrepared(absl::OkStatus());
  return course;
}
// Its trainer ended by itself with that word.
AttemptCourse After(const TrainerWord& word) {
  AttemptCourse course = Training();
  course.Hear(word);
  course.OnTrained(Exit(0));
  return course;
}
AttemptCourse Publishing() { return After(kFinished); }
AttemptCourse AwaitingServer() {
  AttemptCourse course = Training(InGang(0));
  course.OnTrained(Exit(kLostRankExitCode));
  return course;
}
// In kStoreCheckpoint.
AttemptCourse Lost() {
  AttemptCourse course = Training();
  course.OnTrained(Exit(1));
  return course;
}
AttemptCourse Stopped() { return After(kStopped); }

v1::AttemptReport ReportOf(const nlohmann::json& event) {
  v1::AttemptReport report;
  *report.mutable_trainer_event() = *JsonToStruct(event);
  return report;
}
v1::AttemptReport ReportOfArtifact() {
  v1::AttemptReport report;
  report.mutable_artifact_stored();
  return report;
}
v1::AttemptReport ReportOfEnd() {
  v1::AttemptReport report;
  report.mutable_ended()->set_outcome(v1::AttemptEnded::STOPPED);
  return report;
}
// One that an earlier agent left with such reports.
AttemptCourse Left(const std::vector<v1::AttemptReport>& reports) {
  AttemptCourse course;
  for (const v1::AttemptReport& report : reports) course.Recall(report);
  return course;
}

// --- From the order to the trainer.

TEST(AttemptCourseTest, AnOrderedOneIsPreparedTrainsIsPublishedAndSaysSo) {
  AttemptCourse course{v1::StartAttempt()};
  EXPECT_EQ(Name(course.stage()), "prepare");
  EXPECT_FALSE(course.left());
  EXPECT_FALSE(course.GoOn()) << "it goes on already";
  course.OnPrepared(absl::OkStatus());
  EXPECT_EQ(Name(course.stage()), "train");
  EXPECT_TRUE(course.Hear({.event = "finished", .artifact = "gguf_adapter"}));
  course.OnTrained(Exit(0));
  EXPECT_EQ(Name(course.stage()), "publish");
  EXPECT_EQ(course.artifact(), "gguf_adapter");
  EXPECT_EQ(Name(course.OnPublished(absl::OkStatus(), /*sent_all=*/false)), "stored");
  EXPECT_EQ(Name(course.stage()), "report end");
  EXPECT_EQ(EndOf(course), "FINISHED: ");
  EXPECT_FALSE(course.has_reported_end());
  course.OnEndReported();
  EXPECT_EQ(Name(course.stage()), "over");
  EXPECT_TRUE(course.has_reported_end());
}

TEST(AttemptCourseTest, UsesDevicesFromItsOrderToTheEndOfItsTrainer) {
  AttemptCourse course{v1::StartAttempt()};
  EXPECT_TRUE(course.uses_devices());
  course.OnPrepared(absl::OkStatus());
  EXPECT_TRUE(course.uses_devices());
  course.OnTrained(Exit(1));
  EXPECT_FALSE(course.uses_devices());
  EXPECT_FALSE(AwaitingServer().uses_devices());
  EXPECT_FALSE(Publishing().uses_devices());
}

TEST(AttemptCourseTest, OneThatCannotBePreparedEndsWithoutATrainer) {
  struct Row {
    Wish wish;
    absl::Status status;
    const char* end;
  };
  const Row rows[] = {
      {Wish::kNone, absl::InternalError("the disk is full"), "LOST: the disk is full"},
      {Wish::kNone, absl::FailedPreconditionError("'rows' is damaged"), "FAILED STORAGE: 'rows' is damaged"},
      {Wish::kStop, absl::CancelledError(""), "STOPPED: stopped"},
      {Wish::kStop, absl::FailedPreconditionError("'rows' is damaged"), "STOPPED: stopped"},
      {Wish::kSuspend, absl::CancelledError(""), "STOPPED: stopped"},
      {Wish::kAbandon, absl::CancelledError(""), "nothing"},
  };
  for (const Row& row : rows) {
    AttemptCourse course{v1::StartAttempt()};
    course.MakeWish(row.wish, kNow);
    course.OnPrepared(row.status);
    EXPECT_EQ(Name(course.stage()), "report end") << Name(row.wish) << ", " << row.status;
    EXPECT_EQ(EndOf(course), row.end) << Name(row.wish) << ", " << row.status;
  }
}

// --- Wishes, and what a trainer is told of them.

TEST(AttemptCourseTest, TheStrongerWishCountsWhicheverCameFirst) {
  for (const Wish first : kWishes) {
    for (const Wish second : kWishes) {
      AttemptCourse course = Training();
      course.MakeWish(first, kNow);
      course.MakeWish(second, kNow);
      EXPECT_EQ(course.wish(), std::max(first, second)) << Name(first) << ", " << Name(second);
    }
  }
}

// Each row: the graces of two stops, one after the other, and when the trainer is killed.
TEST(AttemptCourseTest, OfTwoStopsTheOneWithLessTimeCounts) {
  struct Row {
    int first, second, killed;
  };
  for (const Row& row : {Row{60, 5, 5}, Row{5, 60, 5}, Row{0, 60, 0}}) {
    for (const bool first_is_obeyed : {false, true}) {
      AttemptCourse course = Training();
      course.Stop(absl::Seconds(row.first), true, kNow);
      if (first_is_obeyed) course.CommandFor(kNow);
      course.Stop(absl::Seconds(row.second), true, kNow);
      course.CommandFor(kNow);
      EXPECT_EQ(course.KillTime(), kNow + absl::Seconds(row.killed)) << row.first << ", " << row.second;
    }
  }
}

TEST(AttemptCourseTest, ASuspensionHasAnEndOfItsOwnAndNeverMoreThanAStopThatIsObeyed) {
  AttemptCourse course = Training();
  course.Stop(absl::Seconds(60), true, kNow);
  course.CommandFor(kNow);
  course.MakeWish(Wish::kSuspend, kNow + absl::Seconds(20));
  course.CommandFor(kNow);
  EXPECT_EQ(course.KillTime(), kNow + absl::Seconds(20));
  course.Stop(absl::Seconds(1), true, kNow);
  course.CommandFor(kNow);
  EXPECT_EQ(course.KillTime(), kNow + absl::Seconds(20)) << "a weaker wish says nothing any more";

  AttemptCourse other = Training();
  other.Stop(absl::Seconds(20), true, kNow);
  other.CommandFor(kNow);
  other.MakeWish(Wish::kSuspend, kNow + absl::Seconds(60));
  other.CommandFor(kNow);
  EXPECT_EQ(other.KillTime(), kNow + absl::Seconds(20));
}

// Each row: whether it is of several nodes, whether the job goes on, and the first order.
TEST(AttemptCourseTest, OneOfSeveralNodesIsKilledAtOnceIfItsJobDoesNotGoOn) {
  struct Row {
    v1::StartAttempt order;
    bool job_goes_on;
    const char* told;
  };
  for (const Row& row : {Row{{}, false, "stop"}, Row{{}, true, "stop"}, Row{InGang(0), true, "stop"},
                         Row{InGang(0), false, "kill"}, Row{InGang(1), true, "stop"}, Row{InGang(1), false, "kill"}}) {
    AttemptCourse course = Training(row.order);
    course.Stop(kGrace, row.job_goes_on, kNow);
    EXPECT_EQ(Name(course.CommandFor(kNow)), row.told) << row.order.DebugString() << row.job_goes_on;
  }
}

TEST(AttemptCourseTest, ATrainerIsAskedForACheckpointOnceForEachRequest) {
  AttemptCourse course = Training();
  EXPECT_EQ(Name(course.CommandFor(kNow)), "none");
  for (int request = 0; request < 2; ++request) {
    course.AskForCheckpoint();
    EXPECT_EQ(Name(course.CommandFor(kNow)), "checkpoint");
    EXPECT_EQ(Name(course.CommandFor(kNow)), "none");
  }
  EXPECT_EQ(course.KillTime(), absl::InfiniteFuture());
}

TEST(AttemptCourseTest, ATrainerThatIsStoppedOrDoneIsAskedForNoCheckpoint) {
  AttemptCourse stopped = Training();
  stopped.AskForCheckpoint();
  stopped.Stop(kGrace, true, kNow);
  EXPECT_EQ(Name(stopped.CommandFor(kNow)), "stop");
  EXPECT_EQ(Name(stopped.CommandFor(kNow)), "none");

  AttemptCourse done = Training();
  done.AskForCheckpoint();
  done.Hear(kFinished);
  EXPECT_EQ(Name(done.CommandFor(kNow)), "none");
}

TEST(AttemptCourseTest, ATrainerIsAskedToStopOnceAndKilledWhenTheTimeIsOver) {
  for (const Wish wish : {Wish::kStop, Wish::kSuspend}) {
    AttemptCourse course = Training();
    course.MakeWish(wish, kNow + kGrace);
    EXPECT_EQ(Name(course.CommandFor(kNow)), "stop");
    EXPECT_EQ(course.KillTime(), kNow + kGrace);
    EXPECT_EQ(Name(course.CommandFor(kNow + kGrace - absl::Milliseconds(1))), "none");
    EXPECT_EQ(Name(course.CommandFor(kNow + kGrace)), "kill");
    EXPECT_EQ(Name(course.CommandFor(kNow + kGrace)), "kill");
  }
}

TEST(AttemptCourseTest, ATrainerThatIsForgottenIsKilledAtOnce) {
  AttemptCourse course = Training();
  course.Stop(kGrace, true, kNow);
  course.CommandFor(kNow);
  course.MakeWish(Wish::kAbandon, kNow + kGrace);
  EXPECT_EQ(Name(course.CommandFor(kNow)), "kill");
}

TEST(AttemptCourseTest, ATrainerHasTenSecondsAfterItsLastWordAndIsNotAskedToStop) {
  for (const TrainerWord& word : {kFinished, kFailed, kStopped}) {
    AttemptCourse course = Training();
    course.Hear(word);
    EXPECT_EQ(Name(course.CommandFor(kNow)), "none") << word.event;
    EXPECT_EQ(course.KillTime(), kNow + absl::Seconds(10)) << word.event;
    EXPECT_EQ(Name(course.CommandFor(kNow + absl::Seconds(9))), "none") << word.event;
    EXPECT_EQ(Name(course.CommandFor(kNow + absl::Seconds(10))), "kill") << word.event;
  }
}

TEST(AttemptCourseTest, AStopShortensTheTimeAfterALastWordAndNeverLengthensIt) {
  for (const auto& [grace, killed] : {std::pair(3, 3), {60, 10}}) {
    AttemptCourse course = Training();
    course.Hear(kFinished);
    course.CommandFor(kNow);
    course.Stop(absl::Seconds(grace), true, kNow);
    EXPECT_EQ(Name(course.CommandFor(kNow)), "none") << "it ends by itself";
    EXPECT_EQ(course.KillTime(), kNow + absl::Seconds(killed));
  }
}

TEST(AttemptCourseTest, OneThatNobodyAskedToBeQuietIsUndisturbed) {
  EXPECT_TRUE(Training().IsUndisturbed());
  for (const Wish wish : {Wish::kStop, Wish::kSuspend, Wish::kAbandon}) {
    AttemptCourse course = Training();
    course.MakeWish(wish, kNow + kGrace);
    EXPECT_FALSE(course.IsUndisturbed()) << Name(wish);
  }
  AttemptCourse course = Training();
  course.Hear(Word("progress"));
  EXPECT_TRUE(course.IsUndisturbed());
  course.Hear(kFinished);
  EXPECT_FALSE(course.IsUndisturbed());
}

// --- What a trainer says.

TEST(AttemptCourseTest, AWordIsReadFromTheEventOfATrainer) {
  const TrainerWord failed = WordOf(*JsonToStruct({{"event", "failed"}, {"message", "why"}, {"cause", "OOM"}}));
  EXPECT_EQ(failed.event, "failed");
  EXPECT_EQ(failed.message, "why");
  EXPECT_EQ(failed.cause, "OOM");
  EXPECT_EQ(failed.artifact, "");
  EXPECT_EQ(WordOf(*JsonToStruct({{"event", "finished"}, {"artifact", {{"kind", "model"}}}})).artifact, "model");
  const TrainerWord odd = WordOf(*JsonToStruct({{"event", 3}, {"artifact", "model"}}));
  EXPECT_EQ(odd.event, "");
  EXPECT_EQ(odd.artifact, "");
}

// Each row: a word, and whether it is reported and is the last one, on the node that leads and on another.
TEST(AttemptCourseTest, OnlyTheLeadingNodeReportsWordsAndAnotherHeedsOnlyItsFailure) {
  struct Row {
    const char* event;
    bool reported, last, last_elsewhere;
  };
  for (const Row& row :
       {Row{"started", true, false, false}, Row{"progress", true, false, false}, Row{"checkpoint", true, false, false},
        Row{"busy", false, false, false}, Row{"finished", true, true, false}, Row{"stopped", true, true, false},
        Row{"failed", true, true, true}}) {
    AttemptCourse leading = Training(InGang(0)), other = Training(InGang(1));
    EXPECT_EQ(leading.Hear(Word(row.event)), row.reported) << row.event;
    EXPECT_EQ(leading.HasLastWord(), row.last) << row.event;
    EXPECT_FALSE(other.Hear(Word(row.event))) << row.event;
    EXPECT_EQ(other.HasLastWord(), row.last_elsewhere) << row.event;
  }
  EXPECT_TRUE(Training().leads());
  EXPECT_TRUE(Training(InGang(0)).leads());
  EXPECT_FALSE(Training(InGang(1)).leads());
}

TEST(AttemptCourseTest, NothingFollowsALastWord) {
  AttemptCourse course = Training();
  EXPECT_TRUE(course.Hear(kStopped));
  for (const TrainerWord& word : {Word("progress"), kFinished, kFailed}) EXPECT_FALSE(course.Hear(word)) << word.event;
  course.OnTrained(Exit(0));
  EXPECT_EQ(EndOf(course), "STOPPED: stopped");
}

// --- How a trainer ended.

struct EndRow {
  Wish wish;
  TrainerWord last_word;
  TrainerEnd exit;
  const char* step;
  const char* end;
};
void PrintTo(const EndRow& row, std::ostream* out) {
  *out << "wish " << Name(row.wish) << ", said '" << row.last_word.event << "', code " << row.exit.code << ", signal "
       << row.exit.signal;
}
void ExpectEnd(const v1::StartAttempt& order, const EndRow& row) {
  AttemptCourse course = Training(order);
  course.MakeWish(row.wish, kNow + kGrace);
  course.Hear(row.last_word);
  course.OnTrained(row.exit);
  EXPECT_EQ(Name(course.stage()), row.step);
  EXPECT_EQ(EndOf(course), row.end);
}

class AttemptEndTest : public testing::TestWithParam<EndRow> {};
TEST_P(AttemptEndTest, FollowsFromWishLastWordAndExit) { ExpectEnd({}, GetParam()); }

constexpr char kOutOfMemory[] =
    "FAILED OOM: the node's memory ran out and its kernel killed the trainer; lower training.micro_batch_tokens or "
    "training.max_length, or use a node with more memory";
constexpr char kPublish[] = "publish", kStore[] = "store checkpoint", kReport[] = "report end",
               kAwait[] = "await server", kNothing[] = "nothing";

INSTANTIATE_TEST_SUITE_P(
    NotWishedFor, AttemptEndTest,
    testing::Values(EndRow{Wish::kNone, kFinished, Exit(0), kPublish, "FINISHED: "},
                    EndRow{Wish::kNone, kFinished, Killed(), kPublish, "FINISHED: "},
                    EndRow{Wish::kNone, kStopped, Exit(0), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kNone, kFailed, Exit(1), kReport, "FAILED NAN: the loss is not finite"},
                    EndRow{Wish::kNone, kDiskFull, Exit(1), kStore, "LOST STORAGE: the disk is full"},
                    EndRow{Wish::kNone, kSaidNothing, Exit(0), kStore,
                           "LOST CRASHED: the trainer ended with code 0 and no last word"},
                    EndRow{Wish::kNone, kSaidNothing, Exit(1), kStore,
                           "LOST CRASHED: the trainer ended with code 1 and no last word"},
                    EndRow{Wish::kNone, kSaidNothing, Exit(kLostRankExitCode), kStore,
                           "LOST CRASHED: the trainer ended with code 3 and no last word"},
                    EndRow{Wish::kNone, kSaidNothing, Signal(SIGSEGV), kStore,
                           "LOST CRASHED: the trainer was ended by signal 11 (Segmentation fault)"},
                    EndRow{Wish::kNone, kSaidNothing, Signal(SIGKILL), kStore,
                           "LOST CRASHED: the trainer was ended by signal 9 (Killed)"},
                    EndRow{Wish::kNone, kSaidNothing, KilledForMemory(), kReport, kOutOfMemory},
                    // Somebody else was killed for memory.
                    EndRow{Wish::kNone, kSaidNothing, TrainerEnd{.signal = SIGSEGV, .out_of_memory = true}, kStore,
                           "LOST CRASHED: the trainer was ended by signal 11 (Segmentation fault)"},
                    EndRow{Wish::kNone, kFinished, KilledForMemory(), kPublish, "FINISHED: "},
                    EndRow{Wish::kNone, kSaidNothing, Stalled(), kStore, "LOST STALLED: it said nothing"},
                    EndRow{Wish::kNone, kFinished, Stalled(), kPublish, "FINISHED: "},  // it was killed as it spoke
                    EndRow{Wish::kNone, kSaidNothing, NotStarted(), kStore, "LOST: no such program"}));

INSTANTIATE_TEST_SUITE_P(
    Stopped, AttemptEndTest,
    testing::Values(EndRow{Wish::kStop, kFinished, Exit(0), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kStopped, Exit(0), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kStopped, Killed(), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kFailed, Exit(1), kReport, "FAILED NAN: the loss is not finite"},
                    EndRow{Wish::kStop, kDiskFull, Exit(1), kStore, "LOST STORAGE: the disk is full"},
                    EndRow{Wish::kStop, kSaidNothing, Exit(0), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kSaidNothing, Signal(SIGSEGV), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kSaidNothing, KilledForMemory(), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kSaidNothing, Killed(), kStore, "STOPPED: its trainer was killed"},
                    EndRow{Wish::kStop, kSaidNothing, Stalled(), kStore, "STOPPED: its trainer was killed"},
                    EndRow{Wish::kStop, kSaidNothing, NotStarted(), kStore, "LOST: no such program"}));

// What has finished is published by the next agent.
INSTANTIATE_TEST_SUITE_P(
    Suspended, AttemptEndTest,
    testing::Values(EndRow{Wish::kSuspend, kFinished, Exit(0), kReport, kNothing},
                    EndRow{Wish::kSuspend, kStopped, Exit(0), kStore, "STOPPED: the agent was stopped"},
                    EndRow{Wish::kSuspend, kFailed, Exit(1), kReport, "FAILED NAN: the loss is not finite"},
                    EndRow{Wish::kSuspend, kSaidNothing, Exit(0), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kSuspend, kSaidNothing, Killed(), kStore, "STOPPED: its trainer was killed"}));

INSTANTIATE_TEST_SUITE_P(Forgotten, AttemptEndTest,
                         testing::Values(EndRow{Wish::kAbandon, kFinished, Exit(0), kReport, kNothing},
                                         EndRow{Wish::kAbandon, kStopped, Exit(0), kReport, kNothing},
                                         EndRow{Wish::kAbandon, kFailed, Exit(1), kReport, kNothing},
                                         EndRow{Wish::kAbandon, kSaidNothing, Stalled(), kReport, kNothing},
                                         EndRow{Wish::kAbandon, kSaidNothing, Killed(), kReport, kNothing}));

class FollowerEndTest : public testing::TestWithParam<EndRow> {};
TEST_P(FollowerEndTest, FollowsFromWishFailureAndExit) { ExpectEnd(InGang(1), GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Table, FollowerEndTest,
    testing::Values(EndRow{Wish::kNone, kFinished, Exit(0), kStore, "STOPPED: the leading node ended the run"},
                    EndRow{Wish::kNone, kSaidNothing, Exit(0), kStore, "STOPPED: the leading node ended the run"},
                    EndRow{Wish::kNone, kFinished, Exit(1), kStore,
                           "LOST CRASHED: the trainer ended with code 1 and no last word"},
                    EndRow{Wish::kNone, kFailed, Exit(1), kReport, "FAILED NAN: the loss is not finite"},
                    EndRow{Wish::kNone, kDiskFull, Exit(1), kStore, "LOST STORAGE: the disk is full"},
                    EndRow{Wish::kNone, kSaidNothing, Exit(kLostRankExitCode), kAwait,
                           "LOST PEER: ranks of another node are gone or did not come"},
                    EndRow{Wish::kNone, kSaidNothing, KilledForMemory(), kReport, kOutOfMemory},
                    EndRow{Wish::kStop, kSaidNothing, Exit(kLostRankExitCode), kStore, "STOPPED: stopped"},
                    EndRow{Wish::kStop, kSaidNothing, Killed(), kStore, "STOPPED: its trainer was killed"},
                    EndRow{Wish::kAbandon, kFailed, Exit(1), kReport, kNothing}));

class LeaderEndTest : public testing::TestWithParam<EndRow> {};
TEST_P(LeaderEndTest, FollowsFromWishLastWordAndExit) { ExpectEnd(InGang(0), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Table, LeaderEndTest,
                         testing::Values(EndRow{Wish::kNone, kFinished, Exit(0), kPublish, "FINISHED: "},
                                         EndRow{Wish::kNone, kSaidNothing, Exit(0), kStore,
                                                "LOST CRASHED: the trainer ended with code 0 and no last word"},
                                         EndRow{Wish::kNone, kSaidNothing, Exit(kLostRankExitCode), kAwait,
                                                "LOST PEER: ranks of another node are gone or did not come"},
                                         EndRow{Wish::kNone, kFailed, Exit(kLostRankExitCode), kReport,
                                                "FAILED NAN: the loss is not finite"}));

TEST(AttemptCourseTest, WhatATrainerWroteLastIsToldOfADeathThatItGaveNoReasonFor) {
  struct Row {
    TrainerWord last_word;
    TrainerEnd exit;
    bool told;
  };
  for (Row row : {Row{kSaidNothing, Exit(1), true}, Row{kSaidNothing, Stalled(), true},
                  Row{kSaidNothing, Exit(kLostRankExitCode), true}, Row{kSaidNothing, KilledForMemory(), false},
                  Row{kFailed, Exit(1), false}, Row{kStopped, Exit(0), false}}) {
    row.exit.log_tail = "line 1\nline 2";
    AttemptCourse course = Training(InGang(0));
    course.Hear(row.last_word);
    course.OnTrained(row.exit);
    const auto told = HasSubstr("; it said last:\nline 1\nline 2");
    if (row.told) {
      EXPECT_THAT(EndOf(course), told);
    } else {
      EXPECT_THAT(EndOf(course), Not(told));
    }
  }
}

// Each row: what the server said meanwhile, and the end after the checkpoint is stored.
TEST(AttemptCourseTest, OneWhosePeersAreGoneIsLostUnlessTheServerHasItStop) {
  struct Row {
    Wish wish;
    const char* end;
  };
  for (const Row& row :
       {Row{Wish::kNone, "LOST PEER: ranks of another node are gone or did not come"},
        Row{Wish::kStop, "STOPPED: stopped"}, Row{Wish::kSuspend, "STOPPED: stopped"}, Row{Wish::kAbandon, kNothing}}) {
    AttemptCourse course = AwaitingServer();
    course.MakeWish(row.wish, kNow);
    course.OnAwaited();
    EXPECT_EQ(Name(course.stage()), row.wish == Wish::kAbandon ? kReport : kStore) << Name(row.wish);
    if (row.wish != Wish::kAbandon) course.OnCheckpointStored();
    EXPECT_EQ(Name(course.stage()), kReport) << Name(row.wish);
    EXPECT_EQ(EndOf(course), row.end) << Name(row.wish);
  }
}

// --- Checkpoints at the end.

TEST(AttemptCourseTest, DevicesWaitLongerForTheCheckpointOfAStopThanForThatOfALoss) {
  EXPECT_EQ(Stopped().StorePatience(kNow), absl::Minutes(5));
  EXPECT_TRUE(Stopped().OffersLastCheckpoint());
  EXPECT_EQ(Lost().StorePatience(kNow), absl::Seconds(10));
  EXPECT_FALSE(Lost().OffersLastCheckpoint());
}

TEST(AttemptCourseTest, AnAgentThatEndsStoresCheckpointsForWhatIsLeftOfItsTime) {
  for (AttemptCourse course : {Stopped(), Lost()}) {
    course.MakeWish(Wish::kSuspend, kNow + kGrace);
    EXPECT_EQ(course.StorePatience(kNow), kGrace);
    EXPECT_EQ(course.StorePatience(kNow + absl::Seconds(50)), absl::Seconds(10));
    EXPECT_EQ(course.StorePatience(kNow + absl::Hours(1)), absl::ZeroDuration());
  }
}

TEST(AttemptCourseTest, TheEndIsReportedAfterTheCheckpointUnlessItIsForgottenMeanwhile) {
  for (AttemptCourse course : {Stopped(), Lost()}) {
    const std::string end = EndOf(course);
    AttemptCourse forgotten = course;
    course.OnCheckpointStored();
    EXPECT_EQ(Name(course.stage()), kReport);
    EXPECT_EQ(EndOf(course), end);
    forgotten.MakeWish(Wish::kAbandon, kNow);
    forgotten.OnCheckpointStored();
    EXPECT_EQ(Name(forgotten.stage()), kReport);
    EXPECT_EQ(EndOf(forgotten), kNothing);
    forgotten.OnEndReported();
    EXPECT_EQ(Name(forgotten.stage()), "over");
    EXPECT_FALSE(forgotten.has_reported_end());
  }
}

TEST(AttemptCourseTest, ATrainerThatCouldNotBeStartedForAForgottenOneSaysNothing) {
  AttemptCourse course = Training();
  course.MakeWish(Wish::kAbandon, kNow);
  course.OnTrained(NotStarted());
  course.OnCheckpointStored();
  EXPECT_EQ(EndOf(course), kNothing);
}

// --- Publication.

// Each row: what the uploads come to one after the other, and what is done after each; the end after the last one.
TEST(AttemptCourseTest, AnUploadIsTriedAgainWhileThatMayHelp) {
  const absl::Status away = absl::UnavailableError("no route"),
                     full = absl::ResourceExhaustedError("the store is full"),
                     refused = absl::InvalidArgumentError("another hash"),
                     precondition = absl::FailedPreconditionError("stale, or not stored");
  struct Row {
    std::vector<std::pair<absl::Status, bool>> uploads;  // each: what it came to, and whether all was sent
    std::vector<std::string> done;
    const char* end;
  };
  const Row rows[] = {
      {{{absl::OkStatus(), true}}, {"stored"}, "FINISHED: "},
      {{{absl::OkStatus(), false}}, {"stored"}, "FINISHED: "},
      {{{away, true}, {full, true}, {away, false}, {full, false}, {absl::OkStatus(), true}},
       {"again", "again", "again", "again", "stored"},
       "FINISHED: "},
      {{{refused, true}, {refused, true}, {absl::OkStatus(), true}}, {"again", "again", "stored"}, "FINISHED: "},
      {{{refused, true}, {refused, true}, {refused, true}}, {"again", "again", "over"}, "LOST: another hash"},
      {{{refused, true}, {away, true}, {refused, true}, {away, true}, {refused, true}},
       {"again", "again", "again", "again", "over"},
       "LOST: another hash"},
      {{{precondition, false}, {absl::OkStatus(), true}}, {"again with all", "stored"}, "FINISHED: "},
      {{{precondition, false}, {precondition, true}}, {"again with all", "over"}, kNothing},
      {{{precondition, true}}, {"over"}, kNothing},
  };
  for (const Row& row : rows) {
    AttemptCourse course = Publishing();
    std::vector<std::string> done;
    for (const auto& [status, sent_all] : row.uploads) {
      EXPECT_EQ(Name(course.stage()), kPublish);
      done.push_back(Name(course.OnPublished(status, sent_all)));
    }
    EXPECT_EQ(done, row.done);
    EXPECT_EQ(Name(course.stage()), kReport);
    EXPECT_EQ(EndOf(course), row.end);
  }
}

TEST(AttemptCourseTest, OnlyAServerThatIsAwayOrFullIsWaitedForWithoutEnd) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    if (absl::IsFailedPrecondition(status)) continue;
    AttemptCourse course = Publishing();
    int tries = 1;
    while (tries < 1000 && course.OnPublished(status, true) == AttemptCourse::Publication::kAgain) ++tries;
    const bool passes = absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
    EXPECT_EQ(tries, passes ? 1000 : 3) << status;
  }
}

TEST(AttemptCourseTest, AnAttemptWhosePlaceANewerOneTookIsForgotten) {
  AttemptCourse course = Publishing();
  course.OnPublished(absl::FailedPreconditionError("stale"), true);
  EXPECT_EQ(course.wish(), Wish::kAbandon);
}

TEST(AttemptCourseTest, AnUploadThatIsNotWantedAnyMoreIsNotTriedAgain) {
  struct Row {
    Wish wish;
    const char* end;
  };
  for (const Row& row :
       {Row{Wish::kStop, "STOPPED: stopped"}, Row{Wish::kSuspend, kNothing}, Row{Wish::kAbandon, kNothing}}) {
    for (int code = 1; code <= 16; ++code) {
      for (const bool sent_all : {false, true}) {
        const absl::Status status(static_cast<absl::StatusCode>(code), "why");
        AttemptCourse course = Publishing();
        course.MakeWish(row.wish, kNow);
        EXPECT_EQ(Name(course.OnPublished(status, sent_all)), "over") << Name(row.wish) << ", " << status;
        EXPECT_EQ(EndOf(course), row.end) << Name(row.wish) << ", " << status;
        EXPECT_EQ(course.wish(), row.wish);
      }
    }
  }
}

TEST(AttemptCourseTest, WhatIsStoredAsAStopOrTheEndOfTheAgentComesIsPublished) {
  for (const Wish wish : {Wish::kStop, Wish::kSuspend}) {
    AttemptCourse course = Publishing();
    course.MakeWish(wish, kNow);
    EXPECT_EQ(Name(course.OnPublished(absl::OkStatus(), true)), "stored");
    EXPECT_EQ(EndOf(course), "FINISHED: ");
  }
}

TEST(AttemptCourseTest, AnArtifactThatCannotBeReadLosesTheAttempt) {
  AttemptCourse course = Publishing();
  course.OnUnreadableArtifact(absl::DataLossError("adapter: cannot be read"));
  EXPECT_EQ(Name(course.stage()), kReport);
  EXPECT_EQ(EndOf(course), "LOST: adapter: cannot be read");
}

// --- Attempts that an earlier agent left.

// Each row: what it had reported, and how it goes on once the server wants that.
TEST(AttemptCourseTest, OneThatWasLeftGoesOnBehindItsLastWord) {
  const v1::AttemptReport started = ReportOf({{"event", "started"}}), stopped = ReportOf({{"event", "stopped"}}),
                          finished = ReportOf({{"event", "finished"}, {"artifact", {{"kind", "model"}}}}),
                          failed = ReportOf({{"event", "failed"}, {"message", "why"}, {"cause", "NAN"}}),
                          disk_full = ReportOf({{"event", "failed"}, {"message", "full"}, {"cause", "STORAGE"}});
  constexpr char kDied[] = "LOST: the agent of the node died, and the trainer with it";
  struct Row {
    std::vector<v1::AttemptReport> reports;
    const char* step;
    const char* end;
  };
  const Row rows[] = {
      {{}, kReport, kDied},
      {{started, ReportOf({{"event", "progress"}})}, kReport, kDied},
      {{started, stopped}, kStore, "STOPPED: stopped"},
      {{started, failed}, kReport, "FAILED NAN: why"},
      {{started, disk_full}, kReport, "LOST STORAGE: full"},
      {{started, finished}, kPublish, kNothing},
      {{started, finished, ReportOfArtifact()}, kReport, "FINISHED: "},
  };
  for (const Row& row : rows) {
    AttemptCourse course = Left(row.reports);
    EXPECT_TRUE(course.left());
    EXPECT_EQ(Name(course.stage()), "left");
    EXPECT_FALSE(course.uses_devices());
    EXPECT_TRUE(course.GoOn());
    EXPECT_FALSE(course.GoOn()) << "it goes on already";
    EXPECT_EQ(Name(course.stage()), "prepare");
    EXPECT_FALSE(course.uses_devices());
    course.OnPrepared(absl::OkStatus());
    EXPECT_EQ(Name(course.stage()), row.step) << row.reports.size();
    EXPECT_EQ(EndOf(course), row.end) << row.reports.size();
    if (row.step == kPublish) {
      EXPECT_EQ(course.artifact(), "model");
    }
  }
}

TEST(AttemptCourseTest, OneThatWasLeftWithItsEndReportedHasNothingToDo) {
  AttemptCourse course = Left({ReportOf({{"event", "stopped"}}), ReportOfEnd()});
  EXPECT_TRUE(course.has_reported_end());
  EXPECT_FALSE(course.GoOn());
  EXPECT_EQ(Name(course.stage()), "left");
}

TEST(AttemptCourseTest, OneThatWasLeftAndIsNotWantedAnyMoreEndsInTheQueueForItsRunFolder) {
  struct Row {
    Wish wish;
    const char* said;
    const char* end;
  };
  for (const Row& row :
       {Row{Wish::kStop, "finished", "STOPPED: stopped"}, Row{Wish::kStop, "started", "STOPPED: stopped"},
        Row{Wish::kSuspend, "finished", kNothing}, Row{Wish::kSuspend, "started", "STOPPED: stopped"},
        Row{Wish::kAbandon, "finished", kNothing}, Row{Wish::kAbandon, "started", kNothing}}) {
    AttemptCourse course = Left({ReportOf({{"event", row.said}})});
    course.GoOn();
    course.MakeWish(row.wish, kNow);
    course.OnPrepared(absl::CancelledError(""));
    EXPECT_EQ(EndOf(course), row.end) << Name(row.wish) << ", " << row.said;
  }
}

// --- Forgotten.

TEST(AttemptCourseTest, AForgottenOneThatWasLeftSaysNothingWhateverItsTrainerSaid) {
  const std::vector<v1::AttemptReport> kinds[] = {
      {},
      {ReportOf({{"event", "stopped"}})},
      {ReportOf({{"event", "failed"}, {"message", "why"}})},
      {ReportOf({{"event", "finished"}}), ReportOfArtifact()},
  };
  for (const auto& reports : kinds) {
    AttemptCourse course = Left(reports);
    course.GoOn();
    course.MakeWish(Wish::kAbandon, kNow);
    course.OnPrepared(absl::OkStatus());
    if (course.stage() == AttemptCourse::Stage::kStoreCheckpoint) course.OnCheckpointStored();
    EXPECT_EQ(Name(course.stage()), kReport);
    EXPECT_EQ(EndOf(course), kNothing) << (reports.empty() ? "" : reports[0].ShortDebugString());
  }
}

TEST(AttemptCourseTest, AForgottenOneSaysNothingOfAnUploadThatCameThrough) {
  AttemptCourse course = Publishing();
  course.MakeWish(Wish::kAbandon, kNow);
  course.OnPublished(absl::OkStatus(), true);
  EXPECT_EQ(EndOf(course), kNothing);
}

}  // namespace
}  // namespace luthier
