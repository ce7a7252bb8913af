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
  // Runs `arguments` (program first) until destroyed; `token` is what it calls the server with. The kernel ends the
  // agent if the server is killed.
  LocalWorker(const std::string& token, std::vector<std::string> arguments);
  ~LocalWorker();

 private:
  void Supervise();
  const std::vector<std::string> arguments_, environment_;
  std::atomic<bool> stopping_ = false;
  std::atomic<pid_t> pid_ = 0;
  std::thread thread_;
};

}  // namespace luthier
