// The agent's session with the server: dials, registers, heartbeats, sends reports, hands out orders; after a break it
// dials again, for ever.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "luthier/v1/worker.grpc.pb.h"

namespace luthier {

class Session {
 public:
  // Who talks through the session. The methods are called from the session's threads and must not block on disk or
  // network.
  class Peer {
   public:
    virtual ~Peer() = default;
    virtual v1::Register Registration() = 0;
    virtual void OnRegistered(const v1::Registered& registered) = 0;
    virtual void OnStart(const v1::StartAttempt& order) = 0;
    virtual void OnStop(const v1::StopAttempt& order) = 0;
    virtual void OnCheckpoint(const v1::CheckpointAttempt& order) = 0;
    virtual void OnAck(const v1::ReportAck& ack) = 0;
    virtual v1::Heartbeat NextHeartbeat() = 0;
    virtual std::optional<v1::AttemptReport> NextReport() = 0;
    virtual void OnBreak(const std::string& why) = 0;
  };

  explicit Session(const std::shared_ptr<grpc::Channel>& channel);
  ~Session();  // closes

  // Begins to dial, once. `peer` must live until Close().
  void Open(Peer& peer);
  // Ends the session; no method of the peer runs any more when it returns.
  void Close();

  // There is a report to send.
  void Wake();
  // Heartbeats at once: what the peer says in it is news.
  void HeartbeatNow();
  bool connected() const { return connected_; }

 private:
  using Stream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;

  void Dial();
  // One session from dialling to its break. False if it came to nothing: a server whose disk is full registers a node
  // and then refuses its first report, so whoever dials at once again would do so for ever.
  bool Converse();
  void Dispatch(const v1::SessionResponse& response);
  void Send(grpc::ClientContext& context, Stream& stream);
  void WaitForTheReader(grpc::ClientContext& context);
  // Waits for something to do: nothing if the session is over, else whether it is time to heartbeat (SteadyNow).
  std::optional<bool> WaitForWork(absl::Time heartbeat_at);

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  Peer* peer_ = nullptr;  // set by Open()
  std::atomic<bool> connected_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ClientContext* context_ = nullptr;  // of the open stream
  bool closed_ = false;
  bool over_ = false;  // the open stream has broken
  bool reports_ = false, heartbeat_now_ = false;
  absl::Duration heartbeat_interval_ = absl::Seconds(5);
  std::thread thread_;
};

// A channel for sessions and transfers: notices a dead connection, and comes back soon after the server does.
std::shared_ptr<grpc::Channel> DialServer(const std::string& address, const std::string& token = "");

}  // namespace luthier
