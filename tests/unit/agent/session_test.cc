// Sessions over a real connection; the test plays the server.
#include "worker/agent/session.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "lib/base/steady_now.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;

// Answers `register`, acknowledges reports, remembers what came.
class FakeServer final : public v1::WorkerService::Service {
 public:
  explicit FakeServer(int port = 0) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &this->port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Session(grpc::ServerContext*,
                       grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>* stream) override {
    v1::SessionRequest request;
    stream->Read(&request);
    ++registrations;
    if (silent) return WaitForCancel(*stream);
    v1::SessionResponse response;
    response.mutable_registered()->mutable_heartbeat_interval()->set_seconds(1);
    stream->Write(response);
    for (const std::string& attempt : orders) {
      response.mutable_start_attempt()->set_attempt(attempt);
      stream->Write(response);
    }
    while (stream->Read(&request)) {
      if (request.has_heartbeat()) ++heartbeats;
      if (!request.has_report()) continue;
      if (refuses_reports) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the disk is full");
      response.mutable_report_ack()->set_attempt(request.report().attempt());
      response.mutable_report_ack()->set_sequence(request.report().sequence());
      stream->Write(response);
      if (--reports_until_break == 0) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "break");
    }
    return grpc::Status::OK;
  }

  int port = 0;
  std::atomic<int> registrations = 0, heartbeats = 0;
  std::atomic<bool> silent = false, refuses_reports = false;
  std::atomic<int> reports_until_break = -1;
  std::vector<std::string> orders;

 private:
  static grpc::Status WaitForCancel(grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>& stream) {
    v1::SessionRequest request;
    while (stream.Read(&request)) {
    }
    return grpc::Status::OK;
  }
  std::unique_ptr<grpc::Server> server_;
};

class FakePeer final : public Session::Peer {
 public:
  v1::Register Registration() override {
    v1::Register message;
    message.set_node_id("n1");
    return message;
  }
  void OnRegistered(const v1::Registered&) override {
    const std::lock_guard lock(mutex);
    sent = acked;
    ++registered;
  }
  void OnStart(const v1::StartAttempt& order) override {
    const std::lock_guard lock(mutex);
    started.push_back(order.attempt());
  }
  void OnStop(const v1::StopAttempt&) override {}
  void OnCheckpoint(const v1::CheckpointAttempt&) override {}
  void OnAck(const v1::ReportAck& ack) override {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(ack.sequence(), acked + 1);
    acked = ack.sequence();
  }
  v1::Heartbeat NextHeartbeat() override { return {}; }
  std::optional<v1::AttemptReport> NextReport() override {
    const std::lock_guard lock(mutex);
    if (sent == last) return std::nullopt;
    v1::AttemptReport report;
    report.set_attempt("jobs/j/attempts/1");
    report.set_sequence(++sent);
    return report;
  }
  void OnBreak(const std::string& why) override {
    const std::lock_guard lock(mutex);
    last_break = why;
    ++breaks;
  }
  void Report(int64_t count) {
    const std::lock_guard lock(mutex);
    last += count;
  }
  int64_t Acked() {
    const std::lock_guard lock(mutex);
    return acked;
  }

  std::mutex mutex;
  int64_t last = 0, sent = 0, acked = 0;
  std::vector<std::string> started;
  std::string last_break;
  std::atomic<int> registered = 0, breaks = 0;
};

class SessionTest : public testing::Test {
 protected:
  void Open(int port) {
    session_ = std::make_unique<Session>(DialServer(absl::StrCat("127.0.0.1:", port)));
    session_->Open(peer_);
  }
  FakePeer peer_;
  std::unique_ptr<Session> session_;  // ends before its peer
};

TEST_F(SessionTest, RegistersHeartbeatsAndHandsOutOrders) {
  FakeServer server;
  server.orders = {"jobs/a/attempts/1", "jobs/b/attempts/1"};
  Open(server.port);
  EXPECT_TRUE(WaitFor([&] { return server.heartbeats >= 2; }));
  EXPECT_TRUE(session_->connected());
  const std::lock_guard lock(peer_.mutex);
  EXPECT_THAT(peer_.started, ElementsAre("jobs/a/attempts/1", "jobs/b/attempts/1"));
}

TEST_F(SessionTest, HeartbeatsAtOnceWhenToldTo) {
  FakeServer server;
  Open(server.port);
  ASSERT_TRUE(WaitFor([&] { return session_->connected(); }));
  session_->HeartbeatNow();
  EXPECT_TRUE(WaitFor([&] { return server.heartbeats >= 1; }, std::chrono::milliseconds(700)));
}

TEST_F(SessionTest, SendsReportsInOrder) {
  FakeServer server;
  peer_.Report(3);
  Open(server.port);
  EXPECT_TRUE(WaitFor([&] { return peer_.Acked() == 3; }));
  peer_.Report(200);
  session_->Wake();
  EXPECT_TRUE(WaitFor([&] { return peer_.Acked() == 203; }));
}

TEST_F(SessionTest, DialsAgainAndGoesOnAfterABreak) {
  FakeServer server;
  server.reports_until_break = 5;
  peer_.Report(20);
  Open(server.port);
  EXPECT_TRUE(WaitFor([&] { return peer_.Acked() == 20; }));
  EXPECT_EQ(server.registrations, 2);
  EXPECT_EQ(peer_.breaks, 1);
}

TEST_F(SessionTest, FindsAServerThatComesBackAfterAWhile) {
  auto server = std::make_unique<FakeServer>();
  const int port = server->port;
  Open(port);
  ASSERT_TRUE(WaitFor([&] { return peer_.registered == 1; }));
  server.reset();
  ASSERT_TRUE(WaitFor([&] { return peer_.breaks >= 3; }));
  EXPECT_FALSE(session_->connected());
  server = std::make_unique<FakeServer>(port);
  EXPECT_TRUE(WaitFor([&] { return peer_.registered == 2; }));
  session_->Close();
}

// Its pauses are at least 0.1, 0.2, 0.4 and 0.8 s, since a session in which nothing was acknowledged is none.
TEST_F(SessionTest, WaitsLongerAndLongerForAServerThatRegistersItAndRefusesItsReports) {
  FakeServer server;
  server.refuses_reports = true;
  peer_.Report(1);
  const absl::Time began = SteadyNow();
  Open(server.port);
  ASSERT_TRUE(WaitFor([&] { return peer_.breaks >= 5; }, std::chrono::seconds(60)));
  EXPECT_GE(SteadyNow() - began, absl::Milliseconds(1500));
  {
    const std::lock_guard lock(peer_.mutex);
    EXPECT_EQ(peer_.last_break, "the disk is full");
  }
  server.refuses_reports = false;
  EXPECT_TRUE(WaitFor([&] { return peer_.Acked() == 1; }, std::chrono::seconds(60)));
}

TEST_F(SessionTest, ClosesWhileNobodyAnswers) {
  FakeServer server;
  server.silent = true;
  Open(server.port);
  ASSERT_TRUE(WaitFor([&] { return server.registrations == 1; }));
  EXPECT_FALSE(session_->connected());
  session_->Close();
}

}  // namespace
}  // namespace luthier
