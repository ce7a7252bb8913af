// Tells by what a trainer says, and when, whether it has stalled: a collective that waits for ever, a driver that
// hangs, a disk that does not answer. Pure: time is an argument.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace luthier {

class StallWatch {
 public:
  // `patience` with silence between two steps; InfiniteDuration: without end.
  StallWatch(absl::Duration patience, absl::Time start) : patience_(patience), heard_(start) {}

  // An event of the trainer (docs/trainer-protocol.md). Log lines do not count: a library that waits may go on writing
  // that it waits.
  void Observe(const nlohmann::json& event, absl::Time now);

  bool HasStalled(absl::Time now) const { return now >= heard_ + limit(); }
  // "the trainer said nothing for 15m while it trained".
  std::string Text() const;

 private:
  enum class Phase { kLoading, kTraining, kExporting };
  absl::Duration limit() const;

  const absl::Duration patience_;
  absl::Time heard_;
  Phase phase_ = Phase::kLoading;
  absl::Duration step_;  // how long one takes, as it said last
};

}  // namespace luthier
