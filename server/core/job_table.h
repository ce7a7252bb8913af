// The jobs that are not over, and what has to be known of all of them together: counts, the queue, who holds which
// device. A job changes only through Update(), so that these follow, and so that a batch which could not be written is
// undone.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "server/core/job.h"
#include "server/core/policy.h"

namespace luthier {

class JobTable {
 public:
  // By the age of the job, not of its wait: a job that lost its attempt goes back to where it was.
  struct QueueOrder {
    bool operator()(const Job* a, const Job* b) const { return ComesBefore(*a, *b); }
  };
  using Queue = std::set<const Job*, QueueOrder>;
  // A tenant's jobs of one class.
  using Queues = std::map<std::pair<ServiceClass, std::string>, Queue>;
  // What a tenant has in the table.
  struct Load {
    int64_t waiting = 0;
    int64_t resting = 0;  // on hold or paused
    int running_devices = 0;
    int stopping_devices = 0;  // of those, of attempts that were told to stop
    int kept_devices() const { return running_devices - stopping_devices; }
  };

  // Null if there is none. A job that became terminal is here until Commit().
  const Job* Find(absl::string_view id) const;
  // Requires: no job has its id or number.
  const Job& Insert(Job job);
  // Room for so many jobs.
  void Reserve(size_t jobs) { jobs_.reserve(jobs); }
  // As Insert, for a job that is on record already.
  void LoadJob(std::unique_ptr<Job> job) { Add(std::move(job)); }
  // As Insert, for a job that is over; it leaves again at the end of the batch unless it is not over any more.
  void Borrow(Job job);
  template <typename Change>
  const Job& Update(const Job& job, Change change) {
    Job& mine = *jobs_.at(job.id);
    if (before_.count(mine.number) == 0) before_.emplace(mine.number, Before{&mine, std::make_unique<Job>(mine)});
    Unindex(mine);
    change(mine);
    Index(mine);
    return mine;
  }

  // Jobs that Insert and Update touched since the last Commit or Rollback.
  std::vector<const Job*> Changed() const;
  bool HasChanged() const { return !before_.empty(); }
  // The changes are durable: they cannot be undone, and terminal jobs leave.
  void Commit();
  // Every job is as it was at the last Commit.
  void Rollback();

  // Waiting jobs whose next attempt may start at once. Those whose delay ran out by `now` join them first; true if
  // there were any.
  bool EndDelays(absl::Time now);
  const Queues& queues() const { return queues_; }
  // Waiting jobs whose delay has not run out.
  std::vector<const Job*> Delayed() const { return {delayed_.begin(), delayed_.end()}; }
  // A job whose deadline is over; null if there is none.
  const Job* Overdue(absl::Time now) const;
  // Jobs that hold devices of a node, by id: those of a gang on each of its nodes.
  const std::set<std::string>& OnNode(const std::string& node) const;
  // Jobs that are not over and use a dataset or base model, given as `datasets/{id}` or `baseModels/{id}`.
  int64_t UsesOf(const std::string& resource) const;
  // The id of one of them. Walks the jobs: for the message of an error only. Requires: UsesOf(resource) > 0.
  std::string AUserOf(const std::string& resource) const;
  // The tenant whose jobs that are not over publish under a model; null if none does.
  const std::string* PublisherOf(const std::string& model) const;
  // Of a terminal state: how many ended so, in all.
  int64_t count(JobState state) const { return counts_[static_cast<size_t>(state)]; }
  void AddFinished(JobState state, int64_t jobs) { counts_[static_cast<size_t>(state)] += jobs; }
  int64_t waiting() const { return count(JobState::kQueued) + count(JobState::kRecovering); }
  size_t size() const { return jobs_.size(); }
  // When the job that waits longest was created, of all and of a tenant; InfiniteFuture if none waits.
  absl::Time OldestWaiting() const;
  absl::Time OldestWaitingOf(const std::string& tenant) const;
  Load LoadOf(const std::string& tenant) const;
  // Jobs that hold devices, of a sweep with a limit of them.
  int RunningOf(int64_t sweep) const;
  // Whether an attempt of a less urgent class holds devices.
  bool RunsLessUrgentThan(ServiceClass service_class) const;
  // Every job, in no order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const auto& [id, job] : jobs_) visit(static_cast<const Job&>(*job));
  }

 private:
  struct DelayOrder {
    bool operator()(const Job* a, const Job* b) const {
      return std::tie(a->not_before, a->number) < std::tie(b->not_before, b->number);
    }
  };
  struct DeadlineOrder {
    bool operator()(const Job* a, const Job* b) const {
      return std::tie(a->deadline, a->number) < std::tie(b->deadline, b->number);
    }
  };
  struct Publishers {
    std::string tenant;
    int64_t jobs = 0;
  };
  struct Before {
    Job* now;
    std::unique_ptr<Job> job;  // null: it did not exist
  };
  Job& Add(std::unique_ptr<Job> job);
  void Remove(const Job& job);
  void Index(const Job& job);
  void Unindex(const Job& job);
  void CountUses(const Job& job, int by);
  // What the job holds, added to or taken out of what is counted.
  void CountHeld(const Job& job, int by);

  absl::flat_hash_map<absl::string_view, std::unique_ptr<Job>> jobs_;  // keys are views of Job::id
  std::map<int64_t, Before> before_;
  struct AgeOrder {
    bool operator()(const Job* a, const Job* b) const { return a->number < b->number; }
  };
  Queues queues_;                                                            // none of them empty
  absl::flat_hash_map<std::string, std::set<const Job*, AgeOrder>> by_age_;  // all that wait, by tenant; none is empty
  std::set<const Job*, DelayOrder> delayed_;
  std::set<const Job*, DeadlineOrder> deadlines_;  // that have one and can miss it
  absl::flat_hash_map<std::string, std::set<std::string>> on_node_;
  absl::flat_hash_map<std::string, int64_t> uses_of_base_models_, uses_of_datasets_;  // by what Job has
  // By model, of jobs that publish under another name than their id: most do not, and cost no entry.
  absl::flat_hash_map<std::string, Publishers> publishers_;
  absl::flat_hash_map<std::string, Load> loads_;                  // by tenant
  absl::flat_hash_map<int64_t, int> running_of_sweep_;            // as RunningOf says; none is 0
  std::array<int64_t, 16> counts_ = {};                           // by state
  std::array<int64_t, kServiceClasses.size() + 1> running_ = {};  // that hold devices, by class
};

}  // namespace luthier
