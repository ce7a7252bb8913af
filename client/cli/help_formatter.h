// Help whose lines fit the terminal.
#pragma once

#include <string>

#include "CLI/CLI.hpp"

namespace luthier {

// CLI11's, with descriptions broken into lines of their column; examples stay as they are, to be copied.
class HelpFormatter final : public CLI::Formatter {
 public:
  // `width`: columns of the terminal; 0: no limit.
  explicit HelpFormatter(int width) : width_(width) {}

  std::string make_description(const CLI::App* command) const override;
  std::string make_subcommand(const CLI::App* command) const override;
  std::string make_option_desc(const CLI::Option* option) const override;

 private:
  // Columns of the right side.
  int Room() const;

  const int width_;
};

}  // namespace luthier
