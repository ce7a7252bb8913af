// Jobs as they are on record, with their requests, specs, checkpoints and events, and sweeps of them.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/core/reason.h"
#include "server/store/connection.h"
#include "server/store/rows.h"
#include "server/store/store.h"
#include "server/store/store_error.h"

namespace luthier {
namespace {

// What ReadRecordedJob() reads after the columns of the job, and the tables that have it.
constexpr char kSpecColumns[] = "spec, labels, bytes";
constexpr char kSpecTables[] = "job_specs LEFT JOIN plans ON plan_number = plan";
// What ReadRecordedJob() reads, of the job that a condition names.
std::string RecordedJobWhere(absl::string_view condition) {
  return absl::StrCat("SELECT ", kJobColumns, ", ", kSpecColumns, " FROM jobs JOIN ", kSpecTables,
                      " WHERE job = number AND ", condition);
}
// A request and the number of the job that it created; a job has an `id` as well.
constexpr char kRequest[] = "SELECT body_sha256, job AS created FROM requests WHERE id = ?";

std::shared_ptr<const std::string> ReadPlan(Query& row) {
  return row.TakeNull() ? nullptr : std::make_shared<const std::string>(row.Blob());
}

RecordedJob ReadRecordedJob(Query& row) {
  RecordedJob recorded{ReadJob(row), {}, std::nullopt};
  recorded.spec.own = row.Blob();
  if (!row.TakeNull()) recorded.labels = row.Blob();
  recorded.spec.plan = ReadPlan(row);
  return recorded;
}

Sweep ReadSweep(Query& row) {
  Sweep sweep;
  sweep.id = row.Text();
  sweep.tenant = row.Text();
  sweep.first_job = row.Int();
  sweep.jobs = static_cast<int>(row.Int());
  sweep.create_time = row.Time();
  sweep.payload = row.Blob();
  return sweep;
}

constexpr int64_t kNoNumber = std::numeric_limits<int64_t>::max();

// First and last number that a list looks at: a filter that matches little must not walk through a million jobs while
// other calls wait for the reader.
std::pair<int64_t, int64_t> NumbersToLookAt(const JobQuery& wanted, int64_t newest) {
  const JobQuery any;
  const bool bounded = !wanted.tenant.empty() || !wanted.of_tenant.empty() || !wanted.base_model.empty() ||
                       !wanted.model.empty() || wanted.created_from != any.created_from ||
                       wanted.created_before != any.created_before || wanted.ended_from != any.ended_from ||
                       wanted.ended_before != any.ended_before;
  if (wanted.oldest_first) {
    const int64_t last = wanted.cursor + Store::kListWindow;
    return {wanted.cursor + 1, bounded && last < newest ? last : kNoNumber};
  }
  const int64_t last = wanted.cursor > 0 ? wanted.cursor - 1 : newest;
  return {bounded && last > Store::kListWindow ? last - Store::kListWindow + 1 : 0, last};
}

}  // namespace

absl::StatusOr<std::optional<std::pair<JobRequest, Job>>> Store::FindRequest(const std::string& id) {
  return Guard([&]() -> absl::StatusOr<std::optional<std::pair<JobRequest, Job>>> {
    static const std::string sql =
        absl::StrCat("SELECT body_sha256, ", kJobColumns, " FROM (", kRequest, ") JOIN jobs ON number = created");
    Query query = writer_->Prepare(sql);
    if (!query.Bind(id).Step()) return std::nullopt;
    const JobRequest request{id, query.Text()};
    return std::make_pair(request, ReadJob(query));
  });
}

absl::StatusOr<std::optional<Job>> Store::FindJob(const std::string& id) {
  return Guard([&]() -> absl::StatusOr<std::optional<Job>> {
    static const std::string sql = absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE id = ?");
    Query query = writer_->Prepare(sql);
    if (!query.Bind(id).Step()) return std::nullopt;
    return ReadJob(query);
  });
}

absl::StatusOr<SpecBytes> Store::Spec(int64_t job) {
  return Guard([&]() -> absl::StatusOr<SpecBytes> {
    Query query = writer_->Prepare(absl::StrCat("SELECT spec, bytes FROM ", kSpecTables, " WHERE job = ?"));
    if (!query.Bind(job).Step()) return absl::NotFoundError(absl::StrCat("job number ", job, " has no spec"));
    SpecBytes spec{.own = query.Blob()};
    spec.plan = ReadPlan(query);
    return spec;
  });
}

absl::StatusOr<std::string> Store::Checkpoint(int64_t job) {
  return Guard([&]() -> absl::StatusOr<std::string> {
    Query query = writer_->Prepare("SELECT payload FROM checkpoints WHERE job = ?");
    if (!query.Bind(job).Step()) return absl::NotFoundError(absl::StrCat("job number ", job, " has no checkpoint"));
    return query.Blob();
  });
}

absl::StatusOr<std::vector<std::string>> Store::Checkpoints() {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<std::string>> {
    Query query = reader_->Prepare("SELECT payload FROM checkpoints ORDER BY job");
    std::vector<std::string> payloads;
    while (query.Step()) payloads.push_back(query.Blob());
    return payloads;
  });
}

absl::StatusOr<RecordedJob> Store::GetJob(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<RecordedJob> {
    Query query = reader_->Prepare(RecordedJobWhere("id = ?"));
    if (!query.Bind(id).Step()) return DoesNotExist("jobs/" + id);
    return ReadRecordedJob(query);
  });
}

absl::StatusOr<JobPage> Store::ListJobs(const JobQuery& wanted) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<JobPage> {
    Query newest = reader_->Prepare("SELECT ifnull(max(number), 0) FROM jobs");
    const auto [low, high] = NumbersToLookAt(wanted, newest.Step() ? newest.Int() : 0);
    // One descent of the index for each state: a sort of all jobs in several states would touch every one of them.
    std::vector<int64_t> numbers;
    std::set<JobState> states = wanted.states;
    if (states.empty()) states.insert(JobState(0));  // any
    for (const JobState state : states) {
      Query query = reader_->Prepare(absl::StrCat(
          "SELECT number FROM jobs WHERE ", wanted.states.empty() ? "0 = ?" : "state = ?",
          " AND number BETWEEN ? AND ? AND ? IN ('', tenant) AND ? IN ('', tenant) AND ? IN ('', base_model) "
          "AND ? IN ('', model) AND create_time >= ? AND create_time < ? AND end_time >= ? AND end_time < ? "
          "ORDER BY number ",
          wanted.oldest_first ? "ASC" : "DESC", " LIMIT ?"));
      query.Bind(static_cast<int64_t>(state), low, high, wanted.tenant, wanted.of_tenant, wanted.base_model,
                 wanted.model, wanted.created_from, wanted.created_before, wanted.ended_from, wanted.ended_before,
                 int64_t{wanted.limit} + 1);
      while (query.Step()) numbers.push_back(query.Int());
    }
    std::sort(numbers.begin(), numbers.end());
    if (!wanted.oldest_first) std::reverse(numbers.begin(), numbers.end());
    JobPage page;
    if (static_cast<int>(numbers.size()) > wanted.limit) {
      numbers.resize(static_cast<size_t>(wanted.limit));
      page.next = numbers.back();
    } else if (wanted.oldest_first ? high < kNoNumber : low > 0) {
      page.next = wanted.oldest_first ? high : low;
    }
    for (const int64_t number : numbers) {
      Query query = reader_->Prepare(RecordedJobWhere("number = ?"));
      if (query.Bind(number).Step()) page.jobs.push_back(ReadRecordedJob(query));
    }
    return page;
  });
}

absl::StatusOr<std::optional<std::pair<JobRequest, RecordedJob>>> Store::ReplayedRequest(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::optional<std::pair<JobRequest, RecordedJob>>> {
    Query query =
        reader_->Prepare(absl::StrCat("SELECT body_sha256, ", kJobColumns, ", ", kSpecColumns, " FROM (", kRequest,
                                      ") JOIN jobs ON number = created JOIN ", kSpecTables, " WHERE job = number"));
    if (!query.Bind(id).Step()) return std::nullopt;
    const JobRequest request{id, query.Text()};
    return std::make_pair(request, ReadRecordedJob(query));
  });
}

absl::StatusOr<std::vector<Job>> Store::JobsToExpire(absl::Duration retention, absl::Time now, int limit) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Job>> {
    Query query = reader_->Prepare(absl::StrCat("SELECT ", kJobColumns,
                                                " FROM jobs WHERE end_time > 0 AND expired = 0 AND end_time <= ? - "
                                                "ifnull(retention, ?) ORDER BY end_time LIMIT ?"));
    query.Bind(now, absl::ToInt64Microseconds(retention), int64_t{limit});
    std::vector<Job> jobs;
    while (query.Step()) jobs.push_back(ReadJob(query));
    return jobs;
  });
}

absl::StatusOr<Sweep> Store::GetSweep(const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<Sweep> {
    Query query = reader_->Prepare("SELECT id, tenant, first_job, jobs, create_time, payload FROM sweeps WHERE id = ?");
    if (!query.Bind(id).Step()) return DoesNotExist("sweeps/" + id);
    return ReadSweep(query);
  });
}

absl::StatusOr<std::vector<Sweep>> Store::ListSweeps(const std::string& tenant, int64_t before, int limit) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Sweep>> {
    Query query = reader_->Prepare(
        "SELECT id, tenant, first_job, jobs, create_time, payload FROM sweeps WHERE (?1 = '' OR tenant = ?1) "
        "AND (?2 = 0 OR first_job < ?2) ORDER BY first_job DESC LIMIT ?3");
    query.Bind(tenant, before, int64_t{limit});
    std::vector<Sweep> sweeps;
    while (query.Step()) sweeps.push_back(ReadSweep(query));
    return sweeps;
  });
}

absl::StatusOr<std::vector<Job>> Store::JobsOf(const Sweep& sweep) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Job>> {
    Query query = reader_->Prepare(
        absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE number >= ? AND number < ? ORDER BY number"));
    query.Bind(sweep.first_job, sweep.first_job + sweep.jobs);
    std::vector<Job> jobs;
    while (query.Step()) jobs.push_back(ReadJob(query));
    return jobs;
  });
}

absl::StatusOr<std::map<JobState, int64_t>> Store::CountJobsOf(const Sweep& sweep) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::map<JobState, int64_t>> {
    Query query = reader_->Prepare("SELECT state, count(*) FROM jobs WHERE number >= ? AND number < ? GROUP BY state");
    query.Bind(sweep.first_job, sweep.first_job + sweep.jobs);
    std::map<JobState, int64_t> counts;
    while (query.Step()) {
      const auto state = static_cast<JobState>(query.Int());
      counts[state] = query.Int();
    }
    return counts;
  });
}

absl::StatusOr<std::vector<Event>> Store::Events(int64_t job, int64_t after, int limit,
                                                 const std::vector<std::string>& types) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Event>> {
    std::string sql =
        "SELECT sequence, time, attempt, type, message, state, payload FROM events WHERE job = ? AND sequence > ?";
    for (size_t i = 0; i < types.size(); ++i) absl::StrAppend(&sql, i == 0 ? " AND type IN (?" : ", ?");
    absl::StrAppend(&sql, types.empty() ? "" : ")", " ORDER BY sequence LIMIT ?");
    Query query = reader_->Prepare(sql);
    query.Bind(job, after);
    for (const std::string& type : types) query.Add(type);
    query.Add(int64_t{limit});
    std::vector<Event> events;
    while (query.Step()) {
      Event event{.job = job};
      event.sequence = query.Int();
      event.time = query.Time();
      event.attempt = static_cast<int>(query.Int());
      event.type = query.Text();
      event.message = query.Text();
      event.state = static_cast<int>(query.Int());
      event.payload = query.Blob();
      events.push_back(std::move(event));
    }
    return events;
  });
}

absl::StatusOr<int64_t> Store::CursorBefore(int64_t job, const std::string& type, int64_t lines) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<int64_t> {
    Query query = reader_->Prepare(
        "SELECT sequence FROM events WHERE job = ? AND type = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?");
    return query.Bind(job, type, lines).Step() ? query.Int() : 0;
  });
}

}  // namespace luthier
