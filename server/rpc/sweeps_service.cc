#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/json_shape.h"
#include "lib/base/status_macros.h"
#include "lib/plan/job_spec.h"
#include "lib/wire/job_spec_wire.h"
#include "luthier/v1/sweeps.grpc.pb.h"
#include "server/core/reason.h"
#include "server/loop/recorded_jobs.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/page.h"
#include "server/rpc/planner.h"
#include "server/rpc/services.h"
#include "server/rpc/submission.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

using nlohmann::json;

constexpr int64_t kMaxJobs = 1000;
constexpr size_t kMaxSweepId = 58;  // room for the number of a job
// A job file has fewer fields.
constexpr int kMaxFields = 100;
// Of what all jobs ask for together: what they have in common is in each of them, and a value of a grid in many.
constexpr int64_t kMaxBytes = 64'000'000;
constexpr char kDefaultMetric[] = "validation.loss";

std::string JobId(const std::string& sweep, size_t index) { return absl::StrCat(sweep, "-", index + 1); }

absl::Status CheckGrid(const v1::Sweep& sweep) {
  std::vector<std::string> violations;
  const auto add = [&](const v1::SweepField& field, const char* wrong) {
    violations.push_back(absl::StrCat("grid: ", Shown(field.field()), wrong));
  };
  std::set<std::string> fields;
  for (const v1::SweepField& field : sweep.grid()) {
    if (field.values().empty()) add(field, " has no values; give one or more");
    if (!fields.insert(field.field()).second) add(field, " is there twice; give it once");
  }
  return Refusal(violations);
}

// Only of a new sweep: those of before this limit stay.
absl::Status CheckFields(const v1::Sweep& sweep) {
  if (sweep.grid_size() <= kMaxFields) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("grid: has ", sweep.grid_size(), " fields; give at most ", kMaxFields));
}

// What a sweep comes to is told from what it says, before it is made: a message of 4 MB has room for more than the
// server's memory. Of its jobs no more than one too many are counted.
int64_t CountJobs(const v1::Sweep& sweep) {
  int64_t jobs = std::max(1, sweep.points_size());
  for (const v1::SweepField& field : sweep.grid())
    jobs = std::min(jobs * std::max(1, field.values_size()), kMaxJobs + 1);
  return jobs;
}

int64_t BytesOfJobs(const v1::Sweep& sweep) {
  auto each = static_cast<int64_t>(sweep.job().ByteSizeLong());
  for (const v1::SweepField& field : sweep.grid()) {
    size_t longest = 0;
    for (const std::string& value : field.values()) longest = std::max(longest, value.size());
    each += static_cast<int64_t>(field.field().size() + longest);
  }
  return std::min(CountJobs(sweep), kMaxJobs) * each;
}

absl::Status CheckCount(const v1::Sweep& sweep) {
  if (CountJobs(sweep) <= kMaxJobs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sweep: has more than ", kMaxJobs, " jobs; leave values out, or make several sweeps"));
}

absl::Status CheckBytes(const v1::Sweep& sweep) {
  const int64_t bytes = BytesOfJobs(sweep);
  if (bytes <= kMaxBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("sweep: its jobs have ", SizeText(bytes), " in all, and may have ",
                                                 SizeText(kMaxBytes), "; leave values out, or make several sweeps"));
}

absl::Status CheckOneKind(const v1::Sweep& sweep) {
  if (sweep.grid().empty() != sweep.points().empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("sweep: give either a grid or points");
}

absl::Status CheckPoints(const v1::Sweep& sweep) {
  return AllOf({CheckOneKind(sweep), CheckGrid(sweep), CheckCount(sweep)});
}

// The values of each job, in their order; the last field of a grid changes fastest. Errors: as CheckPoints().
using Point = std::map<std::string, std::string>;
absl::StatusOr<std::vector<Point>> PointsOf(const v1::Sweep& sweep) {
  LUTHIER_RETURN_IF_ERROR(CheckPoints(sweep));
  std::vector<Point> points;
  for (const v1::SweepPoint& point : sweep.points()) points.emplace_back(point.values().begin(), point.values().end());
  if (!sweep.grid().empty()) points.emplace_back();
  for (const v1::SweepField& field : sweep.grid()) {
    std::vector<Point> more;
    for (const Point& point : points) {
      for (const std::string& value : field.values()) {
        more.push_back(point);
        more.back()[field.field()] = value;
      }
    }
    points = std::move(more);
  }
  return points;
}

// The beginning of a value, on one line.
std::string Brief(const std::string& text) { return absl::StrReplaceAll(text.substr(0, 80), {{"\n", " "}}); }

// Two jobs that train the same are a slip, and cost a node twice.
std::string SameJob(const v1::Sweep& sweep, const std::vector<Point>& points, size_t first, size_t second) {
  const auto text = [&](size_t i) {
    const auto pair = [](std::string* out, const auto& value) {
      absl::StrAppend(out, Brief(value.first), ": ", Brief(value.second));
    };
    return absl::StrCat(i + 1, " (", absl::StrJoin(points[i], ", ", pair), ")");
  };
  return absl::StrCat(sweep.grid().empty() ? "points" : "grid", ": points ", text(first), " and ", text(second),
                      " are the same job; leave one of them out");
}

// JSON, or a word.
json ValueOf(const std::string& text) {
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? json(text) : value;
}

// Each level takes a call of whoever prints or copies the value: of a million the server would die.
absl::Status CheckDepth(const std::string& field, const std::string& value) {
  if (std::count(field.begin(), field.end(), '.') <= kMaxJsonDepth && ShapeOfJson(value).depth <= kMaxJsonDepth)
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field.substr(0, 80), ": is nested deeper than ", kMaxJsonDepth, " levels; give a flatter value"));
}

// The job at a point. `file`: the job file of what all have in common, of which what goes with the other kind of tuning
// only gives way to a point's `tuning`. What the point itself says does not: it would be a contradiction.
absl::StatusOr<v1::FineTuningJob> JobAt(const Point& point, json file, const v1::FineTuningJob& common) {
  for (const auto& [field, value] : point) LUTHIER_RETURN_IF_ERROR(CheckDepth(field, value));
  if (const auto tuning = point.find("tuning"); tuning != point.end()) {
    const json kind = ValueOf(tuning->second);
    if (kind.is_string()) LeaveOutOtherTuning(file, kind.get<std::string>());
  }
  for (const auto& [field, value] : point) {
    json* target = &file;
    const std::vector<std::string> path = absl::StrSplit(field, '.');
    for (size_t i = 0; i + 1 < path.size(); ++i) {
      target = &(*target)[path[i]];
      if (!target->is_object()) *target = json::object();
    }
    (*target)[path.back()] = ValueOf(value);
  }
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec spec, ParseJobSpec(file));
  LUTHIER_ASSIGN_OR_RETURN(v1::FineTuningJob job, JobToProto(spec));
  job.set_tenant(common.tenant());
  job.set_service_class(common.service_class());
  job.set_priority(common.priority());
  if (common.has_retention()) *job.mutable_retention() = common.retention();
  if (common.has_deadline()) *job.mutable_deadline() = common.deadline();
  return job;
}

// What is wrong with the jobs of a sweep. A value of a grid is in many jobs: what is wrong with it is said once, with
// the first of them.
class Faults {
 public:
  bool empty() const { return faults_.empty(); }
  void Add(const std::string& violation) { Find(violation, absl::StatusCode::kInvalidArgument); }
  // A violation on each line of `message`.
  void AddOf(const std::string& job, absl::string_view message,
             absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    for (const absl::string_view line : absl::StrSplit(message, '\n', absl::SkipEmpty())) {
      Fault* fault = Find(std::string(line), code);
      if (fault == nullptr) continue;
      if (++fault->jobs <= kNamedJobs) absl::StrAppend(&fault->names, fault->names.empty() ? "" : ", ", job);
    }
  }
  // INVALID_ARGUMENT, or the code of all of them if that is the same.
  absl::Status ToStatus() const {
    std::vector<std::string> lines;
    for (const Fault& fault : faults_) {
      lines.push_back(fault.violation);
      if (fault.jobs == 0) continue;
      const std::string others = fault.jobs > kNamedJobs ? absl::StrCat(" and ", fault.jobs - kNamedJobs, " more") : "";
      absl::StrAppend(&lines.back(), " (", fault.names, others, ")");
    }
    return absl::Status(code_, Refusal(lines, static_cast<int64_t>(others_.size())).message());
  }

 private:
  static constexpr int kNamedJobs = 5;
  struct Fault {
    std::string violation;
    std::string names = {};  // of the first jobs that have it
    int jobs = 0;
  };
  // Null if there are too many others already.
  Fault* Find(std::string violation, absl::StatusCode code) {
    const bool is_first = code_ == absl::StatusCode::kOk;
    code_ = is_first || code_ == code ? code : absl::StatusCode::kInvalidArgument;
    const auto known = absl::c_find_if(faults_, [&](const Fault& fault) { return fault.violation == violation; });
    if (known != faults_.end()) return &*known;
    if (faults_.size() < kMostViolations) return &faults_.emplace_back(Fault{std::move(violation)});
    others_.insert(std::move(violation));
    return nullptr;
  }

  std::vector<Fault> faults_;
  std::set<std::string> others_;
  absl::StatusCode code_ = absl::StatusCode::kOk;  // as long as there are none
};

// The jobs at all points. Errors: INVALID_ARGUMENT with what is wrong with any of them.
absl::StatusOr<std::vector<v1::FineTuningJob>> JobsAt(const std::vector<Point>& points, const std::string& sweep_id,
                                                      const v1::Sweep& sweep) {
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec common, JobFromProto(sweep.job()));
  const json file = ToJson(common);
  Faults faults;
  std::vector<v1::FineTuningJob> jobs;
  std::map<std::string, size_t> known;  // points by what they train: `8` and `8.0`, or a value left out, may be equal
  for (size_t i = 0; i < points.size(); ++i) {
    absl::StatusOr<v1::FineTuningJob> job = JobAt(points[i], file, sweep.job());
    if (!job.ok()) {
      faults.AddOf("jobs/" + JobId(sweep_id, i), job.status().message());
      continue;
    }
    const auto [same, first] = known.try_emplace(DeterministicBytes(job->spec()), i);
    if (!first) faults.Add(SameJob(sweep, points, same->second, i));
    jobs.push_back(*std::move(job));
  }
  LUTHIER_RETURN_IF_ERROR(faults.ToStatus());
  return jobs;
}

// The error in other words, with what it carries.
absl::Status InWords(const absl::Status& status, absl::string_view message) {
  absl::Status same(status.code(), message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { same.SetPayload(url, payload); });
  return same;
}

// Says of every line which job it is about; the field stays in front.
absl::Status AboutJob(const absl::Status& status, const std::string& job) {
  const std::string suffix = absl::StrCat(" (", job, ")");
  return InWords(status, absl::StrCat(absl::StrReplaceAll(status.message(), {{"\n", suffix + "\n"}}), suffix));
}

// Names of a sweep's jobs follow from its own, which is what the caller can choose.
absl::Status AboutSweepId(const absl::Status& status) {
  absl::string_view message = status.message();
  if (!absl::ConsumePrefix(&message, "job_id: ")) return status;
  return InWords(status, absl::StrCat("sweep_id: ", message));
}

struct Metric {
  std::string split, name;
};
std::optional<Metric> ParseMetric(const std::string& text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('.', 1));
  if ((parts.first != "validation" && parts.first != "test") || !IsMetric(parts.second)) return std::nullopt;
  return Metric{parts.first, parts.second};
}

std::optional<double> ValueOf(const Metric& metric, const Job& job) {
  v1::FineTuningJob report;
  report.ParseFromString(job.report);
  for (const v1::Evaluation& evaluation : report.evaluations()) {
    if (evaluation.split() != metric.split || evaluation.model() != "tuned") continue;
    if (const std::optional<double> value = MetricOf(evaluation, metric.name)) return value;
  }
  return std::nullopt;
}

// Why a job of the plan will have no value of the metric, and what would give it one; empty if it will have one.
std::string WhyUnmeasured(const std::string& text, const Plan& plan) {
  const Metric metric = *ParseMetric(text);
  const auto is_of_split = [&](const v1::AttemptInput& input) { return input.role() == metric.split; };
  if (absl::c_none_of(plan.start.inputs(), is_of_split)) {
    return absl::StrCat("sweep.metric: ", text, " is measured on a ", metric.split,
                        " part, which the dataset lacks; give dataset.", metric.split, ", or a metric of another part");
  }
  const bool is_of_answers = metric.name != "loss" && metric.name != "token_accuracy";
  const auto asks_for_none = [](const v1::ResolvedValue& value) {
    return value.field() == "evaluation.metric" && value.value() == "loss";
  };
  if (is_of_answers && absl::c_any_of(plan.job.resolved(), asks_for_none)) {
    return absl::StrCat("sweep.metric: ", text,
                        " is measured on answers, and with evaluation.metric: loss the model gives none; give another "
                        "evaluation.metric, or ",
                        metric.split, ".loss");
  }
  return "";
}

// Who asked for no metric may want none: so it is no error that the default one is missing.
void WarnAboutMetric(const std::vector<Submission>& jobs, v1::Sweep& sweep) {
  for (const Submission& each : jobs) {
    const std::string why = WhyUnmeasured(sweep.metric(), *each.plan);
    if (why.empty()) continue;
    sweep.add_warnings(absl::StrCat(why, " (jobs/", each.job.id, ")"));
    return;
  }
}

// Whoever gave values to all jobs may not expect one without them.
void WarnAboutTuning(const v1::FineTuningSpec& common, const std::vector<Submission>& jobs, v1::Sweep& sweep) {
  for (const Submission& each : jobs) {
    const bool full = each.plan->job.spec().has_full();
    const bool left_out = full ? common.lora().ByteSizeLong() > 0 : common.training().freeze_size() > 0;
    if (!left_out) continue;
    sweep.add_warnings(absl::StrCat(full ? "lora" : "training.freeze", ": that of sweep.job is left out with tuning: ",
                                    full ? "full" : "lora", ", as in jobs/", each.job.id));
    return;
  }
}

void Warn(const v1::Sweep& asked, const std::vector<Submission>& jobs, v1::Sweep& answer) {
  WarnAboutTuning(asked.job().spec(), jobs, answer);
  WarnAboutMetric(jobs, answer);
}

// What the record keeps of a sweep besides its jobs: what its caller asked for, with a metric.
v1::Sweep AskedFor(const v1::Sweep& sweep) {
  v1::Sweep asked;
  *asked.mutable_job() = sweep.job();
  *asked.mutable_grid() = sweep.grid();
  *asked.mutable_points() = sweep.points();
  asked.set_max_parallel(sweep.max_parallel());
  asked.set_metric(sweep.metric().empty() ? kDefaultMetric : sweep.metric());
  return asked;
}

bool IsSweepId(const std::string& id) { return CheckId("sweep_id", id).ok() && id.size() <= kMaxSweepId; }

// What a request says beside its points and the spec of its jobs.
absl::Status CheckRequest(const v1::CreateSweepRequest& request) {
  std::vector<std::string> violations;
  if (const std::string& id = request.sweep_id(); !id.empty() && !IsSweepId(id)) {
    violations.push_back(absl::StrCat("sweep_id: ", Shown(id), " is no id; give 1 to ", kMaxSweepId,
                                      " characters a-z, 0-9, '-', a letter first"));
  }
  CheckRequestId(request.request_id(), violations);
  CheckJob(request.sweep().job(), violations);
  if (request.sweep().max_parallel() < 0) {
    violations.push_back(absl::StrCat("sweep.max_parallel: ", request.sweep().max_parallel(),
                                      " is negative; give 1 or more, or 0 for no limit"));
  }
  if (!request.sweep().metric().empty() && !ParseMetric(request.sweep().metric())) {
    violations.push_back(absl::StrCat("sweep.metric: ", Shown(request.sweep().metric()),
                                      " is unknown; give validation or test, a dot, and ", kMetricNames));
  }
  return Refusal(violations);
}

absl::Status CheckCommonSpec(const v1::FineTuningSpec& spec) {
  if (!spec.has_model_export()) return CheckSpec(spec);
  return absl::InvalidArgumentError(
      "sweep.job.spec.model_export: has no values to vary; export the best version once the sweep is over");
}

// Whether jobs have values of their own of a field, or of one in its block.
bool Varies(const v1::Sweep& sweep, absl::string_view block) {
  const auto is_of_block = [&](const std::string& field) { return field.substr(0, field.find('.')) == block; };
  const auto has_one = [&](const v1::SweepPoint& point) {
    return absl::c_any_of(point.values(), [&](const auto& value) { return is_of_block(value.first); });
  };
  return absl::c_any_of(sweep.grid(), [&](const v1::SweepField& field) { return is_of_block(field.field()); }) ||
         absl::c_any_of(sweep.points(), has_one);
}

// CheckRequest() says what is wrong with the labels of all jobs, which must not hide what is wrong with a grid.
v1::Sweep WithoutWrongLabels(const v1::Sweep& sweep) {
  v1::Sweep same = sweep;
  std::vector<std::string> violations;
  CheckLabels(sweep.job(), violations);
  if (!violations.empty()) same.mutable_job()->clear_labels();
  return same;
}

// The spec of all jobs without what may name something else in each of them, and what is refused whatever it names.
v1::FineTuningSpec WithoutVariedNames(const v1::Sweep& sweep) {
  v1::FineTuningSpec spec = sweep.job().spec();
  spec.clear_model_export();
  if (Varies(sweep, "base_model")) spec.clear_base_model();
  if (Varies(sweep, "dataset")) spec.clear_dataset();
  if (Varies(sweep, "lora")) spec.mutable_lora()->clear_start_from();
  return spec;
}

class SweepsService final : public v1::SweepService::Service {
 public:
  explicit SweepsService(Backend& backend) : backend_(backend) {}

  grpc::Status CreateSweep(grpc::ServerContext* context, const v1::CreateSweepRequest* request,
                           v1::Sweep* response) override {
    return Handle(backend_, *context, "CreateSweep", [&](Call& call) { return Create(call, *request, *response); });
  }
  grpc::Status GetSweep(grpc::ServerContext* context, const v1::GetSweepRequest* request,
                        v1::Sweep* response) override {
    return Handle(backend_, *context, "GetSweep", [&](Call& call) { return Get(call, request->name(), *response); });
  }
  grpc::Status ListSweeps(grpc::ServerContext* context, const v1::ListSweepsRequest* request,
                          v1::ListSweepsResponse* response) override {
    return Handle(backend_, *context, "ListSweeps", [&](Call& call) { return List(call, *request, *response); });
  }
  grpc::Status CancelSweep(grpc::ServerContext* context, const v1::CancelSweepRequest* request,
                           v1::Sweep* response) override {
    return Handle(backend_, *context, "CancelSweep", [&](Call& call) {
      return Step(call, request->name(), JobInput::kCancelRequested, &State::Cancel, *response);
    });
  }
  grpc::Status StartSweep(grpc::ServerContext* context, const v1::StartSweepRequest* request,
                          v1::Sweep* response) override {
    return Handle(backend_, *context, "StartSweep", [&](Call& call) {
      return Step(call, request->name(), JobInput::kStartRequested, &State::StartHeld, *response);
    });
  }

 private:
  absl::Status Create(Call& call, const v1::CreateSweepRequest& request, v1::Sweep& response) {
    call.subject = "sweeps/" + request.sweep_id();
    const JobRequest identity{request.request_id(),
                              Sha256Hex(absl::StrCat("sweep\n", request.sweep_id(), request.hold() ? "\nheld\n" : "\n",
                                                     DeterministicBytes(request.sweep()), call.tenant))};
    const std::string id = IsSweepId(request.sweep_id())
                               ? request.sweep_id()
                               : absl::StrCat("sweep-", absl::StripPrefix(NewJobId(absl::Now()), "job-"));
    // Also what was right when the request came first, such as a deadline, may be wrong when it is repeated.
    const absl::StatusOr<std::vector<v1::FineTuningJob>> asked = ReadJobs(call, id, request);
    absl::StatusOr<std::vector<Submission>> made =
        !asked.ok() ? asked.status() : PrepareAll(call, id, request.sweep(), *asked);
    if (!made.ok()) {
      if (request.validate_only()) return made.status();
      LUTHIER_ASSIGN_OR_RETURN(const RecordedJob earlier, EarlierOf(backend_, call, identity, made.status()));
      return GetOf(call, earlier.job, response);
    }

    std::vector<Job> jobs;
    std::vector<SpecBytes> specs;
    for (const Submission& submission : *made) {
      jobs.push_back(submission.job);
      jobs.back().max_parallel = request.sweep().max_parallel();
      if (request.hold()) jobs.back().state = JobState::kHeld;
      specs.push_back(submission.Spec());
    }
    Sweep sweep{.id = id, .tenant = jobs.front().tenant, .payload = AskedFor(request.sweep()).SerializeAsString()};
    if (request.validate_only()) {
      LUTHIER_RETURN_IF_ERROR(AboutSweepId(
          backend_.loop.Run([&](State& state, absl::Time) { return CheckJobs(state, backend_.store, jobs); })));
      sweep.create_time = absl::Now();
      LUTHIER_RETURN_IF_ERROR(Describe(sweep, jobs, response));
      Warn(request.sweep(), *made, response);
      return absl::OkStatus();
    }
    int64_t newest = 0;
    LUTHIER_RETURN_IF_ERROR(AboutSweepId(backend_.loop.Run([&](State& state, absl::Time now) {
      newest = state.last_number();
      return WithoutOthers(call,
                           luthier::CreateSweep(state, backend_.store, sweep, jobs, identity, std::move(specs), now));
    })));
    if (jobs.front().number <= newest) return GetOf(call, jobs.front(), response);
    LUTHIER_RETURN_IF_ERROR(Get(call, "sweeps/" + id, response));
    Warn(request.sweep(), *made, response);
    return absl::OkStatus();
  }

  // The jobs that a request asks for. Errors: as AllOf(), with all that is wrong as far as no job is planned.
  absl::StatusOr<std::vector<v1::FineTuningJob>> ReadJobs(const Call& call, const std::string& id,
                                                          const v1::CreateSweepRequest& request) {
    const v1::Sweep& sweep = request.sweep();
    absl::Status fits = CheckFields(sweep);
    if (fits.ok()) fits = AllOf({CheckPoints(sweep), CheckBytes(sweep)});
    const absl::StatusOr<std::vector<Point>> points = fits.ok() ? PointsOf(sweep) : fits;
    const absl::Status common = CheckCommonSpec(sweep.job().spec());
    absl::StatusOr<std::vector<v1::FineTuningJob>> jobs = std::vector<v1::FineTuningJob>();
    if (points.ok() && common.ok()) jobs = JobsAt(*points, id, WithoutWrongLabels(sweep));
    const absl::Status refused = AllOf({CheckRequest(request), points.status(), common, jobs.status()});
    if (!refused.ok()) return AllOf({refused, CheckNames(backend_, call, WithoutVariedNames(sweep))});
    return jobs;
  }

  absl::StatusOr<std::vector<Submission>> PrepareAll(const Call& call, const std::string& id, const v1::Sweep& sweep,
                                                     const std::vector<v1::FineTuningJob>& jobs) {
    Faults faults;
    std::vector<Submission> made;
    for (size_t i = 0; i < jobs.size(); ++i) {
      const std::string job_id = JobId(id, i);
      absl::StatusOr<Submission> submission = Prepare(backend_, call, jobs[i], job_id);
      if (!submission.ok()) {
        const absl::Status& why = submission.status();
        // To read the same rows for each of the others could take hours.
        const bool is_last = !IsOfRequest(why) || ReasonOf(why) == kRowsRefused;
        if (is_last && faults.empty()) return AboutJob(why, "jobs/" + job_id);
        if (IsOfRequest(why)) faults.AddOf("jobs/" + job_id, why.message(), why.code());
        if (is_last) return faults.ToStatus();
        continue;
      }
      if (!sweep.metric().empty()) faults.AddOf("jobs/" + job_id, WhyUnmeasured(sweep.metric(), *submission->plan));
      submission->own.set_sweep("sweeps/" + id);
      made.push_back(*std::move(submission));
    }
    LUTHIER_RETURN_IF_ERROR(faults.ToStatus());
    return made;
  }

  // The sweep whose first job this is.
  absl::Status GetOf(Call& call, const Job& first, v1::Sweep& response) {
    return Get(call, absl::StrCat("sweeps/", absl::StripSuffix(first.id, "-1")), response);
  }

  absl::StatusOr<Sweep> Find(Call& call, const std::string& name) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "sweeps", name));
    LUTHIER_ASSIGN_OR_RETURN(Sweep sweep, backend_.store.GetSweep(id));
    if (!call.Sees(sweep.tenant)) return DoesNotExist(name);
    return sweep;
  }

  absl::Status Get(Call& call, const std::string& name, v1::Sweep& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Sweep sweep, Find(call, name));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Job> jobs, backend_.store.JobsOf(sweep));
    return Describe(sweep, jobs, response);
  }

  absl::Status List(const Call& call, const v1::ListSweepsRequest& request, v1::ListSweepsResponse& response) {
    LUTHIER_ASSIGN_OR_RETURN(const PageRequest page, ParsePage("sweeps", request.page_size(), request.page_token()));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Sweep> sweeps,
                             backend_.store.ListSweeps(call.tenant, page.after_number(), page.size + 1));
    absl::Status counted;
    const auto position_of = [](const Sweep& sweep) { return Position(sweep.first_job, ""); };
    FillPage("sweeps", page.size, sweeps, response, position_of, [&](const Sweep& sweep) -> auto& {
      const auto counts = backend_.store.CountJobsOf(sweep);
      if (!counts.ok()) counted = counts.status();
      v1::Sweep& message = *response.add_sweeps();
      if (counts.ok()) DescribeFrame(sweep, *counts, message);
      return message;
    });
    return counted;
  }

  // What a user asks of all jobs of a sweep that `input` changes, in one batch.
  absl::Status Step(Call& call, const std::string& name, JobInput input,
                    absl::Status (State::*step)(const std::string&, absl::Time), v1::Sweep& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Sweep sweep, Find(call, name));
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      for (int i = 0; i < sweep.jobs; ++i) {
        const Job* job = state.Find(JobId(sweep.id, static_cast<size_t>(i)));
        if (job == nullptr || !NextState(job->state, input)) continue;
        LUTHIER_RETURN_IF_ERROR((state.*step)(job->id, now));
      }
      return absl::OkStatus();
    }));
    return Get(call, name, response);
  }

  static void DescribeFrame(const Sweep& sweep, const std::map<JobState, int64_t>& counts, v1::Sweep& message) {
    message.ParseFromString(sweep.payload);
    message.set_name("sweeps/" + sweep.id);
    message.mutable_job()->set_tenant(sweep.tenant);
    *message.mutable_create_time() = ToProto(sweep.create_time);
    for (const auto& [state, count] : counts)
      (*message.mutable_job_counts())[std::string(StateName(state))] = static_cast<int32_t>(count);
  }

  static absl::Status Describe(const Sweep& sweep, const std::vector<Job>& jobs, v1::Sweep& message) {
    std::map<JobState, int64_t> counts;
    for (const Job& job : jobs) ++counts[job.state];
    DescribeFrame(sweep, counts, message);
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Point> points, PointsOf(message));
    const Metric metric = *ParseMetric(message.metric());
    std::optional<double> best;
    for (size_t i = 0; i < jobs.size(); ++i) {
      v1::SweepJob& line = *message.add_jobs();
      line.set_job("jobs/" + jobs[i].id);
      line.mutable_values()->insert(points[i].begin(), points[i].end());
      line.set_state(static_cast<v1::FineTuningJob::State>(jobs[i].state));
      line.set_model_version(jobs[i].model_version);
      const std::optional<double> value = ValueOf(metric, jobs[i]);
      if (!value) continue;
      line.set_metric(*value);
      const bool better = !best || (metric.name == "loss" ? *value < *best : *value > *best);
      if (jobs[i].state != JobState::kSucceeded || !better) continue;
      best = value;
      message.set_best_job(line.job());
    }
    return absl::OkStatus();
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSweepService(Backend& backend) { return std::make_unique<SweepsService>(backend); }

}  // namespace luthier
