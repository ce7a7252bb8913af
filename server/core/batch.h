// One turn of the server, without threads: the order that makes an acknowledgement durable.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/state.h"

namespace luthier {

using Command = std::function<absl::Status(State&, absl::Time now)>;

// What came of a batch. Only with it may be answered, and only its effects may be sent.
struct BatchOutcome {
  absl::Status written;                // not OK: nothing of the batch happened
  std::vector<absl::Status> statuses;  // of the commands, in their order; all of them `written` if that is not OK and
                                       // one of them decided something
  Writes writes;
  std::vector<Effect> effects;
};

// Decides the commands, then what follows from them and from time; `commit` writes all of it in one transaction.
BatchOutcome RunBatch(State& state, const std::vector<Command>& commands, absl::Time now,
                      const std::function<absl::Status(const Writes&)>& commit);

}  // namespace luthier
