// Simulated agents: many sessions in one process, on gRPC's callback API.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "luthier/v1/worker.grpc.pb.h"

namespace luthier {

// One agent's session. Methods from any thread.
class SimulatedAgent : public grpc::ClientBidiReactor<v1::SessionRequest, v1::SessionResponse> {
 public:
  // `on_message` is called for every message but `registered`, one at a time.
  using OnMessage = std::function<void(SimulatedAgent&, const v1::SessionResponse&)>;
  SimulatedAgent(v1::WorkerService::Stub& stub, const std::string& node, OnMessage on_message);

  void Send(v1::SessionRequest request);
  bool registered() const { return registered_; }
  // Ends the session and waits for that; no message comes afterwards.
  void Close();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  void Advance();  // `mutex_` is held

  grpc::ClientContext context_;
  OnMessage on_message_;
  v1::SessionResponse response_;
  std::atomic<bool> registered_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::SessionRequest> requests_;
  bool writing_ = false, broken_ = false, done_ = false;
};

// `count` agents over as few connections as carry them, all registered. A connection carries a hundred.
std::vector<std::unique_ptr<SimulatedAgent>> StartAgents(const std::function<std::shared_ptr<grpc::Channel>()>& connect,
                                                         int count, SimulatedAgent::OnMessage on_message);

}  // namespace luthier
