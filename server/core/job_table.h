// The jobs that are not over, and what has to be known of all of them together: counts, the queue, who holds which device.
// A job changes only through Update(), so that these follow, and so that a batch which could not be written is undone.
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

namespace luthier {

class JobTable {
 public:
  // Oldest first: a job that lost its attempt goes back to where it was.
  struct QueueOrder {
    bool operator()(const Job* a, const Job* b) const {
      return std::tie(a->create_time, a->number) < std::tie(b->create_time, b->number);
    }
  };
  using Queue = std::set<const Job*, QueueOrder>;

  // Null if there is none. A job that became terminal is here until Commit().
  const Job* Find(absl::string_view id) const;
  // Requires: no job has its id or number.
  const Job& Insert(Job job);
  // The same for a job that is on record already.
  void Load(Job job) { Add(std::move(job)); }
  template <typename Change>
  const Job& Update(const Job& job, Change change) {
    Job& mine = *jobs_.at(job.id);
    before_.try_emplace(mine.number, Before{&mine, mine});
    Unindex(mine);
    change(mine);
    Index(mine);
    return mine;
  }

  // Jobs that Insert and Update touched since the last Commit or Rollback.
  std::vector<const Job*> Changed() const;
  // The changes are durable: they cannot be undone, and terminal jobs leave.
  void Commit();
  // Every job is as it was at the last Commit.
  void Rollback();

  // Waiting jobs whose next attempt may start at once. Those whose delay ran out by `now` join them.
  const Queue& QueueAt(absl::Time now);
  // Waiting jobs whose delay has not run out.
  std::vector<const Job*> Delayed() const { return {delayed_.begin(), delayed_.end()}; }
  size_t queue_size() const { return queue_.size(); }
  // Jobs that hold devices of a node, by id.
  const std::set<std::string>& OnNode(const std::string& node) const;
  // Jobs that are not over and use a dataset or base model, given as `datasets/{id}` or `baseModels/{id}`.
  int64_t UsesOf(const std::string& resource) const;
  // The id of one of them. Walks the jobs: for the message of an error only. Requires: UsesOf(resource) > 0.
  std::string AUserOf(const std::string& resource) const;
  // Of a terminal state: how many ended so, in all.
  int64_t count(JobState state) const { return counts_[static_cast<size_t>(state)]; }
  void AddFinished(JobState state, int64_t jobs) { counts_[static_cast<size_t>(state)] += jobs; }
  int64_t waiting() const { return count(JobState::kQueued) + count(JobState::kRecovering); }
  size_t size() const { return jobs_.size(); }
  // When the job that waits longest was created; InfiniteFuture if none waits.
  absl::Time OldestWaiting() const;
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
  struct Before {
    Job* now;
    std::optional<Job> job;  // none: it did not exist
  };
  Job& Add(Job job);
  void Remove(const Job& job);
  void Index(const Job& job);
  void Unindex(const Job& job);

  absl::flat_hash_map<absl::string_view, std::unique_ptr<Job>> jobs_;  // keys are views of Job::id
  std::map<int64_t, Before> before_;
  Queue queue_;
  std::set<const Job*, DelayOrder> delayed_;
  absl::flat_hash_map<std::string, std::set<std::string>> on_node_;
  absl::flat_hash_map<std::string, int64_t> uses_;
  std::array<int64_t, 16> counts_ = {};  // by state
};

}  // namespace luthier
