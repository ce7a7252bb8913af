// What runs on this machine.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace luthier {

// Processes whose command line names `text`.
inline std::vector<pid_t> ProcessesWith(const std::string& text) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos || name == std::to_string(getpid())) continue;
    std::ifstream stream(entry.path() / "cmdline", std::ios::binary);
    const std::string command((std::istreambuf_iterator<char>(stream)), {});
    if (command.find(text) != std::string::npos) found.push_back(std::stoi(name));
  }
  return found;
}

}  // namespace luthier
