// Who watches which job. Events that were committed are handed to a thread of its own, which tells the watchers: ten
// thousand of them must not hold up the state loop.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "luthier/v1/jobs.pb.h"
#include "server/core/state.h"

namespace luthier {

// One watcher. Methods are called on the hub's thread and must not block.
class JobWatcher {
 public:
  virtual ~JobWatcher() = default;
  // An event of the job, shared with its other watchers.
  virtual void OnEvent(const std::shared_ptr<const v1::WatchFineTuningJobResponse>& event) = 0;
  // Once a second, whatever the wall clock is set to: `now` is SteadyNow().
  virtual void OnTick(absl::Time now) = 0;
  // The server is shutting down.
  virtual void OnClose() = 0;
};

class WatchHub {
 public:
  // A quarter of all watchers that there may be.
  static constexpr size_t kMostOfTenant = 5000;
  explicit WatchHub(size_t most_of_tenant = kMostOfTenant);
  ~WatchHub();

  // `tenant`: whose token it watches with; empty: nobody's in particular. RESOURCE_EXHAUSTED if too many watch, in all
  // or of that tenant. A watcher that is added sees every event committed afterwards; it must be removed.
  absl::Status Add(int64_t job, const std::string& tenant, std::shared_ptr<JobWatcher> watcher);
  void Remove(int64_t job, const std::shared_ptr<JobWatcher>& watcher);
  // Events of one commit. Costs nothing if nobody watches their jobs.
  void Publish(const std::vector<Event>& events);
  // Ends every watch, those to come too.
  void Close();
  size_t watchers();

 private:
  using Watchers = std::map<std::shared_ptr<JobWatcher>, std::string>;  // with their tenants
  void Work();
  static std::vector<std::shared_ptr<JobWatcher>> Of(const Watchers& watchers);
  std::vector<std::shared_ptr<JobWatcher>> AllWatchers();

  const size_t most_of_tenant_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::unordered_map<int64_t, Watchers> by_job_;
  std::unordered_map<std::string, size_t> by_tenant_;  // none is 0
  size_t count_ = 0;
  std::deque<Event> events_;
  bool closed_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
