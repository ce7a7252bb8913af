// The agent of `luthierd --with-local-worker`: started beside the server, started again if it dies, ended with it.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace luthier {

class LocalWorker {
 public:
  // Runs `arguments` (program first) until destroyed; `token` is what it calls the server with. The kernel ends the
  // agent if the server is killed.
  LocalWorker(const std::string& token, std::vector<std::string> arguments);
  // Asks the agent to end, and kills one that has not when its trainers' grace is long over.
  ~LocalWorker();

 private:
  void Supervise();
  const std::vector<std::string> arguments_, environment_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  pid_t pid_ = 0;  // of the agent, for as long as the number is its own; not positive: there is none
  std::thread thread_;
};

}  // namespace luthier
