// Downloads under way. Each has a thread, which sends as fast as the other side reads; where that reads nothing the
// thread stands still and cannot look at the token itself.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <list>
#include <mutex>
#include <thread>

#include "grpcpp/server_context.h"
#include "server/rpc/access.h"

namespace luthier {

class Transfers {
  struct Open {
    const grpc::ServerContextBase& context;
    const Call& call;
    bool refused = false;  // at the last look
  };

 public:
  // `access` must outlive it.
  explicit Transfers(Access& access);
  ~Transfers();

  // A download, from its first byte to its last. Context and call must outlive it.
  class Watched {
   public:
    Watched(Transfers& transfers, const grpc::ServerContextBase& context, const Call& call);
    Watched(const Watched&) = delete;
    ~Watched();

   private:
    Transfers& transfers_;
    std::list<Open>::iterator open_;
  };

  size_t open();

 private:
  void Work();

  Access& access_;
  std::mutex mutex_;  // of what follows
  std::condition_variable work_;
  std::list<Open> open_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
