// Between the core's plain structs and the messages of the API.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/core/state.h"

namespace luthier {

google::protobuf::Timestamp ToProto(absl::Time time);

// What the store holds of a job besides its columns: `spec` (a FineTuningJob with spec, labels, resolved, warnings; never
// changes) and Job::report (a FineTuningJob with progress, evaluations, summary, failure).
struct StoredSpec {
  v1::FineTuningJob job;
  std::string trainer_spec_json;
  v1::StartAttempt start;  // inputs; also carries the trainer spec when serialized
};
std::string Serialize(const StoredSpec& spec);
StoredSpec ParseStoredSpec(const std::string& bytes);

v1::FineTuningJob ToProto(const Job& job, const std::string& spec);
v1::JobEvent ToProto(const Event& event);
v1::Node ToProto(const Node& node, const State& state);
v1::ModelVersion ToProto(const ModelVersion& version);

// Understands a report of an agent; `before` is Job::report of its job. Errors: INVALID_ARGUMENT.
absl::StatusOr<Report> FromProto(const v1::AttemptReport& report, const std::string& before);

}  // namespace luthier
