// Messages of agents and bytes of the record, also where they hold what nobody of us writes.
#include "server/rpc/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1700000000);

v1::AttemptReport EventOf(const std::string& type, const std::map<std::string, double>& numbers) {
  v1::AttemptReport report;
  report.set_attempt("jobs/j/attempts/1");
  auto& fields = *report.mutable_trainer_event()->mutable_fields();
  fields["event"].set_string_value(type);
  for (const auto& [name, number] : numbers) fields[name].set_number_value(number);
  return report;
}

v1::FineTuningJob JobAfter(const v1::AttemptReport& message) {
  absl::StatusOr<AgentReport> read = ReadReport(message, "n1");
  EXPECT_TRUE(read.ok()) << read.status();
  v1::FineTuningJob job;
  EXPECT_TRUE(job.ParseFromString(CompleteReport(std::move(read).value(), "").job_report.value()));
  return job;
}

v1::JobEvent EventAfter(const v1::AttemptReport& message) {
  const absl::StatusOr<AgentReport> read = ReadReport(message, "n1");
  EXPECT_TRUE(read.ok()) << read.status();
  return ToProto(read.value().report.events.at(0));
}

v1::AttemptReport FailureOf(int attempt, const std::string& message) {
  v1::AttemptReport report;
  report.set_attempt(absl::StrCat("jobs/j/attempts/", attempt));
  report.mutable_ended()->set_outcome(v1::AttemptEnded::FAILED);
  report.mutable_ended()->set_cause("OOM");
  report.mutable_ended()->set_message(message);
  return report;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(ConvertTest, NumbersOfAnAgentThatAreNoneReadAsZeroAndHugeOnesAsTheMost) {
  for (const double number : {kNan, kInfinity, -kInfinity, -1e300, 1e300}) {
    SCOPED_TRACE(number);
    const int64_t count = number == 1e300 ? int64_t{9'000'000'000'000'000'000} : 0;
    const int64_t seconds = number == 1e300 ? 1'000'000'000 : 0;
    const v1::JobProgress progress = JobAfter(EventOf("progress", {{"step", number},
                                                                   {"tokens", number},
                                                                   {"loss", number},
                                                                   {"eta_seconds", number},
                                                                   {"step_seconds", number}}))
                                         .progress();
    EXPECT_EQ(progress.step(), count);
    EXPECT_EQ(progress.tokens(), count);
    EXPECT_TRUE(std::isfinite(progress.loss()));
    EXPECT_EQ(progress.eta().seconds(), seconds);
    EXPECT_EQ(progress.step_duration().seconds(), seconds);
    const v1::RunSummary summary =
        JobAfter(EventOf("finished", {{"published_step", number}, {"seconds", number}})).summary();
    EXPECT_EQ(summary.published_step(), count);
    EXPECT_EQ(summary.duration().seconds(), seconds);
  }
}

// No program could read a page of events with such a number.
TEST(ConvertTest, NumbersOfAnEventThatAreNoneAreNullWhereverTheyStand) {
  v1::AttemptReport message = EventOf("checkpoint", {{"step", 5}, {"loss", kNan}});
  google::protobuf::Value& files = (*message.mutable_trainer_event()->mutable_fields())["files"];
  files.mutable_list_value()->add_values()->set_number_value(kInfinity);
  (*files.mutable_list_value()->add_values()->mutable_struct_value()->mutable_fields())["bytes"].set_number_value(kNan);
  const v1::JobEvent event = EventAfter(message);
  EXPECT_EQ(
      MessageToJson(event.data()),
      nlohmann::json::parse(R"({"event": "checkpoint", "step": 5, "loss": null, "files": [null, {"bytes": null}]})"));
}

TEST(ConvertTest, AnEventOfATrainerIsTakenForNoneOfTheServer) {
  EXPECT_EQ(EventAfter(EventOf("warning", {})).type(), "warning");
  EXPECT_EQ(EventAfter(EventOf("of a newer trainer", {})).type(), "of a newer trainer");
  EXPECT_EQ(EventAfter(EventOf("published", {})).type(), "trainer.published");
  EXPECT_EQ(EventAfter(EventOf("state", {})).type(), "trainer.state");
  EXPECT_EQ(EventAfter(EventOf("", {})).type(), "trainer.");
}

TEST(ConvertTest, LinesOfALogAreShortAndHaveNoControlCharactersWhoeverSendsThem) {
  v1::AttemptReport message;
  message.set_attempt("jobs/j/attempts/1");
  message.mutable_log_lines()->add_lines("\x1b[2Jred\n" + std::string(1 << 20, 'x'));
  const v1::JobEvent event = EventAfter(message);
  EXPECT_EQ(event.type(), "log");
  EXPECT_EQ(event.message(), "\uFFFD[2Jred\uFFFD" + std::string(4096 - 12, 'x'));
}

TEST(ConvertTest, AnAttemptThatIsSaidToHaveFinishedWithoutAResultIsLostAndSaysWhy) {
  v1::AttemptReport report;
  report.set_attempt("jobs/j/attempts/2");
  report.mutable_ended()->set_outcome(v1::AttemptEnded::FINISHED);
  const absl::StatusOr<AgentReport> read = ReadReport(report, "n1");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->report.input, JobInput::kAttemptLost);
  EXPECT_EQ(read->report.message, "its agent says that it finished, but its result was not reported");
}

TEST(ConvertTest, AFinishedAttemptNamesItsWorstRowsAndNotThoseOfTheAttemptBefore) {
  const auto finished = [](double line) {
    v1::AttemptReport report = EventOf("finished", {});
    google::protobuf::Value& rows = (*report.mutable_trainer_event()->mutable_fields())["worst_rows"];
    auto& row = *rows.mutable_list_value()->add_values()->mutable_struct_value()->mutable_fields();
    row["file"].set_string_value("train.jsonl");
    row["line"].set_number_value(line);
    row["first_loss"].set_number_value(4.5);
    row["last_loss"].set_number_value(3.25);
    return report;
  };
  const Report before = CompleteReport(ReadReport(finished(3), "n1").value(), "");
  v1::FineTuningJob job;
  ASSERT_TRUE(job.ParseFromString(
      CompleteReport(ReadReport(finished(17), "n1").value(), before.job_report.value()).job_report.value()));
  ASSERT_EQ(job.summary().worst_rows_size(), 1);
  const v1::RowLoss& row = job.summary().worst_rows(0);
  EXPECT_EQ(row.file(), "train.jsonl");
  EXPECT_EQ(row.line(), 17);
  EXPECT_EQ(row.first_loss(), 4.5);
  EXPECT_EQ(row.last_loss(), 3.25);
}

TEST(ConvertTest, WhatAnAttemptFinishedThatWasLostIsNotShownOfTheNext) {
  v1::AttemptReport finished = EventOf("finished", {{"train_loss", 0.5}});
  (*finished.mutable_trainer_event()->mutable_fields())["stop_reason"].set_string_value("COMPLETED");
  Job job;
  job.report = CompleteReport(ReadReport(finished, "n1").value(), "").job_report.value();
  const auto shows = [&](JobState state) {
    job.state = state;
    const v1::FineTuningJob shown = ToProto(job, v1::FineTuningJob());
    EXPECT_EQ(shown.has_summary(), shown.stop_reason() == "COMPLETED");
    return shown.has_summary();
  };
  EXPECT_TRUE(shows(JobState::kPublishing));
  EXPECT_FALSE(shows(JobState::kRecovering));
  job.report = CompleteReport(ReadReport(EventOf("started", {}), "n2").value(), job.report).job_report.value();
  EXPECT_FALSE(shows(JobState::kRunning));
}

TEST(ConvertTest, WhyAJobFailedIsNotWhyAnEarlierAttemptDid) {
  const Report first = CompleteReport(ReadReport(FailureOf(1, "first"), "n1").value(), "");
  const Report second = CompleteReport(ReadReport(FailureOf(2, "second"), "n2").value(), first.job_report.value());
  EXPECT_EQ(second.message, "second");
  Job job;
  job.id = "j";
  job.state = JobState::kFailed;
  job.report = second.job_report.value();
  job.attempt = 2;
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().message(), "second");
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().node(), "nodes/n2");
  job.attempt = 3;  // it was lost
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().cause(), v1::JobFailure::WORKER_LOST);
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().node(), "");
}

// The trainers of both nodes of an attempt fail, and the leading one's says so before the other's end is reported.
TEST(ConvertTest, OfSeveralNodesThatFailTheFirstSaysWhyAndEachItsOwnWords) {
  v1::AttemptReport said = EventOf("failed", {});
  (*said.mutable_trainer_event()->mutable_fields())["message"].set_string_value("the loss is not finite");
  const Report first = CompleteReport(ReadReport(said, "n1").value(), "");
  const Report second = CompleteReport(ReadReport(FailureOf(1, "out of memory"), "n2").value(), *first.job_report);
  EXPECT_EQ(second.node, "n2");
  EXPECT_EQ(second.message, "out of memory");
  const Report third = CompleteReport(ReadReport(FailureOf(1, "failed"), "n1").value(), *second.job_report);
  EXPECT_EQ(third.message, "the loss is not finite");
  v1::FineTuningJob job;
  ASSERT_TRUE(job.ParseFromString(*third.job_report));
  EXPECT_EQ(job.failure().message(), "the loss is not finite");
  EXPECT_EQ(job.failure().node(), "nodes/n1");
}

TEST(ConvertTest, AJobThatLostItsAttemptsNamesTheNodes) {
  Job job;
  job.id = "j";
  job.state = JobState::kFailed;
  job.lost_attempts = 6;
  job.lost_on = {"n2", "n2", "n2", "n2", "n2", "n2"};
  v1::JobFailure failure = ToProto(job, v1::FineTuningJob()).failure();
  EXPECT_EQ(failure.node(), "nodes/n2");
  EXPECT_EQ(failure.message(), "6 attempts were lost on node n2; see `luthier job logs j` for what happened there");
  job.lost_on.back() = "n1";
  failure = ToProto(job, v1::FineTuningJob()).failure();
  EXPECT_EQ(failure.node(), "");
  EXPECT_EQ(failure.message(),
            "6 attempts were lost on nodes n1, n2; see `luthier job logs j` for what happened there");
}

// As zero, a loss that is no number would be the best of its sweep.
TEST(ConvertTest, AnEvaluationHasOnlyTheFiguresThatAreNumbers) {
  const v1::FineTuningJob job =
      JobAfter(EventOf("evaluation", {{"loss", kNan}, {"token_accuracy", 0.5}, {"rows", 200}, {"scored_rows", 4}}));
  ASSERT_EQ(job.evaluations_size(), 1);
  EXPECT_EQ(job.evaluations(0).rows(), 200);
  EXPECT_EQ(job.evaluations(0).scored_rows(), 4) << "an exact match of 4 answers is not one of 200 rows";
  EXPECT_FALSE(job.evaluations(0).has_loss());
  EXPECT_FALSE(MetricOf(job.evaluations(0), "loss").has_value());
  EXPECT_EQ(MetricOf(job.evaluations(0), "token_accuracy"), 0.5);
}

TEST(ConvertTest, OfSeveralNodesAJobNamesTheOneThatLeadsAndTheOthersInTheirOrder) {
  Job job;
  job.id = "j";
  job.node = "n1";
  for (const char* node : {"n3", "n2"}) job.others.emplace_back().node = node;
  const v1::FineTuningJob message = ToProto(job, v1::FineTuningJob());
  EXPECT_EQ(message.node(), "nodes/n1");
  ASSERT_EQ(message.other_nodes_size(), 2);
  EXPECT_EQ(message.other_nodes(0), "nodes/n3");
  EXPECT_EQ(message.other_nodes(1), "nodes/n2");
}

TEST(ConvertTest, ANodeShowsWhereOthersReachItIfTheyDo) {
  Node node;
  node.id = "n1";
  EXPECT_EQ(ToProto(node, State(), kNow).gang_address(), "");
  node.gang_address = "10.0.0.1";
  node.gang_port = 29400;
  EXPECT_EQ(ToProto(node, State(), kNow).gang_address(), "10.0.0.1:29400");
}

TEST(ConvertTest, ANodeSaysWithWhichOthersItDidNotMeet) {
  Node node;
  node.id = "n1";
  node.ready = true;
  EXPECT_EQ(ToProto(node, State(), kNow).state_reason(), "");
  node.missed["n2"].times = node.missed["n3"].times = 1;
  const v1::Node message = ToProto(node, State(), kNow);
  EXPECT_EQ(message.state(), v1::Node::READY);
  EXPECT_EQ(message.state_reason(),
            "ranks here and on n2, n3 did not find one another (is there a firewall?): a job gets both only if there "
            "are no others; `luthier node undrain n1` forgets that");
}

TEST(ConvertTest, ANodeSaysWhileItsAgentMayComeBackThatNothingIsGivenUp) {
  State state;
  state.Register(Node{.id = "n1"}, {}, kNow);
  const auto shown = [&](absl::Duration later) { return ToProto(state.nodes().at("n1"), state, kNow + later); };
  EXPECT_EQ(shown(absl::Seconds(1)).state(), v1::Node::READY);
  state.Heartbeat("n1", "", {}, /*leaving=*/true, kNow);
  EXPECT_EQ(shown(absl::Seconds(1)).state(), v1::Node::DRAINED) << "its agent is there, and gets nothing any more";
  EXPECT_EQ(shown(absl::Seconds(1)).state_reason(), "its agent is about to end");
  state.Disconnect("n1");
  EXPECT_EQ(shown(kLease - absl::Seconds(1)).state(), v1::Node::DISCONNECTED);
  EXPECT_THAT(shown(kLease - absl::Seconds(1)).state_reason(),
              testing::HasSubstr("has 30s from when it was last heard, or the server was started, to come back"));
  EXPECT_EQ(shown(kLease).state(), v1::Node::LOST);
  EXPECT_EQ(shown(kLease).state_reason(), "");
}

TEST(ConvertTest, ASpecIsThatOfItsPlanWithWhatTheJobHasBesides) {
  v1::FineTuningJob shared, own;
  shared.mutable_spec()->set_output_model("intents");
  own.set_uid("uid");
  v1::StartAttempt start;
  start.set_trainer_spec_json("{}");
  const std::string plan = JoinStoredSpec(shared.SerializeAsString(), start.SerializeAsString());
  const std::string whole =
      JoinStoredSpec(shared.SerializeAsString() + own.SerializeAsString(), start.SerializeAsString());
  const SpecBytes of_now{std::make_shared<const std::string>(plan), own.SerializeAsString()}, of_before{nullptr, whole};
  for (const SpecBytes& bytes : {of_now, of_before}) {
    const StoredSpec spec = ParseStoredSpec(bytes);
    EXPECT_EQ(spec.job.spec().output_model(), "intents");
    EXPECT_EQ(spec.job.uid(), "uid");
    EXPECT_EQ(spec.start.trainer_spec_json(), "{}");
  }
}

TEST(ConvertTest, ASpecWhoseBytesWereDamagedSaysNothing) {
  for (const char* bytes : {"", "spec", ":", "9", "99999999999999999999:x", "5:ab"}) {
    const StoredSpec spec = ParseStoredSpec({nullptr, bytes});
    EXPECT_EQ(spec.job.uid(), "") << bytes;
    EXPECT_EQ(spec.start.trainer_spec_json(), "") << bytes;
  }
}

}  // namespace
}  // namespace luthier
