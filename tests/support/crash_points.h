// Which of its calls to the disk (tests/support/faulty_disk.cc) a program does not survive, one run each.
//
// Every one, or one in some, where LUTHIER_CRASH_SEED says which; with LUTHIER_CRASH_POINTS=all every one.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>

namespace luthier {

class CrashPoints {
 public:
  explicit CrashPoints(int one_in = 1) : one_in_(std::getenv("LUTHIER_CRASH_POINTS") == nullptr ? one_in : 1) {
    const char* const seed = std::getenv("LUTHIER_CRASH_SEED");
    seed_ = seed == nullptr ? std::random_device()() : static_cast<unsigned>(std::strtoul(seed, nullptr, 10));
    next_ = 1 + static_cast<int>(seed_ % static_cast<unsigned>(one_in_));
  }
  ~CrashPoints() { std::printf("LUTHIER_CRASH_SEED=%u, killed at %d calls, one in %d\n", seed_, tried_ - 1, one_in_); }

  int Next() {
    ++tried_;
    return std::exchange(next_, next_ + one_in_);
  }
  // About how many there are, once the last one was survived.
  int all() const { return (tried_ - 1) * one_in_; }
  // What to do to see it again.
  std::string Trace(int point) const {
    return "LUTHIER_CRASH_SEED=" + std::to_string(seed_) + ", killed at call " + std::to_string(point);
  }

 private:
  const int one_in_;
  unsigned seed_;
  int next_, tried_ = 0;
};

}  // namespace luthier
