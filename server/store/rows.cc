#include "server/store/rows.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace luthier {
namespace {

// The last ones of kJobColumns, which say something only once a job has had an attempt.
constexpr int kAttemptColumns = 16;

std::optional<int64_t> DeadlineMicros(absl::Time deadline) {
  return deadline == absl::InfiniteFuture() ? std::nullopt : std::optional(absl::ToUnixMicros(deadline));
}

std::optional<int64_t> RetentionMicros(const std::optional<absl::Duration>& duration) {
  return duration ? std::optional(absl::ToInt64Microseconds(*duration)) : std::nullopt;
}

std::vector<int> ParseDevices(const std::string& text) {
  std::vector<int> devices;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    int device = 0;
    if (absl::SimpleAtoi(part, &device)) devices.push_back(device);
  }
  return devices;
}

std::string PlacesText(const std::vector<Place>& places) {
  return absl::StrJoin(places, ";", [](std::string* out, const Place& place) {
    absl::StrAppend(out, place.node, ":", absl::StrJoin(place.devices, ","));
  });
}

std::vector<Place> ParsePlaces(const std::string& text) {
  std::vector<Place> places;
  for (const absl::string_view part : absl::StrSplit(text, ';', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> place = absl::StrSplit(part, absl::MaxSplits(':', 1));
    places.push_back({place.first, ParseDevices(place.second)});
  }
  return places;
}

// A `?` for each of kJobColumns.
std::string JobValues() {
  std::string values = "?";
  for (const char c : kJobColumns) values += c == ',' ? ", ?" : "";
  return values;
}

}  // namespace

void WriteJob(Connection& connection, const Job& job, bool is_new) {
  const std::string held = absl::StrJoin(job.held, ","), others = PlacesText(job.others),
                    lost_on = absl::StrJoin(job.lost_on, ","), crashed_on = absl::StrJoin(job.crashed_on, ",");
  const int64_t state = static_cast<int64_t>(job.state);
  if (is_new) {
    static const std::string sql = absl::StrCat("INSERT INTO jobs (", kJobColumns, ") VALUES (", JobValues(), ")");
    connection.Prepare(sql)
        .Bind(job.number, job.id, job.base_model, job.datasets, job.model, int64_t{job.devices}, int64_t{job.nodes},
              job.cpu_memory_bytes, job.gpu_memory_bytes, job.node_selector, job.create_time, state,
              int64_t{job.attempt}, job.end_time, job.last_event, job.tenant, static_cast<int64_t>(job.service_class),
              int64_t{job.priority}, static_cast<int64_t>(job.tuning), job.work_tokens,
              absl::ToInt64Microseconds(job.estimate), int64_t{job.revision}, RetentionMicros(job.retention),
              DeadlineMicros(job.deadline), job.sweep, int64_t{job.max_parallel}, int64_t{job.lost_attempts}, job.node,
              held, others, job.not_before, job.start_time, job.model_version, job.last_report, Bytes{job.report},
              job.attempt_start, int64_t{job.preemptions}, lost_on, crashed_on, job.stored_step, job.stored_bytes,
              absl::ToInt64Microseconds(job.charged))
        .Run();
    return;
  }
  connection
      .Prepare(
          "UPDATE jobs SET state = ?, attempt = ?, lost_attempts = ?, node = ?, held = ?, others = ?, "
          "not_before = ?, start_time = ?, end_time = ?, model_version = ?, last_event = ?, last_report = ?, "
          "report = ?, priority = ?, attempt_start = ?, preemptions = ?, lost_on = ?, crashed_on = ?, "
          "stored_step = ?, stored_bytes = ?, charged = ?, revision = ?, retention = ?, deadline = ?, expired = 0 "
          "WHERE number = ?")
      .Bind(state, int64_t{job.attempt}, int64_t{job.lost_attempts}, job.node, held, others, job.not_before,
            job.start_time, job.end_time, job.model_version, job.last_event, job.last_report, Bytes{job.report},
            int64_t{job.priority}, job.attempt_start, int64_t{job.preemptions}, lost_on, crashed_on, job.stored_step,
            job.stored_bytes, absl::ToInt64Microseconds(job.charged), int64_t{job.revision},
            RetentionMicros(job.retention), DeadlineMicros(job.deadline), job.number)
      .Run();
}

Job ReadJob(Query& row) {
  Job job;
  job.number = row.Int();
  for (std::string* text : {&job.id, &job.base_model, &job.datasets, &job.model}) *text = row.Text();
  for (int* count : {&job.devices, &job.nodes}) *count = static_cast<int>(row.Int());
  for (int64_t* bytes : {&job.cpu_memory_bytes, &job.gpu_memory_bytes}) *bytes = row.Int();
  job.node_selector = row.Text();
  job.create_time = row.Time();
  job.state = static_cast<JobState>(row.Int());
  job.attempt = static_cast<int>(row.Int());
  job.end_time = row.Time();
  job.last_event = row.Int();
  job.tenant = row.Text();
  job.service_class = static_cast<ServiceClass>(row.Int());
  job.priority = static_cast<int>(row.Int());
  job.tuning = static_cast<Tuning>(row.Int());
  job.work_tokens = row.Int();
  job.estimate = absl::Microseconds(row.Int());
  job.revision = static_cast<int>(row.Int());
  if (!row.TakeNull()) job.retention = absl::Microseconds(row.Int());
  if (!row.TakeNull()) job.deadline = row.Time();
  job.sweep = row.Int();
  job.max_parallel = static_cast<int>(row.Int());
  if (job.attempt == 0) {
    row.Skip(kAttemptColumns);
    return job;
  }
  job.lost_attempts = static_cast<int>(row.Int());
  job.node = row.Text();
  job.held = ParseDevices(row.Text());
  job.others = ParsePlaces(row.Text());
  for (absl::Time* time : {&job.not_before, &job.start_time}) *time = row.Time();
  job.model_version = row.Text();
  job.last_report = row.Int();
  job.report = row.Blob();
  job.attempt_start = row.Time();
  job.preemptions = static_cast<int>(row.Int());
  for (std::vector<std::string>* nodes : {&job.lost_on, &job.crashed_on})
    *nodes = absl::StrSplit(row.Text(), ',', absl::SkipEmpty());
  for (int64_t* count : {&job.stored_step, &job.stored_bytes}) *count = row.Int();
  job.charged = absl::Microseconds(row.Int());
  return job;
}

const char* TableOf(ResourceKind kind) { return kind == ResourceKind::kDataset ? "datasets" : "base_models"; }

}  // namespace luthier
