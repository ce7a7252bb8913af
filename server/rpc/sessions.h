// The open sessions of agents: what the state loop wants sent finds its way to the right stream.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "luthier/v1/worker.pb.h"
#include "server/core/state.h"
#include "server/store/store.h"

namespace luthier {

// Messages to one agent. The loop's thread and the session's reader put, the session's writer takes.
class Outbox {
 public:
  void Put(v1::SessionResponse message);
  // The answer to `register`: goes before everything that was put, which waits for it.
  void Open(v1::SessionResponse registered);
  // Blocks; nothing once the outbox is closed.
  std::optional<v1::SessionResponse> Take();
  void Close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::SessionResponse> messages_;
  bool open_ = false, closed_ = false;
};

class Sessions {
 public:
  // A second session of a node replaces the first, whose outbox is closed.
  std::shared_ptr<Outbox> Add(const std::string& node);
  // False if the node's session is another one already.
  bool Remove(const std::string& node, const std::shared_ptr<Outbox>& outbox);
  void CloseAll();
  // An effect for a node without session is dropped: the node hears of it when it registers.
  void Send(Store& store, const std::vector<Effect>& effects);

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Outbox>> outboxes_;
};

}  // namespace luthier
