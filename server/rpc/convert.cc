#include "server/rpc/convert.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "lib/base/json_text.h"
#include "lib/base/status_macros.h"
#include "lib/base/utf8.h"
#include "lib/wire/json_wire.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

using nlohmann::json;

google::protobuf::Duration Seconds(double seconds) {
  google::protobuf::Duration duration;
  const auto nanos = static_cast<int64_t>((seconds > 0 ? std::min(seconds, 1e9) : 0.0) * 1e9);
  duration.set_seconds(nanos / 1000000000);
  duration.set_nanos(static_cast<int32_t>(nanos % 1000000000));
  return duration;
}

// A message can hold numbers that no JSON can, and one of them would spoil every answer that shows it.
void MakeFinite(google::protobuf::Struct& event);
void MakeFinite(google::protobuf::Value& value) {
  if (value.has_struct_value()) MakeFinite(*value.mutable_struct_value());
  if (value.has_list_value()) {
    for (google::protobuf::Value& element : *value.mutable_list_value()->mutable_values()) MakeFinite(element);
  }
  if (value.has_number_value() && !std::isfinite(value.number_value()))
    value.set_null_value(google::protobuf::NULL_VALUE);
}
void MakeFinite(google::protobuf::Struct& event) {
  for (auto& [name, value] : *event.mutable_fields()) MakeFinite(value);
}

// Of a trainer's event.
std::optional<double> NumberIn(const json& event, const char* field) {
  if (!event.contains(field) || !event[field].is_number()) return std::nullopt;
  return event[field].get<double>();
}
// What is absent or null reads as zero.
double Number(const json& event, const char* field) { return NumberIn(event, field).value_or(0.0); }
int64_t Count(const json& event, const char* field) { return CountOf(Number(event, field)); }

v1::JobProgress Progress(const json& event) {
  v1::JobProgress progress;
  progress.set_step(Count(event, "step"));
  progress.set_total_steps(Count(event, "total_steps"));
  progress.set_epoch(Number(event, "epoch"));
  progress.set_loss(Number(event, "loss"));
  progress.set_learning_rate(Number(event, "learning_rate"));
  progress.set_grad_norm(Number(event, "grad_norm"));
  progress.set_tokens(Count(event, "tokens"));
  progress.set_tokens_per_second(Number(event, "tokens_per_second"));
  *progress.mutable_step_duration() = Seconds(Number(event, "step_seconds"));
  *progress.mutable_eta() = Seconds(Number(event, "eta_seconds"));
  progress.set_peak_memory_bytes(Count(event, "peak_memory_bytes"));
  return progress;
}

v1::Evaluation EvaluationOf(const json& event) {
  v1::Evaluation evaluation;
  evaluation.set_step(Count(event, "step"));
  evaluation.set_split(TextOf(event, "split"));
  evaluation.set_model(TextOf(event, "model"));
  evaluation.set_rows(Count(event, "rows"));
  evaluation.set_scored_rows(Count(event, "scored_rows"));
  if (const auto figure = NumberIn(event, "loss")) evaluation.set_loss(*figure);
  if (const auto figure = NumberIn(event, "token_accuracy")) evaluation.set_token_accuracy(*figure);
  if (const auto figure = NumberIn(event, "exact_match")) evaluation.set_exact_match(*figure);
  if (const auto figure = NumberIn(event, "json_equality")) evaluation.set_json_equality(*figure);
  if (const auto figure = NumberIn(event, "field_f1")) evaluation.set_field_f1(*figure);
  evaluation.set_best(event.contains("best") && event["best"] == true);
  for (const json& row : event.value("examples", json::array())) {
    v1::EvaluationExample& example = *evaluation.add_examples();
    example.set_prompt(TextOf(row, "prompt"));
    example.set_expected(TextOf(row, "expected"));
    example.set_answer(TextOf(row, "answer"));
  }
  return evaluation;
}

// Empty if there is none.
std::string NodeName(const std::string& id) { return id.empty() ? "" : absl::StrCat("nodes/", id); }

v1::JobFailure FailureOfLostAttempts(const Job& job) {
  v1::JobFailure failure;
  const std::set<std::string> nodes(job.lost_on.begin(), job.lost_on.end());
  if (nodes.size() == 1) failure.set_node(NodeName(*nodes.begin()));
  const std::string logs = absl::StrCat("see `luthier job logs ", job.id, "` for ");
  if (job.crashed_on.size() >= kMaxCrashNodes) {
    failure.set_cause(v1::JobFailure::CRASHED);
    failure.set_message(absl::StrCat(CrashText(job),
                                     ", so that the job is more likely to be the reason than they are; ", logs,
                                     "what it said last"));
  } else {
    failure.set_cause(v1::JobFailure::WORKER_LOST);
    const std::string where =
        nodes.empty() ? "" : absl::StrCat(" on ", nodes.size() > 1 ? "nodes " : "node ", absl::StrJoin(nodes, ", "));
    failure.set_message(
        absl::StrCat(job.lost_attempts, " attempts were lost", where, "; ", logs, "what happened there"));
  }
  return failure;
}

// The newest evaluation of each split and model.
void Replace(v1::FineTuningJob& report, const v1::Evaluation& evaluation) {
  for (v1::Evaluation& old : *report.mutable_evaluations()) {
    if (old.split() == evaluation.split() && old.model() == evaluation.model()) {
      old = evaluation;
      return;
    }
  }
  *report.add_evaluations() = evaluation;
}

v1::RowLoss RowLossOf(const json& row) {
  v1::RowLoss loss;
  loss.set_file(TextOf(row, "file"));
  loss.set_line(Count(row, "line"));
  loss.set_first_loss(Number(row, "first_loss"));
  loss.set_last_loss(Number(row, "last_loss"));
  return loss;
}

void SetSummary(v1::FineTuningJob& report, const json& event) {
  v1::RunSummary& summary = *report.mutable_summary();
  summary.set_trainable_parameters(Count(event, "trainable_parameters"));
  summary.set_artifact_bytes(Count(event.value("artifact", json::object()), "bytes"));
  summary.set_peak_memory_bytes(Count(event, "peak_memory_bytes"));
  *summary.mutable_step_duration() = Seconds(Number(event, "step_seconds"));
  *summary.mutable_duration() = Seconds(Number(event, "seconds"));
  summary.set_train_loss(Number(event, "train_loss"));
  summary.set_published_step(Count(event, "published_step"));
  summary.clear_worst_rows();
  for (const json& row : event.value("worst_rows", json::array())) *summary.add_worst_rows() = RowLossOf(row);
  report.set_stop_reason(TextOf(event, "stop_reason"));
  // Jobs are compared by what they publish, which need not be what was evaluated last.
  if (report.has_best_validation() && report.best_validation().step() == summary.published_step())
    Replace(report, report.best_validation());
}

v1::JobFailure::Cause CauseOf(const std::string& name) {
  v1::JobFailure::Cause cause = v1::JobFailure::INTERNAL;
  if (name == "NAN") return v1::JobFailure::NON_FINITE;
  v1::JobFailure::Cause_Parse(name, &cause);
  return cause;
}

v1::JobFailure FailureOn(const std::string& node, const std::string& cause, const std::string& message) {
  v1::JobFailure failure;
  failure.set_cause(CauseOf(cause));
  failure.set_message(message);
  failure.set_node(NodeName(node));
  return failure;
}

// The report says of which attempt it is: a user may have the job tried again.
void SetFailure(v1::FineTuningJob& report, int attempt, const v1::JobFailure& failure) {
  *report.mutable_failure() = failure;
  report.set_attempt(attempt);
}

// 0: on record since before reports said so.
bool HasFailureOf(int attempt, const v1::FineTuningJob& report) {
  return report.has_failure() && (report.attempt() == attempt || report.attempt() == 0);
}

// What a trainer says is no event of the server's own.
std::string TypeOf(const std::string& event) {
  static const std::set<std::string> ours = {"", "state", "updated", "published", "checkpoint_stored", "log"};
  return ours.contains(event) ? absl::StrCat("trainer.", event) : event;
}

void ReadTrainerEvent(const v1::AttemptReport& message, AgentReport& read) {
  Report& report = read.report;
  v1::JobEvent payload;
  *payload.mutable_data() = message.trainer_event();
  MakeFinite(*payload.mutable_data());
  const json event = StructToJson(payload.data());
  const std::string type = TypeOf(TextOf(event, "event"));
  if (type == "progress") {
    read.progress = Progress(event);
    *payload.mutable_progress() = *read.progress;
    read.update = [progress = *read.progress](v1::FineTuningJob& job) { *job.mutable_progress() = progress; };
    if (const double eta = Number(event, "eta_seconds"); eta > 0) report.time_left = absl::Seconds(eta);
    report.tokens_per_second = read.progress->tokens_per_second();
  } else if (type == "evaluation") {
    *payload.mutable_evaluation() = EvaluationOf(event);
    read.update = [evaluation = payload.evaluation()](v1::FineTuningJob& job) {
      Replace(job, evaluation);
      if (evaluation.best()) *job.mutable_best_validation() = evaluation;
    };
  } else if (type == "started") {
    report.input = JobInput::kTrainerStarted;
    // An attempt before it may have finished, and been lost with its result.
    read.update = [](v1::FineTuningJob& job) {
      job.clear_summary();
      job.clear_stop_reason();
    };
    report.message = event.contains("export") ? absl::StrCat("exporting on ", TextOf(event, "device"))
                                              : absl::StrCat("training on ", TextOf(event, "device"), " from step ",
                                                             Count(event, "resumed_step"));
  } else if (type == "finished") {
    read.update = [event](v1::FineTuningJob& job) { SetSummary(job, event); };
    report.input = JobInput::kTrainerFinished;
    report.message = absl::StrCat(event.contains("export") ? "the export" : "training", " is done; storing the result");
  } else if (type == "failed") {
    read.update = [attempt = report.attempt.attempt,
                   failure = FailureOn(report.node, TextOf(event, "cause"), TextOf(event, "message"))](
                      v1::FineTuningJob& job) { SetFailure(job, attempt, failure); };
  }
  report.events.push_back({.type = type, .message = TextOf(event, "message"), .payload = payload.SerializeAsString()});
}

void ReadEnd(const v1::AttemptEnded& ended, AgentReport& read) {
  read.report.message = ended.message();
  switch (ended.outcome()) {
    case v1::AttemptEnded::FAILED:
      read.report.input = JobInput::kAttemptFailed;
      // What the trainer itself said of its failure is better.
      read.update = [attempt = read.report.attempt.attempt,
                     failure = FailureOn(read.report.node, ended.cause(), ended.message())](v1::FineTuningJob& job) {
        if (!HasFailureOf(attempt, job)) SetFailure(job, attempt, failure);
      };
      break;
    case v1::AttemptEnded::STOPPED: read.report.input = JobInput::kAttemptStopped; break;
    default:
      // FINISHED without a publication before it is an attempt whose result is gone.
      if (ended.outcome() == v1::AttemptEnded::FINISHED && ended.message().empty())
        read.report.message = "its agent says that it finished, but its result was not reported";
      read.report.input = JobInput::kAttemptLost;
      read.report.crashed = ended.cause() == "CRASHED" || ended.cause() == "STALLED";
      read.report.lost_peer = ended.cause() == "PEER";
  }
}

}  // namespace

google::protobuf::Timestamp ToProto(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t micros = absl::ToUnixMicros(time);
  timestamp.set_seconds(micros / 1000000);
  timestamp.set_nanos(static_cast<int32_t>(micros % 1000000) * 1000);
  return timestamp;
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  const absl::Duration held = std::clamp(duration, absl::ZeroDuration(), kLongestDuration);
  google::protobuf::Duration message;
  message.set_seconds(absl::ToInt64Seconds(held));
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(held % absl::Seconds(1))));
  return message;
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

int64_t CountOf(double number) {
  constexpr double kMost = 9e18;  // what an int64_t holds is a little more
  return static_cast<int64_t>(number > 0 ? std::min(number, kMost) : 0.0);
}

bool ParseEtag(const std::string& etag, int& revision) {
  return absl::StartsWith(etag, "r") && absl::SimpleAtoi(absl::string_view(etag).substr(1), &revision) && revision > 0;
}

std::string DeterministicBytes(const google::protobuf::Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

std::string JoinStoredSpec(const std::string& job, const std::string& start) {
  return absl::StrCat(job.size(), ":", job, start);
}

StoredSpec ParseStoredSpec(const SpecBytes& bytes) {
  absl::string_view joined = bytes.plan != nullptr ? *bytes.plan : bytes.own;
  StoredSpec spec;
  const size_t colon = joined.find(':');
  uint64_t size = 0;
  // Bytes that were damaged on the disk are read by the loop too, and must not end it.
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(joined.substr(0, colon), &size)) return spec;
  const absl::string_view job = joined.substr(colon + 1, size);
  const absl::string_view start = joined.substr(colon + 1 + job.size());
  spec.job.ParseFromArray(job.data(), static_cast<int>(job.size()));
  spec.start.ParseFromArray(start.data(), static_cast<int>(start.size()));
  if (bytes.plan != nullptr) spec.job.MergeFromString(bytes.own);
  return spec;
}

v1::FineTuningJob ToProto(const RecordedJob& recorded) {
  v1::FineTuningJob spec = ParseStoredSpec(recorded.spec).job;
  if (recorded.labels) {
    spec.clear_labels();
    spec.MergeFromString(*recorded.labels);
  }
  return ToProto(recorded.job, spec);
}

v1::FineTuningJob ToProto(const Job& job, const v1::FineTuningJob& spec) {
  v1::FineTuningJob message = spec;
  v1::FineTuningJob report;
  report.ParseFromString(job.report);
  message.MergeFrom(report);
  message.set_name(absl::StrCat("jobs/", job.id));
  message.set_state(static_cast<v1::FineTuningJob::State>(job.state));
  message.set_attempt(job.attempt);
  message.set_lost_attempts(job.lost_attempts);
  message.set_preemptions(job.preemptions);
  message.set_tenant(job.tenant);
  message.set_service_class(static_cast<v1::ServiceClass>(job.service_class));
  message.set_priority(job.priority);
  message.set_etag(absl::StrCat("r", job.revision));
  if (job.retention) *message.mutable_retention() = ToProto(*job.retention);
  if (job.deadline != absl::InfiniteFuture()) *message.mutable_deadline() = ToProto(job.deadline);
  if (IsWaiting(job.state)) {  // for another attempt
    message.clear_summary();
    message.clear_stop_reason();
  }
  if (job.state == JobState::kCancelled && job.deadline <= job.end_time) message.set_stop_reason("DEADLINE");
  message.set_node(NodeName(job.node));
  for (const Place& place : job.others) message.add_other_nodes(NodeName(place.node));
  message.set_model_version(job.model_version);
  message.set_last_event_sequence(job.last_event);
  *message.mutable_create_time() = ToProto(job.create_time);
  if (job.start_time != absl::InfinitePast()) *message.mutable_start_time() = ToProto(job.start_time);
  if (job.end_time != absl::InfinitePast()) *message.mutable_end_time() = ToProto(job.end_time);
  if (job.state != JobState::kFailed) {
    message.clear_failure();
  } else if (!HasFailureOf(job.attempt, report)) {
    *message.mutable_failure() = FailureOfLostAttempts(job);
  }
  return message;
}

v1::JobEvent ToProto(const Event& event) {
  v1::JobEvent message;
  message.ParseFromString(event.payload);
  message.set_sequence(event.sequence);
  *message.mutable_create_time() = ToProto(event.time);
  message.set_attempt(event.attempt);
  message.set_type(event.type);
  message.set_message(event.message);
  message.set_state(static_cast<v1::FineTuningJob::State>(event.state));
  return message;
}

v1::Node ToProto(const Node& node, const State& state, absl::Time now) {
  v1::Node message;
  message.set_name(NodeName(node.id));
  const bool empty = state.jobs().OnNode(node.id).empty();
  const bool gets_none = node.draining || node.leaving;
  message.set_state(node.IsAway(now)               ? v1::Node::DISCONNECTED
                    : !node.ready && !node.leaving ? v1::Node::LOST
                    : gets_none && empty           ? v1::Node::DRAINED
                    : gets_none                    ? v1::Node::DRAINING
                    : node.IsQuarantined()         ? v1::Node::QUARANTINED
                    : node.outdated                ? v1::Node::OUTDATED
                                                   : v1::Node::READY);
  if (node.IsQuarantined()) *message.mutable_quarantine_end_time() = ToProto(node.quarantine_end);
  if (node.IsAway(now)) {
    message.set_state_reason(absl::StrCat("its agent has ", absl::FormatDuration(kLease),
                                          " from when it was last heard, or the server was started, to come back: "
                                          "until then nothing that it runs is given up"));
  } else if (node.leaving) {
    message.set_state_reason("its agent is about to end");
  } else if (node.IsQuarantined()) {
    message.set_state_reason(absl::StrCat("attempts of ", node.losses.size(),
                                          " jobs died here and none got through in between; `luthier node undrain ",
                                          node.id, "` ends the quarantine"));
  } else if (node.outdated) {
    message.set_state_reason(
        "its agent is of an older version than the server: it goes on with what it runs; update luthier-worker there "
        "for new work");
  } else if (node.ready && !node.missed.empty()) {
    message.set_state_reason(
        absl::StrCat("ranks here and on ",
                     absl::StrJoin(node.missed, ", ",
                                   [](std::string* out, const auto& missed) { absl::StrAppend(out, missed.first); }),
                     " did not find one another (is there a firewall?): a job gets both only if there are no others; "
                     "`luthier node undrain ",
                     node.id, "` forgets that"));
  }
  message.mutable_inventory()->ParseFromString(node.inventory);
  message.mutable_labels()->insert(node.labels.begin(), node.labels.end());
  message.set_agent_version(node.agent_version);
  if (!node.gang_address.empty()) message.set_gang_address(absl::StrCat(node.gang_address, ":", node.gang_port));
  if (node.last_heartbeat != absl::InfinitePast())
    *message.mutable_last_heartbeat_time() = ToProto(node.last_heartbeat);
  for (const std::string& job : state.jobs().OnNode(node.id)) message.add_attempts(AttemptName(*state.Find(job)));
  return message;
}

v1::ModelVersion ToProto(const ModelVersion& version) {
  v1::ModelVersion message;
  v1::ArtifactStored stored;
  stored.ParseFromString(version.payload);
  message.set_name(absl::StrCat("models/", version.model, "/versions/", version.version));
  message.set_kind(stored.kind());
  message.set_job(absl::StrCat("jobs/", version.job));
  message.set_base_model(absl::StrCat("baseModels/", version.base_model));
  *message.mutable_files() = stored.files();
  *message.mutable_create_time() = ToProto(version.create_time);
  message.set_attempt(version.attempt);
  return message;
}

namespace {
using Figure = std::optional<double> (*)(const v1::Evaluation&);
const std::map<std::string, Figure>& MetricFigures() {
  static const auto* figures = new std::map<std::string, Figure>{
      {"loss", [](const v1::Evaluation& e) { return e.has_loss() ? std::optional(e.loss()) : std::nullopt; }},
      {"token_accuracy",
       [](const v1::Evaluation& e) {
         return e.has_token_accuracy() ? std::optional(e.token_accuracy()) : std::nullopt;
       }},
      {"exact_match",
       [](const v1::Evaluation& e) { return e.has_exact_match() ? std::optional(e.exact_match()) : std::nullopt; }},
      {"json_equality",
       [](const v1::Evaluation& e) { return e.has_json_equality() ? std::optional(e.json_equality()) : std::nullopt; }},
      {"field_f1",
       [](const v1::Evaluation& e) { return e.has_field_f1() ? std::optional(e.field_f1()) : std::nullopt; }},
  };
  return *figures;
}
}  // namespace

bool IsMetric(const std::string& name) { return MetricFigures().contains(name); }
std::optional<double> MetricOf(const v1::Evaluation& evaluation, const std::string& name) {
  const auto figure = MetricFigures().find(name);
  return figure == MetricFigures().end() ? std::nullopt : figure->second(evaluation);
}

absl::StatusOr<AgentReport> ReadReport(const v1::AttemptReport& message, const std::string& node) {
  AgentReport read;
  LUTHIER_ASSIGN_OR_RETURN(read.report.attempt, ParseAttempt(message.attempt()));
  read.report.node = node;
  read.report.sequence = message.sequence();
  switch (message.kind_case()) {
    case v1::AttemptReport::kTrainerEvent: ReadTrainerEvent(message, read); break;
    case v1::AttemptReport::kArtifactStored:
      read.report.input = JobInput::kArtifactStored;
      read.report.version_payload = message.artifact_stored().SerializeAsString();
      read.report.version_bytes = BytesOf(message.artifact_stored().files());
      break;
    case v1::AttemptReport::kCheckpointStored: {
      const v1::CheckpointStored& stored = message.checkpoint_stored();
      read.report.checkpoint = {stored.step(), stored.SerializeAsString(), BytesOf(stored.files())};
      read.report.events.push_back(
          {.type = "checkpoint_stored",
           .message = absl::StrCat("from step ", stored.step(), " the job can go on on any node")});
      break;
    }
    case v1::AttemptReport::kEnded: ReadEnd(message.ended(), read); break;
    case v1::AttemptReport::kLogLines:
      for (const std::string& line : message.log_lines().lines())
        read.report.events.push_back({.type = "log", .message = LogLine(line)});
      break;
    default: break;  // of a newer agent: it has a number like the others, which is recorded with them
  }
  return read;
}

Report CompleteReport(AgentReport read, const std::string& before) {
  if (!read.update) return std::move(read.report);
  v1::FineTuningJob job;
  job.ParseFromString(before);
  read.update(job);
  read.report.job_report = job.SerializeAsString();
  // Of several nodes another one may have failed before.
  if (read.report.input == JobInput::kAttemptFailed && job.failure().node() == NodeName(read.report.node))
    read.report.message = job.failure().message();
  return std::move(read.report);
}

}  // namespace luthier
