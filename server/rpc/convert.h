// Between the core's plain structs and the messages of the API.
#pragma once

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

// The same bytes for the same message, whatever order its maps are in.
std::string DeterministicBytes(const google::protobuf::Message& message);

// What the record holds of a job besides its columns and Job::report (a FineTuningJob with progress, evaluations, summary,
// failure). Never changes.
struct StoredSpec {
  v1::FineTuningJob job;  // uid, spec, labels, resolved, warnings
  v1::StartAttempt start;  // inputs, trainer spec
};
std::string Serialize(const StoredSpec& spec);
StoredSpec ParseStoredSpec(const std::string& bytes);

// `spec`: StoredSpec::job.
v1::FineTuningJob ToProto(const Job& job, const v1::FineTuningJob& spec);
v1::FineTuningJob ToProto(const RecordedJob& recorded);
v1::JobEvent ToProto(const Event& event);
v1::Node ToProto(const Node& node, const State& state);
v1::ModelVersion ToProto(const ModelVersion& version);

// The progress that a report carries, if it is a trainer's `progress` event.
std::optional<v1::JobProgress> ProgressOf(const v1::AttemptReport& report);

// Understands a report of an agent; `before` is Job::report of its job. Errors: INVALID_ARGUMENT.
absl::StatusOr<Report> FromProto(const v1::AttemptReport& report, const std::string& before);

}  // namespace luthier
