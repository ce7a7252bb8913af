#include "client/cli/waiting_line.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/text.h"
#include "lib/base/steady_now.h"

namespace luthier {

WaitingLine::WaitingLine(std::ostream& out, const Terminal& terminal, std::function<std::string()> what,
                         absl::Duration redraw) {
  if (!terminal.interactive) return;
  thread_ = std::thread([this, &out, terminal, what = std::move(what), redraw] { Draw(out, terminal, what, redraw); });
}

WaitingLine::~WaitingLine() {
  over_.Notify();
  if (thread_.joinable()) thread_.join();
}

void WaitingLine::Draw(std::ostream& out, const Terminal& terminal, const std::function<std::string()>& what,
                       absl::Duration redraw) {
  const absl::Time begin = SteadyNow();
  const char* erase = "";
  while (!over_.WaitFor(redraw)) {
    const std::string line = absl::StrCat(what(), "  ", DurationText(SteadyNow() - begin));
    out << "\r" << Ellipsize(line, terminal.AsItIsNow().width - 1) << "\x1b[K" << std::flush;
    erase = "\r\x1b[K";
  }
  out << erase << std::flush;
}

}  // namespace luthier
