// Messages of agents and bytes of the record, also where they hold what nobody of us writes.
#include "server/rpc/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

v1::AttemptReport EventOf(const std::string& type, const std::map<std::string, double>& numbers) {
  v1::AttemptReport report;
  report.set_attempt("jobs/j/attempts/1");
  auto& fields = *report.mutable_trainer_event()->mutable_fields();
  fields["event"].set_string_value(type);
  for (const auto& [name, number] : numbers) fields[name].set_number_value(number);
  return report;
}

v1::FineTuningJob JobAfter(const v1::AttemptReport& message) {
  absl::StatusOr<AgentReport> read = ReadReport(message);
  EXPECT_TRUE(read.ok()) << read.status();
  v1::FineTuningJob job;
  EXPECT_TRUE(job.ParseFromString(CompleteReport(std::move(read).value(), "").job_report.value()));
  return job;
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

TEST(ConvertTest, WhyAJobFailedIsNotWhyAnEarlierAttemptDid) {
  const Report first = CompleteReport(ReadReport(FailureOf(1, "first")).value(), "");
  const Report second = CompleteReport(ReadReport(FailureOf(2, "second")).value(), first.job_report.value());
  EXPECT_EQ(second.message, "second");
  Job job;
  job.id = "j";
  job.state = JobState::kFailed;
  job.report = second.job_report.value();
  job.attempt = 2;
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().message(), "second");
  job.attempt = 3;  // it was lost
  EXPECT_EQ(ToProto(job, v1::FineTuningJob()).failure().cause(), v1::JobFailure::WORKER_LOST);
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
  EXPECT_EQ(ToProto(node, State()).gang_address(), "");
  node.gang_address = "10.0.0.1";
  node.gang_port = 29400;
  EXPECT_EQ(ToProto(node, State()).gang_address(), "10.0.0.1:29400");
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
