// What a trainer and who starts it agree on (docs/trainer-protocol.md).
#pragma once

#include <string_view>

namespace luthier {

// Whether nothing follows this event.
inline bool IsLastWord(std::string_view event) {
  return event == "finished" || event == "failed" || event == "stopped";
}

// Whether there is a checkpoint that it speaks of.
inline bool TellsOfCheckpoint(std::string_view event) { return event == "checkpoint" || event == "stopped"; }

// In the folder of a run: what it tells, from its start on, and its checkpoints.
inline constexpr char kMetricsFile[] = "metrics.jsonl", kCheckpointsFolder[] = "checkpoints";
// Folders in there, before the number of a step, and the file that is written last in each.
inline constexpr char kStepFolder[] = "step-", kBestFolder[] = "best-", kStateFile[] = "state.json";

// Exit code of a rank that ends because another one is gone, and of a trainer whose ranks only lost those of other
// nodes: not what the run failed by.
inline constexpr int kLostRankExitCode = 3;

}  // namespace luthier
