// One line that says what is being done and for how long, while somebody waits for it.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "client/cli/terminal.h"
#include "client/lib/stop_signal.h"

namespace luthier {

// On a person's terminal, until it goes; in a file it says nothing. Nobody else writes there meanwhile.
class WaitingLine {
 public:
  // `what` is asked again for each drawing, on a thread of its own. What is over before the first one leaves no trace.
  WaitingLine(std::ostream& out, const Terminal& terminal, std::function<std::string()> what,
              absl::Duration redraw = absl::Seconds(1));
  WaitingLine(const WaitingLine&) = delete;
  ~WaitingLine();

 private:
  void Draw(std::ostream& out, const Terminal& terminal, const std::function<std::string()>& what,
            absl::Duration redraw);

  StopSignal over_;
  std::thread thread_;
};

}  // namespace luthier
