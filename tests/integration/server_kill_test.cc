// luthierd killed with SIGKILL right after it acknowledged something: the next one on the same folder has it.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

constexpr char kRow[] = R"({"prompt": "a", "completion": "b"})"
                        "\n";

void UseDeadline(grpc::ClientContext& context) {
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
}

grpc::Status Upload(v1::DatasetService::Stub& datasets, const std::string& id, const std::string& rows) {
  grpc::ClientContext context;
  UseDeadline(context);
  v1::Dataset dataset;
  return UploadRows(datasets, context, id, rows, dataset);
}

TEST(ServerKillTest, WhatWasAcknowledgedIsThereAfterKill9) {
  const TempFolder folder;
  for (int round = 1; round <= 4; ++round) {
    Luthierd server(LUTHIERD_PROGRAM, {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder.path()});
    ASSERT_TRUE(server.Serves()) << server.log();
    const std::unique_ptr<v1::DatasetService::Stub> datasets = v1::DatasetService::NewStub(server.channel());
    for (int earlier = 1; earlier < round; ++earlier) {
      grpc::ClientContext context;
      UseDeadline(context);
      v1::GetDatasetRequest request;
      request.set_name(absl::StrCat("datasets/d", earlier));
      v1::Dataset dataset;
      const grpc::Status status = datasets->GetDataset(&context, request, &dataset);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(dataset.parts(0).rows(), earlier);
    }
    std::string rows;
    for (int row = 0; row < round; ++row) rows += kRow;
    const grpc::Status status = Upload(*datasets, absl::StrCat("d", round), rows);
    ASSERT_TRUE(status.ok()) << status.error_message();
    server.End(SIGKILL);
  }
}

}  // namespace
}  // namespace luthier
