#include "server/loop/state_loop.h"

#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "lib/base/steady_now.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

// More heartbeats than this between two ticks are dropped; the next ones come in 5 s.
constexpr size_t kIdleCapacity = 65536;
// Smaller steps of the wall clock are left to NTP's slewing and cost a lease nothing that matters.
constexpr absl::Duration kClockJump = absl::Seconds(2);
// A loop that comes round so late was stopped, or its disk hung. What agents sent meanwhile has not been read yet.
constexpr absl::Duration kStandstill = absl::Seconds(5);
// How long after a batch the thread looks for the next one before it sleeps: a caller that sends one request after
// another needs less between its answer and its next request.
constexpr absl::Duration kStayAwake = absl::Microseconds(500);
// A log that a reader made grow goes on being written from its start, but never becomes smaller by itself.
constexpr absl::Duration kEmptyLogEvery = absl::Minutes(1);
// Not after every batch: since Linux 6.13 a file that was looked at gets a new time with its next write, and
// fdatasync() writes the inode as well, 0.06 to 0.1 ms of every commit.
constexpr absl::Duration kWeighLogEvery = absl::Seconds(5);

}  // namespace

StateLoop::StateLoop(Store& store, State state, Options options)
    : store_(store),
      state_(std::move(state)),
      options_(std::move(options)),
      wall_ahead_(absl::Now() - SteadyNow()),
      last_turn_(SteadyNow()),
      next_emptying_(SteadyNow() + kEmptyLogEvery),
      thread_([this] { Loop(); }) {}

StateLoop::~StateLoop() {
  Stop();
  thread_.join();
}

void StateLoop::Stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  work_.notify_all();
}

absl::Status StateLoop::Run(Command command) {
  absl::Notification done;
  absl::Status result;
  Post(std::move(command), [&](const absl::Status& status) {
    result = status;
    done.Notify();
  });
  done.WaitForNotification();
  return result;
}

void StateLoop::Post(Command command, Done done) {
  absl::Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      refused = WithReason(absl::UnavailableError("the server is shutting down; try again"), "SHUTTING_DOWN");
    } else if (queue_.size() >= options_.queue_capacity) {
      refused =
          WithReason(absl::ResourceExhaustedError("the server has too many requests waiting; try again in a second"),
                     "OVERLOADED");
    } else {
      queue_.push_back({std::move(command), std::move(done)});
      if (queue_.size() == 1) work_.notify_one();
      return;
    }
  }
  done(refused);
}

void StateLoop::PostIdly(Command command) {
  const std::lock_guard lock(mutex_);
  if (!stopping_ && idle_.size() < kIdleCapacity) idle_.push_back(std::move(command));
}

void StateLoop::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    WaitForWork(lock);
    if (stopping_ && queue_.empty()) return;
    const std::deque<Command> idle = std::exchange(idle_, {});
    std::vector<Command> commands;
    std::vector<Done> dones;
    while (!queue_.empty() && commands.size() < options_.batch) {
      commands.push_back(std::move(queue_.front().command));
      dones.push_back(std::move(queue_.front().done));
      queue_.pop_front();
    }
    lock.unlock();
    const absl::Time now = Now();
    const absl::Time turn = SteadyNow();
    const absl::Duration away = turn - std::exchange(last_turn_, turn);
    if (away >= kStandstill) state_.StoodStill(away);
    for (const Command& command : idle) (void)command(state_, now);
    Turn(commands, dones, now);
    KeepLogShort();
    if (!commands.empty()) awake_until_ = SteadyNow() + kStayAwake;
    commands.clear();
    dones.clear();
    lock.lock();
  }
}

// Sleeping costs the caller of the next command more than the wait itself: an idle core of a virtual machine is given
// to others, and is back a tenth of a millisecond later. yield() leaves the core to every thread that has something to
// do.
void StateLoop::WaitForWork(std::unique_lock<std::mutex>& lock) {
  const auto has_work = [&] { return stopping_ || !queue_.empty(); };
  while (!has_work() && SteadyNow() < awake_until_) {
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
  work_.wait_for(lock, absl::ToChronoMilliseconds(options_.tick), has_work);
}

// Wall time that only moves with the monotonic clock. A wall clock that was set (or a machine that slept) shifts both,
// so that no lease runs out or lasts longer because of it.
absl::Time StateLoop::Now() {
  const absl::Time steady = SteadyNow();
  const absl::Duration jump = absl::Now() - (steady + wall_ahead_);
  if (absl::AbsDuration(jump) >= kClockJump) {
    wall_ahead_ += jump;
    state_.ClockJumped(jump);
  }
  return steady + wall_ahead_;
}

void StateLoop::Turn(const std::vector<Command>& commands, const std::vector<Done>& dones, absl::Time now) {
  if (!failure_.ok()) {
    for (const Done& done : dones) done(failure_);
    return;
  }
  const BatchOutcome outcome =
      RunBatch(state_, commands, now, [&](const Writes& writes) { return Write(writes, commands.size(), now); });
  if (outcome.written.ok()) {
    if (options_.on_batch) options_.on_batch(state_, outcome.writes, now);
    if (options_.send && !outcome.effects.empty()) options_.send(outcome.effects);
  }
  for (size_t i = 0; i < dones.size(); ++i) dones[i](outcome.statuses[i]);
}

absl::Status StateLoop::Write(const Writes& writes, size_t batch, absl::Time now) {
  const absl::Status written = store_.Commit(writes);
  // Not Now(): a jump that it found here would change the state between what is on disk and Commit().
  if (options_.on_commit_time) options_.on_commit_time(SteadyNow() + wall_ahead_ - now, batch);
  if (!absl::IsDataLoss(written)) {
    const bool refused = !written.ok();
    if (std::exchange(refused_, refused) != refused && options_.on_refusal) options_.on_refusal(written);
    return written;
  }
  Fail(written);
  return failure_;
}

void StateLoop::KeepLogShort() {
  if (failure_.ok() && SteadyNow() >= next_emptying_) {
    next_emptying_ = SteadyNow() + kEmptyLogEvery;
    if (const absl::Status emptied = store_.EmptyLog(); absl::IsDataLoss(emptied)) Fail(emptied);
  }
  if (options_.on_log_bytes && SteadyNow() >= next_weighing_) {
    next_weighing_ = SteadyNow() + kWeighLogEvery;
    options_.on_log_bytes(store_.LogBytes());
  }
}

// After a failed fsync nobody knows what is on disk, and a second one would say that all is well: end, and read it
// again.
void StateLoop::Fail(const absl::Status& status) {
  failure_ = absl::UnavailableError(status.message());
  if (options_.on_failure) options_.on_failure(status);
}

}  // namespace luthier
