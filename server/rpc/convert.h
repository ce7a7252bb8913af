// Between the core's plain structs and the messages of the API.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/core/state.h"
#include "server/store/store.h"

namespace luthier {

google::protobuf::Timestamp ToProto(absl::Time time);
google::protobuf::Duration ToProto(absl::Duration duration);
absl::Duration FromProto(const google::protobuf::Duration& duration);

// A number that somebody else gave, as a count: 0 if it is negative or no number.
int64_t CountOf(double number);

// The most that a Duration of protobuf may hold, 10,000 years: no client could print a job with more.
inline constexpr absl::Duration kLongestDuration = absl::Seconds(315576000000);

// The etag of a job is its revision. False if `etag` is none.
bool ParseEtag(const std::string& etag, int& revision);

// The same bytes for the same message, whatever order its maps are in.
std::string DeterministicBytes(const google::protobuf::Message& message);

// What the record holds of a job besides its columns and Job::report (a FineTuningJob with progress, evaluations,
// summary, failure). Never changes.
struct StoredSpec {
  v1::FineTuningJob job;   // uid, spec, labels, resolved, warnings
  v1::StartAttempt start;  // inputs, trainer spec
};
// Of bytes of the two messages. The part that jobs of one plan share is SpecBytes::plan, and what a job has besides
// (uid, labels, sweep) are bytes of a FineTuningJob, SpecBytes::own; in old records all of it is there.
std::string JoinStoredSpec(const std::string& job, const std::string& start);
StoredSpec ParseStoredSpec(const SpecBytes& bytes);

// `spec`: StoredSpec::job.
v1::FineTuningJob ToProto(const Job& job, const v1::FineTuningJob& spec);
v1::FineTuningJob ToProto(const RecordedJob& recorded);
v1::JobEvent ToProto(const Event& event);
v1::Node ToProto(const Node& node, const State& state, absl::Time now);
v1::ModelVersion ToProto(const ModelVersion& version);

// What models are compared by: names of figures of an Evaluation, and the figure, if it has that one.
inline constexpr const char* kMetricNames = "loss, token_accuracy, exact_match, json_equality or field_f1";
bool IsMetric(const std::string& name);
std::optional<double> MetricOf(const v1::Evaluation& evaluation, const std::string& name);

// A report of an agent, understood as far as it can be without the job. Reading one takes longer than deciding it, so
// it is done outside of the loop.
struct AgentReport {
  Report report;                                   // but for `job_report`
  std::function<void(v1::FineTuningJob&)> update;  // of Job::report; none: it stays
  std::optional<v1::JobProgress> progress;         // if it is one
};
// `node`: whose agent sent it. Errors: INVALID_ARGUMENT.
absl::StatusOr<AgentReport> ReadReport(const v1::AttemptReport& report, const std::string& node);
// `before`: Job::report of its job.
Report CompleteReport(AgentReport read, const std::string& before);

}  // namespace luthier
