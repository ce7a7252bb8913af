// A run from its first event to the last: time, what is said and what is wrong.
#include "tests/simulation/simulation.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr absl::Duration kCalm = absl::Hours(12);  // long enough for every retry with its delay

}  // namespace

Simulation::Simulation(uint64_t seed)
    : random_(seed), preempt_after_(random_.Between(absl::ZeroDuration(), absl::Minutes(1))) {}
Simulation::~Simulation() = default;

std::string Simulation::Run() {
  StartServer();
  for (int i = 0; i < kNodes; ++i) {
    Agent& agent = agents_[absl::StrCat("n", i)];
    agent.node = absl::StrCat("n", i);
    agent.devices = i == 0 ? 4 : i == 1 ? 2 + random_.Below(3) : 1 + random_.Below(4);  // every job fits somewhere
    StartAgent(agent);
  }
  SubmitLater();
  AskSomething();
  FaultLater();
  const absl::Time calm = now_ + kStorm, end = calm + kCalm;
  while (violation_.empty() && !timers_.empty() && now_ < end) {
    const Timer timer = timers_.top();
    timers_.pop();
    now_ = timer.time;
    if (!calm_ && now_ >= calm) {
      calm_ = true;
      disk_full_ = false;
      Say("--- calm");
      if (!state_) StartServer();
      for (auto& [node, agent] : agents_) {
        if (agent.roster == nullptr) StartAgent(agent);
      }
    }
    timer.action();
    if (calm_ && Settled()) break;
  }
  if (violation_.empty() && !Settled())
    Violate(absl::StrCat("liveness: 12 hours after the last fault there is still", Unsettled()));
  if (violation_.empty()) CheckRecord();
  return violation_;
}

void Simulation::At(absl::Duration delay, std::function<void()> action) {
  timers_.push({now_ + delay, ++order_, std::move(action)});
}

void Simulation::Say(const std::string& text) {
  log_.push_back(absl::StrCat(absl::FormatTime("%H:%M:%E3S", now_, absl::UTCTimeZone()), " ", text));
}

void Simulation::Violate(const std::string& text) {
  Say("VIOLATION " + text);
  if (violation_.empty()) violation_ = text;
}

}  // namespace luthier
