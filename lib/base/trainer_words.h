// What a trainer and who starts it agree on (docs/trainer-protocol.md).
#pragma once

#include <string_view>

namespace luthier {

// Whether nothing follows this event.
inline bool IsLastWord(std::string_view event) {
  return event == "finished" || event == "failed" || event == "stopped";
}

// Exit code of a rank that ends because another one is gone, and of a trainer whose ranks only lost those of other
// nodes: not what the run failed by.
inline constexpr int kLostRankExitCode = 3;

}  // namespace luthier
