#include "worker/agent/session.h"

#include <algorithm>
#include <random>
#include <utility>

#include "lib/base/steady_now.h"
#include "lib/channel/channel.h"
#include "worker/agent/backoff.h"

namespace luthier {
namespace {

// A server that takes the stream and does not answer is given up.
constexpr absl::Duration kRegisterPatience = absl::Seconds(15);

}  // namespace

std::shared_ptr<grpc::Channel> DialServer(const std::string& address, const std::string& token) {
  grpc::ChannelArguments arguments;
  // The session dials with pauses of its own; the channel's must not be longer.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A machine that vanished sends no reset; without pings a write would wait for it a quarter of an hour. luthierd
  // permits a ping every 5 s.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return DialWithToken(address, token, arguments);
}

Session::Session(const std::shared_ptr<grpc::Channel>& channel)
    : channel_(channel), stub_(v1::WorkerService::NewStub(channel)) {}

Session::~Session() { Close(); }

void Session::Open(Peer& peer) {
  peer_ = &peer;
  thread_ = std::thread([this] { Dial(); });
}

void Session::Close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Session::Wake() {
  const std::lock_guard lock(mutex_);
  reports_ = true;
  changed_.notify_all();
}

void Session::HeartbeatNow() {
  const std::lock_guard lock(mutex_);
  heartbeat_now_ = true;
  changed_.notify_all();
}

void Session::Dial() {
  Backoff backoff;
  while (true) {
    if (Converse()) backoff.Reset();
    {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, absl::ToChronoMilliseconds(backoff.Next()), [this] { return closed_; })) return;
    }
    AwaitConnection(*channel_, [this] {
      const std::lock_guard lock(mutex_);
      return closed_;
    });
  }
}

bool Session::Converse() {
  grpc::ClientContext context;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    context_ = &context;
    over_ = false;
  }
  const std::unique_ptr<Stream> stream = stub_->Session(&context);
  v1::SessionRequest request;
  *request.mutable_register_() = peer_->Registration();
  stream->Write(request);
  // The one writer from here on; it also gives up on a server that does not answer.
  std::thread sender([&] { Send(context, *stream); });
  v1::SessionResponse response;
  const absl::Time began = SteadyNow();
  bool got_on = false;
  while (stream->Read(&response)) {
    got_on |= response.has_report_ack();
    Dispatch(response);
  }
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
    changed_.notify_all();
  }
  sender.join();
  connected_ = false;
  {
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
  }
  peer_->OnBreak(stream->Finish().error_message());
  return got_on || SteadyNow() - began >= Backoff::kLongest;
}

void Session::Dispatch(const v1::SessionResponse& response) {
  switch (response.kind_case()) {
    case v1::SessionResponse::kRegistered: {
      peer_->OnRegistered(response.registered());
      const std::lock_guard lock(mutex_);
      if (response.registered().heartbeat_interval().seconds() > 0) {
        heartbeat_interval_ = absl::Seconds(response.registered().heartbeat_interval().seconds());
      }
      connected_ = true;
      reports_ = true;
      changed_.notify_all();
      break;
    }
    case v1::SessionResponse::kStartAttempt: peer_->OnStart(response.start_attempt()); break;
    case v1::SessionResponse::kStopAttempt: peer_->OnStop(response.stop_attempt()); break;
    case v1::SessionResponse::kCheckpointAttempt: peer_->OnCheckpoint(response.checkpoint_attempt()); break;
    case v1::SessionResponse::kReportAck: peer_->OnAck(response.report_ack()); break;
    default: break;  // of a newer server
  }
}

void Session::Send(grpc::ClientContext& context, Stream& stream) {
  {
    std::unique_lock lock(mutex_);
    const bool answered = changed_.wait_for(lock, absl::ToChronoMilliseconds(kRegisterPatience),
                                            [this] { return connected_ || over_ || closed_; });
    if (!answered) context.TryCancel();
    if (!connected_) return;
  }
  std::minstd_rand random{std::random_device()()};
  const auto jittered = [&] { return heartbeat_interval_ * std::uniform_real_distribution(0.8, 1.0)(random); };
  // By the wall clock, one that is set back would end the heartbeats, and with them the lease.
  absl::Time heartbeat_at = SteadyNow() + jittered();
  while (const std::optional<bool> heartbeat = WaitForWork(heartbeat_at)) {
    v1::SessionRequest request;
    if (*heartbeat) {
      *request.mutable_heartbeat() = peer_->NextHeartbeat();
      heartbeat_at = SteadyNow() + jittered();
    } else if (std::optional<v1::AttemptReport> report = peer_->NextReport()) {
      *request.mutable_report() = *std::move(report);
      Wake();  // there may be more
    } else {
      continue;
    }
    if (!stream.Write(request)) return WaitForTheReader(context);
  }
}

// The session is over, and the reader learns why: to cancel the call would take the server's word for it away.
void Session::WaitForTheReader(grpc::ClientContext& context) {
  std::unique_lock lock(mutex_);
  const bool ended =
      changed_.wait_for(lock, absl::ToChronoMilliseconds(Backoff::kLongest), [this] { return over_ || closed_; });
  if (!ended) context.TryCancel();
}

std::optional<bool> Session::WaitForWork(absl::Time heartbeat_at) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, absl::ToChronoNanoseconds(heartbeat_at - SteadyNow()),
                    [this] { return over_ || closed_ || reports_ || heartbeat_now_; });
  if (over_ || closed_) return std::nullopt;
  const bool heartbeat = std::exchange(heartbeat_now_, false) || SteadyNow() >= heartbeat_at;
  if (!heartbeat) reports_ = false;
  return heartbeat;
}

}  // namespace luthier
