// The command line of luthier-worker.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace luthier {

struct WorkerOptions {
  std::string server = "127.0.0.1:7070";
  std::string data_dir;
  std::string node_id;
  std::string metrics_listen = "127.0.0.1:9465";
  std::string shared_store;
  std::string trainer;
  std::vector<std::string> labels;  // KEY=VALUE
  std::string gang_address;         // HOST[:PORT]; empty: no jobs of several nodes
  int shares = 1;
  uint64_t cache_limit = uint64_t{50} << 30;
  uint64_t keep_limit = uint64_t{50} << 30;
  uint64_t checkpoint_limit = uint64_t{1} << 30;
  uint64_t checkpoint_rate = uint64_t{50} << 20;
  std::string stall_after = "15m";
};

// The options, or the exit code of a run that is over already (--help, --version, a wrong flag), after its text was
// printed.
std::variant<WorkerOptions, int> ReadOptions(int argc, char** argv);

}  // namespace luthier
