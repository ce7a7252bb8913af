// What no client should send, over real sockets: the server refuses it, lives, and serves others. With a disk that
// fails beneath it, it ends.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

constexpr char kCreate[] = "/luthier.v1.FineTuningService/CreateFineTuningJob";

// A frame of HTTP/2 (RFC 9113, section 4.1).
std::string Frame(char type, char flags, uint32_t stream, const std::string& payload) {
  const auto size = static_cast<uint32_t>(payload.size());
  const std::string head = {static_cast<char>(size >> 16),
                            static_cast<char>(size >> 8),
                            static_cast<char>(size),
                            type,
                            flags,
                            static_cast<char>(stream >> 24),
                            static_cast<char>(stream >> 16),
                            static_cast<char>(stream >> 8),
                            static_cast<char>(stream)};
  return head + payload;
}
constexpr char kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6;
constexpr char kEndHeaders = 4;

// The headers of a call (RFC 7541: indexed, or literal without indexing).
std::string CallHeaders(const std::string& te) {
  const auto text = [](const std::string& value) { return static_cast<char>(value.size()) + value; };
  return "\x83\x86" + ("\x04" + text(kCreate)) + ("\x01" + text("localhost")) +
         ("\x0f\x10" + text("application/grpc")) + (std::string(1, '\0') + text("te") + text(te));
}

// A connection on which a test writes what it likes.
class RawHttp2 {
 public:
  explicit RawHttp2(const std::string& address) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    where.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&where), sizeof where), 0);
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, 0, ""));
  }
  ~RawHttp2() { close(fd_); }

  // False once the server has closed the connection. What it says meanwhile is read, so that neither waits for the
  // other.
  bool Send(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      pollfd end = {fd_, POLLIN | POLLOUT, 0};
      if (poll(&end, 1, 10'000) != 1) return false;
      if ((end.revents & POLLIN) != 0 && !Read()) return false;
      if ((end.revents & POLLOUT) == 0) continue;
      const ssize_t count = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && errno != EAGAIN) return false;
      sent += count < 0 ? 0 : static_cast<size_t>(count);
    }
    return true;
  }
  // Everything that the server says until it closes the connection or is silent for a second.
  std::string ReadAll() {
    pollfd end = {fd_, POLLIN, 0};
    while (poll(&end, 1, 1000) == 1 && Read()) {
    }
    return received_;
  }

 private:
  bool Read() {
    char buffer[4096];
    const ssize_t count = recv(fd_, buffer, sizeof buffer, 0);
    if (count <= 0) return false;
    received_.append(buffer, static_cast<size_t>(count));
    return true;
  }

  const int fd_;
  std::string received_;
};

class HostileClientsTest : public testing::Test {
 protected:
  void Start(std::vector<std::string> environment = {}) {
    server_ =
        std::make_unique<Luthierd>(LUTHIERD_PROGRAM,
                                   std::vector<std::string>{"--listen", "127.0.0.1:0", "--metrics-listen",
                                                            "127.0.0.1:0", "--data-dir", folder_.path() + "/data"},
                                   std::move(environment));
    ASSERT_TRUE(server_->Serves()) << server_->log();
  }
  void SetUp() override { Start(); }

  // Another client's call, on the connection that it had before.
  void ExpectThatItServes() {
    v1::FineTuningJob job;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/none");
    EXPECT_EQ(
        v1::FineTuningService::NewStub(server_->channel())->GetFineTuningJob(&context, request, &job).error_code(),
        grpc::StatusCode::NOT_FOUND)
        << server_->log();
  }
  // A call with bytes in place of a message.
  grpc::Status CallWithBytes(const std::string& method, const std::string& bytes) {
    grpc::GenericStub stub(server_->channel());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    grpc::CompletionQueue queue;
    const grpc::Slice slice(bytes);
    const auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&slice, 1), &queue);
    grpc::ByteBuffer answer;
    grpc::Status status;
    void* tag = nullptr;
    bool ok = false;
    call->StartCall();
    call->Finish(&answer, &status, this);
    queue.Next(&tag, &ok);
    return status;
  }
  grpc::Status CreateWithLabel(const std::string& label, grpc_compression_algorithm compression) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    context.set_compression_algorithm(compression);
    v1::CreateFineTuningJobRequest request;
    (*request.mutable_job()->mutable_labels())["k"] = label;
    v1::FineTuningJob job;
    return v1::FineTuningService::NewStub(server_->channel())->CreateFineTuningJob(&context, request, &job);
  }

  TempFolder folder_;
  std::unique_ptr<Luthierd> server_;
};

TEST_F(HostileClientsTest, AMessageLargerThanFourMegabytesIsRefused) {
  EXPECT_EQ(CreateWithLabel(std::string(5 << 20, 'x'), GRPC_COMPRESS_NONE).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, AMessageThatWouldUnpackToManyMegabytesIsNotUnpacked) {
  const int64_t before = server_->PeakBytes();
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    const grpc::Status refused = CreateWithLabel(std::string(64 << 20, 'x'), algorithm);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNIMPLEMENTED) << refused.error_message();
  }
  EXPECT_LT(server_->PeakBytes() - before, 20 << 20);
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, BytesThatAreNoMessageAreRefused) {
  const unsigned seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 300; ++i) {
    std::string bytes(random() % 200 + 1, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    EXPECT_FALSE(CallWithBytes(kCreate, bytes).ok()) << "no job comes from noise";
  }
  // Groups of an unknown field in one another, deeper than a stack that follows them.
  EXPECT_FALSE(CallWithBytes(kCreate, std::string(1'000'000, '\x7b')).ok());
  EXPECT_FALSE(CallWithBytes("/luthier.v1.FineTuningService/NoSuchMethod", "").ok());
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, AClientThatPingsAllTheTimeIsSentAway) {
  RawHttp2 client(server_->address());
  std::string pings;
  for (int i = 0; i < 100; ++i) pings += Frame(kPing, 0, 0, "12345678");
  client.Send(pings);
  EXPECT_THAT(client.ReadAll(), HasSubstr("too_many_pings"));
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, CallsThatAreResetAsSoonAsTheyBeginDoNotHinderOthers) {
  constexpr int kCalls = 20'000;
  RawHttp2 client(server_->address());
  const int64_t before = server_->PeakBytes();
  for (int i = 0; i < kCalls; ++i) {
    const uint32_t stream = 2 * static_cast<uint32_t>(i) + 1;
    if (!client.Send(Frame(kHeaders, kEndHeaders, stream, CallHeaders("trailers")) +
                     Frame(kReset, 0, stream, std::string("\0\0\0\x08", 4)))) {
      break;  // it may also close the connection
    }
    if (i % 5000 == 0) ExpectThatItServes();
  }
  ExpectThatItServes();
  EXPECT_LT(server_->PeakBytes() - before, 100 << 20);
}

TEST_F(HostileClientsTest, HeadersThatMakeNoSenseEndTheirCallOnly) {
  RawHttp2 client(server_->address());
  client.Send(Frame(kHeaders, kEndHeaders, 1, CallHeaders("gzip")) +
              Frame(kHeaders, kEndHeaders, 3, std::string(1000, '\xff')));  // indices beyond any table
  client.ReadAll();
  ExpectThatItServes();
}

// After a failed fsync nobody knows what is on the disk, so nothing more may be acknowledged.
TEST_F(HostileClientsTest, ADiskThatFailsEndsTheServerAndWhatWasAcknowledgedBeforeIsThere) {
  server_->End(SIGTERM);
  const std::string fault = folder_.path() + "/fault";
  const auto set_weight = [&](double weight) {
    v1::UpdateTenantRequest request;
    request.mutable_tenant()->set_name("tenants/default");
    request.mutable_tenant()->set_weight(weight);
    request.mutable_update_mask()->add_paths("weight");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::Tenant tenant;
    return v1::QueueService::NewStub(server_->channel())->UpdateTenant(&context, request, &tenant);
  };
  Start({"LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_FAILS_SYNCS_IF=" + fault});
  ASSERT_TRUE(set_weight(2).ok());
  std::ofstream(fault) << "now";
  EXPECT_FALSE(set_weight(3).ok());
  EXPECT_EQ(server_->Wait(), 1) << server_->log();
  EXPECT_THAT(server_->log(), HasSubstr("ending"));

  Start();
  grpc::ClientContext context;
  v1::ListTenantsResponse tenants;
  ASSERT_TRUE(v1::QueueService::NewStub(server_->channel())->ListTenants(&context, {}, &tenants).ok());
  EXPECT_GE(tenants.tenants(0).weight(), 2);
}

}  // namespace
}  // namespace luthier
