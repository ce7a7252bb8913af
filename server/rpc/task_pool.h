// A few threads for short blocking work, which they take from each tenant in turn.
#pragma once

#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/rpc/fair_queue.h"

namespace luthier {

class TaskPool {
 public:
  using Task = std::function<void()>;

  explicit TaskPool(int threads, const FairLimits& limits = {}) : tasks_(limits) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~TaskPool() {  // finishes what was accepted
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  // False if as many tasks of the tenant wait as may: then this one never runs.
  [[nodiscard]] bool Post(const std::string& tenant, Task task) {
    {
      const std::lock_guard lock(mutex_);
      if (!tasks_.Push(tenant, std::move(task))) return false;
    }
    work_.notify_one();
    return true;
  }
  // Posts and waits until the task has run; what it throws, this does. On a thread of the pool, which has a turn
  // already, it runs at once: none of them waits for another.
  [[nodiscard]] bool Run(const std::string& tenant, const Task& task) {
    if (pool_of_thread_ == this) {
      task();
      return true;
    }
    const auto run = std::make_shared<std::packaged_task<void()>>(task);  // its thread has it longer than we wait
    std::future<void> end = run->get_future();
    if (!Post(tenant, [run] { (*run)(); })) return false;
    end.get();
    return true;
  }
  // What is no tenant's own. Requires: a pool without limits.
  void Post(Task task) { (void)Post("", std::move(task)); }

 private:
  void Work() {
    pool_of_thread_ = this;
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const auto [tenant, task] = tasks_.Pop();
      lock.unlock();
      task();
      lock.lock();
      tasks_.Done(tenant);
    }
  }

  static inline thread_local const TaskPool* pool_of_thread_ = nullptr;

  std::mutex mutex_;
  std::condition_variable work_;
  FairQueue<Task> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace luthier
