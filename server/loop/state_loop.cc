#include "server/loop/state_loop.h"

#include <utility>

#include "absl/time/clock.h"

namespace luthier {

StateLoop::StateLoop(Store& store, State state, Options options)
    : store_(store), state_(std::move(state)), options_(std::move(options)), thread_([this] { Loop(); }) {}

StateLoop::~StateLoop() {
  Stop();
  thread_.join();
}

void StateLoop::Stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  work_.notify_all();
  done_.notify_all();
}

bool StateLoop::stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

absl::Status StateLoop::Run(Command command) {
  Waiting waiting{std::move(command), absl::OkStatus()};
  std::unique_lock lock(mutex_);
  if (stopping_) return absl::UnavailableError("the server is shutting down; try again");
  if (queue_.size() >= options_.queue_capacity) {
    return absl::ResourceExhaustedError("the server has too many requests waiting; try again in a second");
  }
  queue_.push_back(&waiting);
  work_.notify_one();
  done_.wait(lock, [&] { return waiting.done; });
  return waiting.status;
}

uint64_t StateLoop::WaitForCommit(uint64_t seen, absl::Time deadline) {
  std::unique_lock lock(mutex_);
  done_.wait_until(lock, absl::ToChronoTime(deadline), [&] { return commits_ != seen || stopping_; });
  return commits_;
}

void StateLoop::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait_for(lock, absl::ToChronoMilliseconds(options_.tick), [&] { return stopping_ || !queue_.empty(); });
    if (stopping_ && queue_.empty()) return;
    std::vector<Waiting*> batch;
    while (!queue_.empty() && batch.size() < options_.batch) {
      batch.push_back(queue_.front());
      queue_.pop_front();
    }
    lock.unlock();
    const bool wrote = RunBatch(batch);
    lock.lock();
    for (Waiting* waiting : batch) waiting->done = true;
    if (wrote) ++commits_;
    done_.notify_all();
  }
}

bool StateLoop::RunBatch(std::vector<Waiting*>& batch) {
  const absl::Time now = absl::Now();
  for (Waiting* waiting : batch) waiting->status = waiting->command(state_, now);
  state_.Tick(now);
  const Writes writes = state_.TakeWrites();
  const std::vector<Effect> effects = state_.TakeEffects();
  if (!writes.empty()) {
    const absl::Status written = store_.Commit(writes, state_);
    if (options_.on_commit_time) options_.on_commit_time(absl::Now() - now, batch.size());
    if (!written.ok()) {
      // Memory is ahead of the disk: go back to what is durable. Agents register again within a lease.
      for (Waiting* waiting : batch) waiting->status = written;
      if (absl::StatusOr<State> durable = store_.LoadState(now); durable.ok()) {
        durable->AdoptNodes(state_, now);
        state_ = *std::move(durable);
      }
      return false;
    }
  }
  if (options_.send) options_.send(effects);
  if (options_.on_commit) options_.on_commit(state_);
  return !writes.empty();
}

}  // namespace luthier
