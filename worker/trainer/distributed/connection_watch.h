// Notices that a machine at the other end of a connection is gone. One that lost its power or its network closes
// nothing: what is sent to it is sent again for a quarter of an hour, and who waits for it to say something waits for
// ever.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace luthier {

struct ConnectionPatience {
  // A machine that is there answers every packet, also for a process that reads nothing. The longest that a kernel
  // waits before it asks again, when it has sent something or the other end has no room, are two minutes.
  std::chrono::milliseconds silence = std::chrono::minutes(3);
  std::chrono::milliseconds between_looks = std::chrono::seconds(5);
};

// While it lives, closes every TCP connection of this process whose other end does not answer any more, and says so on
// standard error: whoever waits for it hears of that as of one that was closed there.
class ConnectionWatch {
 public:
  explicit ConnectionWatch(const ConnectionPatience& patience = {});
  ~ConnectionWatch();
  ConnectionWatch(const ConnectionWatch&) = delete;
  ConnectionWatch& operator=(const ConnectionWatch&) = delete;

 private:
  void Run();

  const ConnectionPatience patience_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace luthier
