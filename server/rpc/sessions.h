// The open sessions of agents: what the state loop wants sent finds its way to the right stream.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "lib/wire/agent_protocol.h"
#include "luthier/v1/worker.pb.h"
#include "server/loop/state_loop.h"
#include "server/rpc/access.h"
#include "server/store/store.h"

namespace luthier {

struct Backend;

// One agent's session, as the others see it. Any thread.
class AgentSession {
 public:
  virtual ~AgentSession() = default;
  virtual void Send(v1::SessionResponse message) = 0;
  virtual void End(absl::Status status) = 0;
};

class Sessions {
 public:
  // `protocol`: what this server speaks with agents.
  explicit Sessions(const ProtocolRange& protocol = kAgentProtocol) : protocol_(protocol) {}
  const ProtocolRange& protocol() const { return protocol_; }

  // A second session of a node ends the first. Errors: ALREADY_EXISTS if that is another agent's; it ends when it is
  // not heard of any more.
  absl::Status Add(const std::string& node, const std::string& instance, std::shared_ptr<AgentSession> session);
  // False if the node's session is another one already.
  bool Remove(const std::string& node, const std::shared_ptr<AgentSession>& session);
  // Ends every session, those to come too.
  void Close();
  // Thread of `loop`. An effect for a node without session is dropped: the node hears of it when it registers. An order
  // to start that cannot be read loses its attempt, which is tried again as others are.
  void Send(StateLoop& loop, Store& store, const Access& access, const std::vector<Effect>& effects);

 private:
  struct Connected {
    std::string instance;  // of the agent; empty: unknown
    std::shared_ptr<AgentSession> session;
    bool other_was_told = false;  // that it may not be this node
  };
  const ProtocolRange protocol_;
  std::mutex mutex_;                           // of what follows
  std::map<std::string, Connected> sessions_;  // by node
  bool closed_ = false;
};

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* StartSession(Backend& backend, Sessions& sessions,
                                                                               const grpc::ServerContextBase& context);

}  // namespace luthier
