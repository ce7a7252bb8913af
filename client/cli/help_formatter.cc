#include "client/cli/help_formatter.h"

#include <algorithm>
#include <sstream>

#include "client/cli/terminal.h"

namespace luthier {

int HelpFormatter::Room() const {
  constexpr int kNarrowest = 20;  // columns below this are harder to read than lines that the terminal breaks
  return width_ == 0 ? 0 : std::max(kNarrowest, width_ - static_cast<int>(get_column_width()));
}

std::string HelpFormatter::make_description(const CLI::App* command) const {
  return WrapText(CLI::Formatter::make_description(command), width_);
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  std::ostringstream out;
  CLI::detail::format_help(out, command->get_display_name(true), WrapText(command->get_description(), Room()),
                           get_column_width());
  return out.str();
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  return WrapText(CLI::Formatter::make_option_desc(option), Room());
}

}  // namespace luthier
