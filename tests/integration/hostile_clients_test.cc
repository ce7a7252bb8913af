// What no client should send, over real sockets: the server refuses it, lives, and serves others. With a disk that
// fails beneath it, it ends.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/wire/error_details.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "tests/support/hostile_templates.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
constexpr char kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kWindowUpdate = 8;
constexpr char kAck = 1, kEndHeaders = 4;
constexpr uint32_t kInitialWindowSize = 4;  // of the settings

uint32_t NumberAt(const std::string& bytes, size_t at, size_t size) {
  uint32_t number = 0;
  for (size_t i = 0; i < size; ++i) number = number << 8 | static_cast<unsigned char>(bytes[at + i]);
  return number;
}

// The headers of a call (RFC 7541: indexed, or literal without indexing).
std::string CallHeaders(const std::string& te) {
  const auto text = [](const std::string& value) { return static_cast<char>(value.size()) + value; };
  return "\x83\x86" + ("\x04" + text(kCreate)) + ("\x01" + text("localhost")) +
         ("\x0f\x10" + text("application/grpc")) + (std::string(1, '\0') + text("te") + text(te));
}

// A socket that is connected to the server.
int Connect(const std::string& address) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  where.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << strerror(errno);
  return fd;
}

// Whether the server has closed a connection; what it said before is read.
bool IsClosed(int fd) {
  char buffer[4096];
  ssize_t count = 0;
  while ((count = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
  }
  return count == 0 || errno != EAGAIN;
}

// As many files as this process may open, until it goes.
class SoftFileLimit {
 public:
  explicit SoftFileLimit(rlim_t files) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit set = {std::min(files, before_.rlim_max), before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &set);
  }
  ~SoftFileLimit() { setrlimit(RLIMIT_NOFILE, &before_); }
  static rlim_t Most() {
    rlimit files = {};
    getrlimit(RLIMIT_NOFILE, &files);
    return files.rlim_max;
  }

 private:
  rlimit before_;
};

// A connection on which a test writes what it likes.
class RawHttp2 {
 public:
  explicit RawHttp2(const std::string& address) : fd_(Connect(address)) {
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
  bool IsClosed() const { return luthier::IsClosed(fd_); }

  // Begins a call with a message of so many bytes, of which none is sent yet.
  bool Begin(uint32_t stream, uint32_t size) {
    windows_[stream] = initial_window_ - 5;
    window_ -= 5;
    const std::string length = {0, static_cast<char>(size >> 24), static_cast<char>(size >> 16),
                                static_cast<char>(size >> 8), static_cast<char>(size)};
    return Send(Frame(kHeaders, kEndHeaders, stream, CallHeaders("trailers")) + Frame(kData, 0, stream, length));
  }
  // A part of the message, as soon as the server's windows have room for it (RFC 9113, section 5.2). False once it has
  // closed the connection, has reset a call, or says nothing.
  bool SendPart(uint32_t stream, const std::string& part) {
    const auto size = static_cast<int64_t>(part.size());
    pollfd end = {fd_, POLLIN, 0};
    while (TakeFrames() && (window_ < size || windows_[stream] < size)) {
      if (poll(&end, 1, 5000) != 1 || !Read()) return false;
    }
    if (resets_ > 0) return false;
    window_ -= size;
    windows_[stream] -= size;
    return Send(Frame(kData, 0, stream, part));
  }
  int resets() const { return resets_; }

 private:
  bool Read() {
    char buffer[4096];
    const ssize_t count = recv(fd_, buffer, sizeof buffer, 0);
    if (count <= 0) return false;
    received_.append(buffer, static_cast<size_t>(count));
    return true;
  }
  // Of what the server said. False if the connection is gone.
  bool TakeFrames() {
    constexpr size_t kHead = 9;
    while (received_.size() - taken_ >= kHead) {
      const size_t size = NumberAt(received_, taken_, 3), payload = taken_ + kHead;
      if (received_.size() - payload < size) break;
      const char type = received_[taken_ + 3], flags = received_[taken_ + 4];
      const uint32_t stream = NumberAt(received_, taken_ + 5, 4);
      taken_ = payload + size;
      if (type == kReset) ++resets_;
      if (type == kWindowUpdate) (stream == 0 ? window_ : windows_[stream]) += NumberAt(received_, payload, 4);
      const bool answered = type != kSettings && type != kPing;
      if (answered || (flags & kAck) != 0) continue;
      for (size_t at = payload; type == kSettings && at + 6 <= taken_; at += 6) {
        if (NumberAt(received_, at, 2) != kInitialWindowSize) continue;
        const int64_t more = int64_t{NumberAt(received_, at + 2, 4)} - initial_window_;
        for (auto& [id, window] : windows_) window += more;
        initial_window_ += more;
      }
      if (!Send(Frame(type, kAck, 0, type == kPing ? received_.substr(payload, size) : ""))) return false;
    }
    return true;
  }

  const int fd_;
  std::string received_;
  size_t taken_ = 0;  // of that, as frames
  int64_t window_ = 65535, initial_window_ = 65535;
  std::map<uint32_t, int64_t> windows_;  // by stream
  int resets_ = 0;
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
  // A change of the record.
  grpc::Status SetWeight(double weight) {
    v1::UpdateTenantRequest request;
    request.mutable_tenant()->set_name("tenants/default");
    request.mutable_tenant()->set_weight(weight);
    request.mutable_update_mask()->add_paths("weight");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::Tenant tenant;
    return v1::QueueService::NewStub(server_->channel())->UpdateTenant(&context, request, &tenant);
  }
  // What is on record, as a reader sees it.
  double Weight() {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::ListTenantsResponse tenants;
    const grpc::Status status =
        v1::QueueService::NewStub(server_->channel())->ListTenants(&context, v1::ListTenantsRequest(), &tenants);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return tenants.tenants_size() == 1 ? tenants.tenants(0).weight() : 0;
  }
  grpc::Status Upload(const std::string& id) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::Dataset dataset;
    return UploadRows(*v1::DatasetService::NewStub(server_->channel()), context, id,
                      ChatLine("a", "b") + ChatLine("c", "d"), dataset);
  }
  grpc::Status RegisterBase(const std::string& id, const std::string& folder) {
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id(id);
    request.set_source_path(folder);
    v1::BaseModel model;
    grpc::ClientContext context;
    return v1::ModelService::NewStub(server_->channel())->RegisterBaseModel(&context, request, &model);
  }
  // How many files the server may have from now on; its hard limit stays.
  bool LimitFiles(rlim_t files) {
    rlimit limit = {};
    if (prlimit(server_->pid(), RLIMIT_NOFILE, nullptr, &limit) != 0) return false;
    limit.rlim_cur = files;
    return prlimit(server_->pid(), RLIMIT_NOFILE, &limit, nullptr) == 0;
  }
  // What a job needs.
  void AddInputs() {
    ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
    ASSERT_TRUE(RegisterBase("base", folder_.path() + "/model").ok());
    ASSERT_TRUE(Upload("rows").ok());
  }
  grpc::Status SubmitJob(const std::string& id) {
    v1::CreateFineTuningJobRequest request;
    request.set_job_id(id);
    request.set_request_id("request-of-" + id);
    request.mutable_job()->mutable_spec()->set_base_model("base");
    request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::FineTuningJob job;
    return v1::FineTuningService::NewStub(server_->channel())->CreateFineTuningJob(&context, request, &job);
  }
  grpc::Status SubmitWithTemplate(const std::string& base_model, const std::string& chat_template) {
    v1::CreateFineTuningJobRequest request;
    request.mutable_job()->mutable_spec()->set_base_model(base_model);
    request.mutable_job()->mutable_spec()->mutable_dataset()->set_dataset("rows");
    request.mutable_job()->mutable_spec()->set_chat_template(chat_template);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    v1::FineTuningJob job;
    return v1::FineTuningService::NewStub(server_->channel())->CreateFineTuningJob(&context, request, &job);
  }
  // The other client's calls are answered all the while, each at once.
  void ExpectRefusalOfTemplate(const std::string& base_model, const std::string& chat_template,
                               const std::string& words) {
    auto refusal = std::async(std::launch::async, [&] { return SubmitWithTemplate(base_model, chat_template); });
    do {
      const auto begin = std::chrono::steady_clock::now();
      ExpectThatItServes();
      EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
    } while (refusal.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready);
    const grpc::Status status = refusal.get();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(words));
  }
  grpc::StatusCode GetJob(const std::string& id) {
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::FineTuningJob job;
    return v1::FineTuningService::NewStub(server_->channel())->GetFineTuningJob(&context, request, &job).error_code();
  }
  int Threads() const {
    const auto folder = std::filesystem::directory_iterator(absl::StrCat("/proc/", server_->pid(), "/task"));
    return static_cast<int>(std::distance(begin(folder), end(folder)));
  }

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

// No token is looked at before the message is whole.
TEST_F(HostileClientsTest, MessagesThatNeverEndTakeNoMoreMemoryThanAllCallsMay) {
  constexpr uint32_t kCalls = 600, kMessage = 4'000'000;
  const std::string part(16'000, 'x');
  RawHttp2 client(server_->address());
  const int64_t before = server_->PeakBytes();
  bool goes_on = true;
  for (uint32_t call = 0; call < kCalls && goes_on; ++call) {
    goes_on = client.Begin(2 * call + 1, kMessage);
    for (size_t sent = 0; sent + part.size() < kMessage && goes_on; sent += part.size())
      goes_on = client.SendPart(2 * call + 1, part);
  }
  EXPECT_GT(client.resets(), 0);
  EXPECT_LT(server_->PeakBytes() - before, int64_t{1500} << 20);
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, HeadersThatMakeNoSenseEndTheirCallOnly) {
  RawHttp2 client(server_->address());
  client.Send(Frame(kHeaders, kEndHeaders, 1, CallHeaders("gzip")) +
              Frame(kHeaders, kEndHeaders, 3, std::string(1000, '\xff')));  // indices beyond any table
  client.ReadAll();
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, AChatTemplateThatEndsWhateverRendersOrParsesItIsRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends a program in its own way";
#endif
  AddInputs();
  for (const HostileTemplate& one : HostileTemplates()) {
    SCOPED_TRACE(one.name);
    ExpectRefusalOfTemplate("base", one.source,
                            "chat_template: checking the rows with it needs more than 4.3 GB of memory, or a deeper "
                            "stack than there is; give a template that ");
  }
  for (const HostileTemplate& one : RefusedTemplates()) {
    SCOPED_TRACE(one.name);
    ExpectRefusalOfTemplate("base", one.source, "chat template, line 1: ");
  }
  const std::string hostile = folder_.path() + "/hostile";
  ASSERT_TRUE(WriteTinyModel(hostile).ok());
  WriteText(hostile + "/chat_template.jinja", HostileTemplates().back().source);
  ASSERT_TRUE(RegisterBase("hostile", hostile).ok());
  ExpectRefusalOfTemplate("hostile", "",
                          "chat_template: checking the rows with that of the base model needs more than ");
  EXPECT_TRUE(SubmitJob("good").ok());
  ExpectThatItServes();
  EXPECT_LT(server_->PeakBytes(), int64_t{1} << 30) << "what the templates built was in no memory of the server";
}

// Each holds a thread: there are only so many, and the calls of others find theirs.
TEST_F(HostileClientsTest, HundredsOfUploadsThatDoNotEndHinderNobody) {
  constexpr int kUploads = 500, kAtOnce = 256;
  struct SlowUpload {
    grpc::ClientContext context;
    v1::Dataset dataset;
    std::unique_ptr<grpc::ClientWriter<v1::UploadDatasetRequest>> writer;
  };
  const int threads_before = Threads();
  const auto datasets = v1::DatasetService::NewStub(server_->channel());
  std::deque<SlowUpload> uploads(kUploads);
  for (SlowUpload& upload : uploads) {
    upload.writer = datasets->UploadDataset(&upload.context, &upload.dataset);
    v1::UploadDatasetRequest request;
    request.mutable_header()->set_dataset_id("slow");
    v1::DatasetPart& part = *request.mutable_header()->add_parts();
    part.set_part("train");
    part.set_size_bytes(1000);
    part.set_sha256(Sha256Hex("what never comes"));
    upload.writer->Write(request);
  }
  const std::string refused =
      absl::StrCat("luthier_grpc_server_handled_total{code=\"RESOURCE_EXHAUSTED\",method=\"UploadDataset\"} ",
                   kUploads - kAtOnce, "\n");
  EXPECT_TRUE(WaitFor([&] { return server_->Metrics().find(refused) != std::string::npos; })) << server_->Metrics();
  EXPECT_TRUE(WaitFor([&] { return Threads() - threads_before < kAtOnce + 100; })) << Threads();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) ExpectThatItServes();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  const grpc::Status more = Upload("one-more");
  EXPECT_EQ(more.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ParseErrorDetails(more.error_details()).reason, "TOO_MANY_TRANSFERS");
  EXPECT_TRUE(ParseErrorDetails(more.error_details()).retry_delay.has_value());
  for (SlowUpload& upload : uploads) upload.context.TryCancel();
  EXPECT_TRUE(WaitFor([&] { return Upload("one-more").ok(); })) << "there is room again";
}

// Every connection is a file.
TEST_F(HostileClientsTest, ThousandsOfHandshakesThatAreNeverFinishedAreShed) {
  const auto connections = static_cast<int>(std::min<rlim_t>(5000, SoftFileLimit::Most() / 2));
  server_->End(SIGTERM);
  {
    const SoftFileLimit of_a_login_shell(1024);
    Start();
  }
  const SoftFileLimit many(SoftFileLimit::Most());
  std::vector<int> open;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < connections; ++i) {
    open.push_back(Connect(server_->address()));
    // Every other one begins the greeting of HTTP/2.
    if (i % 2 == 0) {
      EXPECT_EQ(send(open.back(), "PRI * HT", 8, MSG_NOSIGNAL), 8);
    }
  }
  ExpectThatItServes();
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto later = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), own);
  EXPECT_TRUE(later->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)))
      << "somebody who comes meanwhile is let in";
  EXPECT_TRUE(WaitFor(
      [&] {
        std::erase_if(open, [](int fd) { return IsClosed(fd) && close(fd) == 0; });
        return open.empty();
      },
      std::chrono::seconds(60)))
      << open.size() << " of " << connections << " are still open";
  std::printf("%d connections were open for %.1f s at most\n", connections,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  for (const int fd : open) close(fd);
  ExpectThatItServes();
}

// As it would be with a hard limit of so many.
TEST_F(HostileClientsTest, MoreConnectionsThanItHasFilesForAreClosedAndItHasSomeForItself) {
  constexpr rlim_t kFiles = 256, kOfConnections = 192;
  const SoftFileLimit many(SoftFileLimit::Most());
  ASSERT_TRUE(LimitFiles(kFiles));
  ExpectThatItServes();
  std::vector<std::unique_ptr<RawHttp2>> clients;
  for (rlim_t i = 0; i < 2 * kFiles; ++i) clients.push_back(std::make_unique<RawHttp2>(server_->address()));
  const auto refused = [&] {
    return static_cast<rlim_t>(
        std::count_if(clients.begin(), clients.end(), [](const auto& c) { return c->IsClosed(); }));
  };
  EXPECT_TRUE(WaitFor([&] { return refused() >= 2 * kFiles - kOfConnections; })) << refused();
  EXPECT_LT(refused(), 2 * kFiles) << "there is room for some";
  const std::string said =
      "further connections are closed, since all files are taken that connections may have: 192; "
      "raise the hard limit of open files";
  EXPECT_TRUE(WaitFor([&] { return server_->log().find(said) != std::string::npos; })) << server_->log();
  ExpectThatItServes();
  const grpc::Status stored = Upload("meanwhile");
  EXPECT_TRUE(stored.ok()) << stored.error_message();
  clients.clear();
  EXPECT_TRUE(WaitFor([&] { return !RawHttp2(server_->address()).ReadAll().empty(); })) << "there is room again";
}

// gRPC 1.51 would be deaf from then on.
TEST_F(HostileClientsTest, AServerWithoutAFileForAConnectionListensOn) {
  ASSERT_TRUE(LimitFiles(3));
  RawHttp2 waiting(server_->address());
  EXPECT_TRUE(WaitFor([&] { return server_->log().find("further connections are closed") != std::string::npos; }));
  ASSERT_TRUE(LimitFiles(256));
  RawHttp2 next(server_->address());
  EXPECT_TRUE(WaitFor([&] { return !next.ReadAll().empty(); }));
  EXPECT_TRUE(WaitFor([&] { return !waiting.ReadAll().empty(); }));
  ExpectThatItServes();
}

TEST_F(HostileClientsTest, AConnectionWithoutCallsIsClosedAndOneWithAWatchStays) {
  server_->End(SIGTERM);
  Start({"LUTHIER_IDLE_TIMEOUT=1s"});
  AddInputs();
  ASSERT_TRUE(SubmitJob("waits").ok());
  const auto connect = [&] {
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), own);
  };
  const auto seconds = [](int count) { return std::chrono::system_clock::now() + std::chrono::seconds(count); };
  const auto watching = v1::FineTuningService::NewStub(connect());
  grpc::ClientContext context;
  context.set_deadline(seconds(60));
  v1::WatchFineTuningJobRequest request;
  request.set_name("jobs/waits");
  const auto watch = watching->WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  ASSERT_TRUE(watch->Read(&message));

  const auto idle = connect();
  ASSERT_TRUE(idle->WaitForConnected(seconds(10)));
  EXPECT_TRUE(idle->WaitForStateChange(GRPC_CHANNEL_READY, seconds(30)));

  v1::CancelFineTuningJobRequest cancel;
  cancel.set_name("jobs/waits");
  grpc::ClientContext cancel_context;
  v1::FineTuningJob job;
  EXPECT_TRUE(v1::FineTuningService::NewStub(idle)->CancelFineTuningJob(&cancel_context, cancel, &job).ok())
      << "whoever calls again is connected again";
  job.Clear();
  while (watch->Read(&message)) {
    if (message.has_job()) job = message.job();
  }
  const grpc::Status watched = watch->Finish();
  EXPECT_TRUE(watched.ok()) << watched.error_message();
  EXPECT_EQ(job.state(), v1::FineTuningJob::CANCELLED) << "as the watch says";
}

// After a failed fsync nobody knows what is on the disk, so nothing more may be acknowledged.
TEST_F(HostileClientsTest, ADiskThatFailsEndsTheServerAndWhatWasAcknowledgedBeforeIsThere) {
  const std::string fault = folder_.path() + "/fault";
  const std::vector<std::string> faulty = {"LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_FAILS_SYNCS_IF=" + fault};
  AddInputs();
  server_->End(SIGTERM);
  Start(faulty);
  ASSERT_TRUE(SetWeight(2).ok());
  std::ofstream(fault) << "now";
  EXPECT_FALSE(SetWeight(3).ok());
  EXPECT_EQ(server_->Wait(), 1) << server_->log();
  EXPECT_THAT(server_->log(), HasSubstr("ending"));

  std::filesystem::remove(fault);
  Start(faulty);
  EXPECT_GE(Weight(), 2);
  ASSERT_TRUE(SubmitJob("before").ok());
  std::ofstream(fault) << "now";
  EXPECT_FALSE(SubmitJob("during").ok()) << "what may be lost is not acknowledged";
  EXPECT_FALSE(SubmitJob("after").ok());
  EXPECT_EQ(server_->Wait(), 1) << server_->log();

  Start();
  EXPECT_EQ(GetJob("before"), grpc::StatusCode::OK);
  EXPECT_EQ(GetJob("after"), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(SubmitJob("during").ok()) << "the same request, whether it had arrived or not";
}

// A write that is refused leaves nothing in doubt.
TEST_F(HostileClientsTest, ADiskThatBecomesReadOnlyRefusesWhatIsNewAndReadsGoOn) {
  AddInputs();
  server_->End(SIGTERM);
  const std::string fault = folder_.path() + "/fault";
  Start({"LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_READ_ONLY_IF=" + fault});
  ASSERT_TRUE(SubmitJob("before").ok());
  ASSERT_TRUE(SetWeight(2).ok());
  std::ofstream(fault) << "now";
  for (int i = 0; i < 3; ++i) {
    const grpc::Status refused = SubmitJob("during");
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(ParseErrorDetails(refused.error_details()).reason, "DISK_READ_ONLY");
    EXPECT_THAT(refused.error_message(), HasSubstr("--data-dir is read-only"));
    EXPECT_EQ(SetWeight(3).error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_FALSE(Upload("more").ok());
    EXPECT_EQ(GetJob("before"), grpc::StatusCode::OK);
    EXPECT_EQ(GetJob("during"), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(Weight(), 2);
  }
  std::filesystem::remove(fault);
  EXPECT_TRUE(SubmitJob("during").ok()) << "it heals by itself";
  EXPECT_TRUE(Upload("more").ok());
  EXPECT_EQ(server_->End(SIGTERM), 0) << server_->log();
  Start();
  for (const char* job : {"before", "during"}) EXPECT_EQ(GetJob(job), grpc::StatusCode::OK) << job;
}

// The record is on another disk, or has its room there: the server goes on, and nobody's upload is to blame.
TEST_F(HostileClientsTest, ADiskOfTheArtifactsThatIsReadOnlyOrFailsRefusesUploadsUntilItIsMended) {
  AddInputs();
  server_->End(SIGTERM);
  const std::string read_only = folder_.path() + "/read-only", fails = folder_.path() + "/fails";
  Start({"LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_READ_ONLY_IF=" + read_only,
         "FAULTY_DISK_FAILS_SYNCS_IF=" + fails, "FAULTY_DISK_FOLDER=" + folder_.path() + "/data/artifacts"});
  const auto count = [&](const std::string& words) {
    const std::vector<std::string> pieces = absl::StrSplit(server_->log(), words);
    return pieces.size() - 1;
  };
  size_t healed = 0;
  for (const std::string& fault : {read_only, fails}) {
    SCOPED_TRACE(fault);
    const std::string words = fault == fails ? "fsync: Input/output error" : "Read-only file system";
    std::ofstream(fault) << "now";
    for (int i = 0; i < 3; ++i) {
      const grpc::Status refused = Upload("more");
      EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE) << refused.error_message();
      EXPECT_THAT(refused.error_message(), HasSubstr("the server's artifact store cannot be written"));
      EXPECT_THAT(refused.error_message(), Not(HasSubstr(folder_.path())));
    }
    EXPECT_TRUE(WaitFor([&] { return count(words) > 0; })) << server_->log();
    EXPECT_EQ(count(words), 1u) << "once for as long as it lasts: " << server_->log();
    EXPECT_TRUE(SubmitJob("during-" + fault.substr(fault.rfind('/') + 1)).ok()) << "the record takes it";
    std::filesystem::remove(fault);
    EXPECT_TRUE(Upload(absl::StrCat("after-", healed)).ok()) << "it heals by itself";
    EXPECT_TRUE(WaitFor([&] { return count("uploads are stored again") == healed + 1; })) << server_->log();
    ++healed;
  }
  EXPECT_EQ(server_->End(SIGTERM), 0) << server_->log();
}

}  // namespace
}  // namespace luthier
