#include "server/rpc/watch_hub.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/steady_now.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"

namespace luthier {
namespace {

// Each costs some 20 KB in gRPC and here.
constexpr size_t kMaxWatchers = 20000;

absl::Status TooManyOf(const std::string& tenant, size_t watching) {
  return TenantMayNotHaveMore(tenant,
                              absl::StrCat("tenants/", tenant, " has ", watching,
                                           " watches open, as many as a tenant may; close some, or try again later"),
                              "TOO_MANY_WATCHERS");
}

}  // namespace

WatchHub::WatchHub(size_t most_of_tenant) : most_of_tenant_(most_of_tenant), thread_([this] { Work(); }) {}

WatchHub::~WatchHub() {
  Close();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

absl::Status WatchHub::Add(int64_t job, const std::string& tenant, std::shared_ptr<JobWatcher> watcher) {
  const std::lock_guard lock(mutex_);
  if (closed_) return WithReason(absl::UnavailableError("the server is shutting down; watch again"), "SHUTTING_DOWN");
  if (count_ >= kMaxWatchers) {
    return WithReason(absl::ResourceExhaustedError("too many watch at once; try again later"), "TOO_MANY_WATCHERS");
  }
  if (!tenant.empty()) {
    size_t& watching = by_tenant_[tenant];
    if (watching >= most_of_tenant_) return TooManyOf(tenant, watching);
    ++watching;
  }
  by_job_[job].emplace(std::move(watcher), tenant);
  ++count_;
  return absl::OkStatus();
}

void WatchHub::Remove(int64_t job, const std::shared_ptr<JobWatcher>& watcher) {
  const std::lock_guard lock(mutex_);
  const auto found = by_job_.find(job);
  if (found == by_job_.end()) return;
  const auto removed = found->second.extract(watcher);
  if (removed.empty()) return;
  --count_;
  const auto tenant = by_tenant_.find(removed.mapped());
  if (tenant != by_tenant_.end() && --tenant->second == 0) by_tenant_.erase(tenant);
  if (found->second.empty()) by_job_.erase(found);
}

void WatchHub::Publish(const std::vector<Event>& events) {
  const std::lock_guard lock(mutex_);
  if (count_ == 0) return;
  const size_t before = events_.size();
  for (const Event& event : events) {
    if (by_job_.count(event.job) > 0) events_.push_back(event);
  }
  if (events_.size() > before) work_.notify_one();
}

void WatchHub::Close() {
  std::vector<std::shared_ptr<JobWatcher>> watchers;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    watchers = AllWatchers();
  }
  for (const auto& watcher : watchers) watcher->OnClose();
}

size_t WatchHub::watchers() {
  const std::lock_guard lock(mutex_);
  return count_;
}

std::vector<std::shared_ptr<JobWatcher>> WatchHub::Of(const Watchers& watchers) {
  std::vector<std::shared_ptr<JobWatcher>> all;
  all.reserve(watchers.size());
  for (const auto& [watcher, tenant] : watchers) all.push_back(watcher);
  return all;
}

std::vector<std::shared_ptr<JobWatcher>> WatchHub::AllWatchers() {
  std::vector<std::shared_ptr<JobWatcher>> all;
  all.reserve(count_);
  for (const auto& [job, watchers] : by_job_) {
    for (const auto& [watcher, tenant] : watchers) all.push_back(watcher);
  }
  return all;
}

void WatchHub::Work() {
  std::unique_lock lock(mutex_);
  absl::Time next_tick = SteadyNow() + absl::Seconds(1);
  while (!stopping_) {
    work_.wait_for(lock, absl::ToChronoNanoseconds(next_tick - SteadyNow()),
                   [this] { return stopping_ || !events_.empty(); });
    while (!events_.empty()) {
      const Event event = std::move(events_.front());
      events_.pop_front();
      const auto found = by_job_.find(event.job);
      if (found == by_job_.end()) continue;
      const std::vector<std::shared_ptr<JobWatcher>> watchers = Of(found->second);
      lock.unlock();
      auto message = std::make_shared<v1::WatchFineTuningJobResponse>();
      *message->mutable_event() = ToProto(event);
      for (const auto& watcher : watchers) watcher->OnEvent(message);
      lock.lock();
    }
    const absl::Time now = SteadyNow();
    if (now < next_tick) continue;
    next_tick = now + absl::Seconds(1);
    const std::vector<std::shared_ptr<JobWatcher>> watchers = AllWatchers();
    lock.unlock();
    for (const auto& watcher : watchers) watcher->OnTick(now);
    lock.lock();
  }
}

}  // namespace luthier
