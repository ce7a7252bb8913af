// A block of lines that is drawn again in its place.
#pragma once

#include <ostream>
#include <string>

#include "client/cli/terminal.h"

namespace luthier {

// At the cursor of a person's terminal. What was drawn last stays when it goes.
class Screen {
 public:
  Screen(std::ostream& out, const Terminal& terminal) : out_(out), terminal_(terminal) {}

  // Puts the text in the place of what was drawn before: at most one screen of it, whose last line then says how much
  // is left out, and of each line what the terminal is wide enough for.
  void Draw(const std::string& text);
  // The terminal may have another size by now. What was drawn at the old one may have been wrapped, so nobody knows
  // where it begins: the next drawing begins at the top of the cleared terminal.
  void Resize(const Terminal& terminal);
  // Something else has been written below: the next drawing begins there.
  void Leave() { lines_ = 0; }

 private:
  std::ostream& out_;
  Terminal terminal_;
  std::string shown_;
  int lines_ = 0;  // that are above the cursor and ours
  bool resized_ = false;
};

}  // namespace luthier
