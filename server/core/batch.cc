#include "server/core/batch.h"

namespace luthier {

BatchOutcome RunBatch(State& state, const std::vector<Command>& commands, absl::Time now,
                      const std::function<absl::Status(const Writes&)>& commit) {
  BatchOutcome outcome;
  for (const Command& command : commands) outcome.statuses.push_back(command(state, now));
  const bool only_asked = !state.HasDecided();
  state.Tick(now);
  outcome.writes = state.TakeWrites();
  if (!outcome.writes.empty()) outcome.written = commit(outcome.writes);
  if (!outcome.written.ok()) {
    state.Rollback();
    // What is due is tried again with every batch: on a full disk nobody could read anything.
    if (only_asked) return outcome;
    for (absl::Status& status : outcome.statuses) status = outcome.written;
    return outcome;
  }
  outcome.effects = state.TakeEffects();
  state.Commit();
  return outcome;
}

}  // namespace luthier
