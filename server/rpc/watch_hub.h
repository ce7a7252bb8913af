// Who watches which job. Events that were committed are handed to a thread of its own, which tells the watchers: ten
// thousand of them must not hold up the state loop.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

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
  WatchHub();
  ~WatchHub();

  // RESOURCE_EXHAUSTED if too many watch. A watcher that is added sees every event committed afterwards; it must be
  // removed.
  absl::Status Add(int64_t job, std::shared_ptr<JobWatcher> watcher);
  void Remove(int64_t job, const std::shared_ptr<JobWatcher>& watcher);
  // Events of one commit. Costs nothing if nobody watches their jobs.
  void Publish(const std::vector<Event>& events);
  // Ends every watch, those to come too.
  void Close();
  size_t watchers();

 private:
  using Watchers = std::set<std::shared_ptr<JobWatcher>>;
  void Work();
  std::vector<std::shared_ptr<JobWatcher>> AllWatchers();

  std::mutex mutex_;
  std::condition_variable work_;
  std::unordered_map<int64_t, Watchers> by_job_;
  size_t count_ = 0;
  std::deque<Event> events_;
  bool closed_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
