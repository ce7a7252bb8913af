// A submitted spec, checked against everything that is known before a node is taken, with every open value settled.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "lib/plan/resolve.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "server/rpc/dataset_use.h"
#include "server/rpc/plan.h"
#include "server/rpc/recently_used.h"
#include "server/rpc/task_pool.h"
#include "server/store/store.h"

namespace luthier {

struct RowCheck;

// What is wrong with a spec as far as it says so itself. Errors: INVALID_ARGUMENT with every violation.
absl::Status CheckSpec(const v1::FineTuningSpec& spec);

// RESOURCE_EXHAUSTED, where as much waits for the tenant's turn as may.
absl::Status TooManyPlansOf(const std::string& tenant);

// Encoding all rows of a dataset takes seconds to minutes and always gives the same: specs, rows and base models that
// were seen lately are not read again. Any thread.
class Planner {
 public:
  // `store`, `artifacts` and `threads` must outlive the planner. `threads`: read rows, for each tenant in turn.
  // `luthierd`: the program, which checks rows in processes of their own (server/rows).
  Planner(Store& store, ArtifactStore& artifacts, TaskPool& threads, std::string data_dir, std::string luthierd);
  ~Planner();

  // For whom a plan is made.
  struct Asker {
    std::string tenant;
    std::function<bool()> is_gone;  // then no rows are read for it; null: it waits whatever happens
  };
  // Errors: INVALID_ARGUMENT with every violation; NOT_FOUND for base model or dataset; RESOURCE_EXHAUSTED if it cannot
  // fit, or too much waits for the tenant's turn; CANCELLED if the asker is gone by then.
  absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const v1::FineTuningSpec& spec, const Asker& asker = {});
  // What PlanOf() would answer at once; null where it would have to make the plan.
  std::shared_ptr<const Plan> KnownPlanOf(const v1::FineTuningSpec& spec);

  // What a node has: the largest device decides what cannot fit, the most devices and the number of nodes what has to
  // wait for others.
  void SetNode(const std::string& node, const v1::Inventory& inventory);
  // Kills the processes that read rows; from here on none reads any. Who waits for rows gets UNAVAILABLE, from the
  // thread that waits for the process.
  void Stop() { stopping_.request_stop(); }
  // A dataset or base model was deleted; its name may come to mean something else.
  void Forget();

 private:
  // The most that a node has, of those that were seen.
  struct Limits {
    DeviceFacts device;
    int devices = 0;
    int nodes = 0;  // that were seen
  };
  absl::StatusOr<Plan> MakePlan(const v1::FineTuningSpec& spec, const Asker& asker, const Limits& limits,
                                const std::string& today);
  absl::StatusOr<Plan> MakeExport(const v1::FineTuningSpec& spec, const DeviceFacts& device);
  absl::StatusOr<std::shared_ptr<const LoadedModel>> LoadModel(const std::string& id);
  static void WarnAboutNodes(Plan& plan, const Limits& limits);
  absl::StatusOr<DatasetFacts> FactsOfRows(const LoadedModel& model, const Recipe& recipe,
                                           const std::vector<DatasetUse>& parts, const Asker& asker);
  // Waits while somebody reads them. `lock`: of `mutex_`.
  std::optional<DatasetFacts> KnownRows(const std::string& key, std::unique_lock<std::mutex>& lock);
  // On one of the threads, in the tenant's turn. `key`: what the facts depend on; `check`: without files.
  absl::StatusOr<DatasetFacts> ReadRows(const std::string& key, RowCheck check, const std::vector<DatasetUse>& parts,
                                        const Asker& asker);
  absl::StatusOr<DatasetFacts> CheckParts(RowCheck check, const std::vector<DatasetUse>& parts);
  Limits LimitsOfNodes();
  // What a plan is made of besides what the server holds.
  std::string KeyOf(const v1::FineTuningSpec& spec, const Limits& limits, const std::string& today) const;

  Store& store_;
  ArtifactStore& artifacts_;
  TaskPool& threads_;
  const std::string data_dir_, luthierd_;

  std::stop_source stopping_;
  std::mutex making_folder_;  // of a base model: one at a time

  std::mutex mutex_;  // of what follows; not held while planning
  std::condition_variable read_;
  std::set<std::string> reading_;  // keys of rows that some thread reads
  RecentlyUsed<std::shared_ptr<const Plan>> plans_;
  RecentlyUsed<DatasetFacts> rows_;
  RecentlyUsed<std::shared_ptr<const LoadedModel>> models_;
  int64_t forgotten_ = 0;                // what was planned before a Forget() is not kept
  std::map<std::string, Limits> nodes_;  // by id
};

}  // namespace luthier
