// The agent of `luthierd --with-local-worker`: started beside the server, started again if it dies, ended with it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace luthier {

class LocalWorker {
 public:
  // Runs `arguments` (program first) until destroyed. The kernel ends the agent if the server is killed.
  explicit LocalWorker(std::vector<std::string> arguments);
  ~LocalWorker();

 private:
  void Supervise();
  std::vector<std::string> arguments_;
  std::atomic<bool> stopping_ = false;
  std::atomic<pid_t> pid_ = 0;
  std::thread thread_;
};

}  // namespace luthier
