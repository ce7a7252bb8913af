// The folder `checkpoints` of a run, as far as an agent knows it: `step-N` is complete once it has that name, `best-N`
// lies beside it, and the trainer removes both when it wants to.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace luthier {

// What one checkpoint consists of.
struct RunCheckpoint {
  int64_t step = 0;       // of `step-N`
  int64_t best_step = 0;  // of `best-N`, which it names; 0: none
};

// As an event of the trainer says. 0 where it says nothing.
RunCheckpoint CheckpointOf(const nlohmann::json& event);

// Of the newest checkpoint; 0 if there is none.
int64_t NewestStep(const std::string& checkpoints);

// Gives the files of a checkpoint a second name in the folder `links`, so that they stay whatever the trainer removes.
// Errors: NOT_FOUND if one of its folders is gone already.
absl::Status LinkCheckpoint(const std::string& checkpoints, const RunCheckpoint& checkpoint, const std::string& links);

// Makes copies of `files` (their paths beneath `checkpoints`, and where each lies) the only checkpoint of the run,
// whose folder is one of a run from then on. What was there goes: it is older, and may be of another attempt, which the
// trainer would take for damage.
absl::Status InstallCheckpoint(const std::map<std::string, std::string>& files, const std::string& checkpoints);

}  // namespace luthier
