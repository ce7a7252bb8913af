// luthierd killed with SIGKILL right after it acknowledged something: the next one on the same folder has it.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "tests/support/temp_folder.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

constexpr char kRow[] = R"({"prompt": "a", "completion": "b"})"
                        "\n";

class Server {
 public:
  Server(const std::string& data_dir, int port) {
    const std::string listen = absl::StrCat("127.0.0.1:", port);
    const std::string metrics = absl::StrCat("127.0.0.1:", port + 1);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      execl(LUTHIERD_PROGRAM, LUTHIERD_PROGRAM, "--listen", listen.c_str(), "--metrics-listen", metrics.c_str(), "--data-dir",
            data_dir.c_str(), nullptr);
      _exit(127);
    }
    // A channel of its own: a shared one would still be backing off from the server before.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::DatasetService::NewStub(grpc::CreateCustomChannel(listen, grpc::InsecureChannelCredentials(), arguments));
  }
  ~Server() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  v1::DatasetService::Stub& stub() { return *stub_; }

 private:
  pid_t pid_ = 0;
  std::unique_ptr<v1::DatasetService::Stub> stub_;
};

void UseDeadline(grpc::ClientContext& context) {
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
}

grpc::Status Upload(Server& server, const std::string& id, const std::string& rows) {
  grpc::ClientContext context;
  UseDeadline(context);
  v1::Dataset dataset;
  return UploadRows(server.stub(), context, id, rows, dataset);
}

TEST(ServerKillTest, WhatWasAcknowledgedIsThereAfterKill9) {
  const TempFolder folder;
  const unsigned seed = std::random_device()();
  const int port = 20000 + static_cast<int>(seed % 6000) * 2;
  std::printf("port %d\n", port);
  for (int round = 1; round <= 4; ++round) {
    Server server(folder.path(), port);
    for (int earlier = 1; earlier < round; ++earlier) {
      grpc::ClientContext context;
      UseDeadline(context);
      v1::GetDatasetRequest request;
      request.set_name(absl::StrCat("datasets/d", earlier));
      v1::Dataset dataset;
      const grpc::Status status = server.stub().GetDataset(&context, request, &dataset);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(dataset.parts(0).rows(), earlier);
    }
    std::string rows;
    for (int row = 0; row < round; ++row) rows += kRow;
    const grpc::Status status = Upload(server, absl::StrCat("d", round), rows);
    ASSERT_TRUE(status.ok()) << status.error_message();
    server.Kill();
  }
}

}  // namespace
}  // namespace luthier
