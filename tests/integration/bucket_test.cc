// luthierd whose datasets, models and artifacts are in a bucket of a server of S3's, Azure's or Google's protocol; the
// test plays client and agent.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/cloud_server.h"
#include "tests/support/faulty_proxy.h"
#include "tests/support/luthierd.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Rows() {
  std::string rows;
  for (int i = 0; i < 24; ++i) rows += ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
  return rows;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class BucketTest : public testing::Test {
 protected:
  BucketTest() {
    EXPECT_TRUE(WriteTinyModel(Path("model")).ok());
    Cloud().UseFromHere(Cloud().port());
  }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  std::string Bucket() const { return Cloud().Address(prefix_); }

  // Starts luthierd on a data folder; `store` empty: files stay there.
  void Start(const std::string& data, const std::string& store) {
    server_.reset();
    std::vector<std::string> arguments = {"--listen",    "127.0.0.1:0", "--metrics-listen",
                                          "127.0.0.1:0", "--data-dir",  Path(data)};
    if (!store.empty()) arguments.insert(arguments.end(), {"--artifact-store", store});
    server_ = std::make_unique<Luthierd>(LUTHIERD_PROGRAM, arguments);
    log_ += server_->log();
  }
  void MustStart(const std::string& data, const std::string& store) {
    Start(data, store);
    ASSERT_TRUE(server_->Serves()) << server_->log();
  }
  void End() {
    EXPECT_EQ(server_->End(SIGTERM), 0);
    log_ += server_->log();
    server_.reset();
  }
  CapturedResult Run(const std::string& action, const std::string& data, const std::string& store,
                     const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {LUTHIERD_PROGRAM, action, "--data-dir", Path(data)};
    if (!store.empty()) arguments.insert(arguments.end(), {"--artifact-store", store});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunCaptured(arguments);
  }

  template <typename Stub, typename Request, typename Response>
  static grpc::Status Call(Stub&& stub,
                           grpc::Status (std::decay_t<Stub>::element_type::*method)(grpc::ClientContext*,
                                                                                    const Request&, Response*),
                           const Request& request, Response& response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(3));
    return ((*stub).*method)(&context, request, &response);
  }
  grpc::Status Register() {
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(Path("model"));
    v1::BaseModel model;
    return Call(v1::ModelService::NewStub(server_->channel()), &v1::ModelService::Stub::RegisterBaseModel, request,
                model);
  }
  grpc::Status Upload(const std::string& id) {
    grpc::ClientContext context;
    v1::Dataset dataset;
    return UploadRows(*v1::DatasetService::NewStub(server_->channel()), context, id, Rows(), dataset);
  }
  grpc::Status Submit(const std::string& id) {
    v1::CreateFineTuningJobRequest request;
    request.set_job_id(id);
    v1::FineTuningSpec& spec = *request.mutable_job()->mutable_spec();
    spec.set_base_model("base");
    spec.mutable_dataset()->set_dataset("rows");
    spec.set_task(v1::TASK_CLASSIFICATION);
    spec.set_output_model(id);
    v1::FineTuningJob job;
    return Call(v1::FineTuningService::NewStub(server_->channel()), &v1::FineTuningService::Stub::CreateFineTuningJob,
                request, job);
  }
  // A model, a dataset, and a job whose adapter is published.
  void Fill(const std::string& weights) {
    ASSERT_TRUE(Register().ok());
    ASSERT_TRUE(Upload("rows").ok());
    const grpc::Status submitted = Submit("tuned");
    ASSERT_TRUE(submitted.ok()) << submitted.error_message();
    ScriptedAgent agent(server_->address());
    ASSERT_EQ(agent.TakeAttempt(), "jobs/tuned/attempts/1");
    agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 1}, {"resumed_step", 0}});
    agent.Report({{"event", "finished"}, {"stop_reason", "COMPLETED"}});
    agent.Publish({{"adapter_model.safetensors", weights}, {"adapter_config.json", "{}"}});
    agent.End(v1::AttemptEnded::FINISHED);
  }
  std::string Download() {
    grpc::ClientContext context;
    v1::DownloadModelVersionRequest request;
    request.set_name("models/tuned/versions/latest");
    request.set_path("adapter_model.safetensors");
    const auto reader = v1::ModelService::NewStub(server_->channel())->DownloadModelVersion(&context, request);
    v1::DownloadModelVersionResponse message;
    std::string content;
    while (reader->Read(&message)) content += message.chunk().data();
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return content;
  }
  std::string DownloadBase(const std::string& path) {
    grpc::ClientContext context;
    v1::DownloadBaseModelRequest request;
    request.set_name("baseModels/base");
    request.set_path(path);
    const auto reader = v1::ModelService::NewStub(server_->channel())->DownloadBaseModel(&context, request);
    v1::DownloadBaseModelResponse message;
    std::string content;
    while (reader->Read(&message)) content += message.chunk().data();
    EXPECT_TRUE(reader->Finish().ok());
    return content;
  }
  v1::Backup BackUp() {
    v1::CreateBackupRequest request;
    request.set_path(Path("backup"));
    v1::Backup backup;
    const grpc::Status status =
        Call(v1::AdminService::NewStub(server_->channel()), &v1::AdminService::Stub::CreateBackup, request, backup);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return backup;
  }
  // Whether a file of the test's folder holds the text.
  bool IsWritten(const std::string& text) const {
    for (const auto& file : fs::recursive_directory_iterator(folder_.path())) {
      if (file.is_regular_file() && absl::StrContains(ReadFile(file.path()), text)) return true;
    }
    return false;
  }

  static std::string NewPrefix() {
    static int number = 0;
    return absl::StrCat("service-", ++number);
  }

  TempFolder folder_;
  const std::string prefix_ = NewPrefix();
  const std::string weights_ = std::string(9 << 20, 'w') + "end";  // more than one part
  std::unique_ptr<Luthierd> server_;
  std::string log_;  // of servers that ended
};

TEST_F(BucketTest, WhatWasRegisteredUploadedAndPublishedIsTheSameAfterARestart) {
  MustStart("data", Bucket());
  Fill(weights_);
  EXPECT_TRUE(Download() == weights_);
  End();
  MustStart("data", Bucket());
  EXPECT_TRUE(Download() == weights_);
  for (const char* file : {"model.safetensors", "tokenizer.json"})
    EXPECT_TRUE(DownloadBase(file) == ReadFile(Path("model") + "/" + file)) << file;
  EXPECT_TRUE(Submit("another").ok());
  End();
  EXPECT_FALSE(fs::exists(Path("data/artifacts")));
  EXPECT_TRUE(Cloud().Has(prefix_ + "/jobs/tuned/attempt-1/artifact/manifest.json"));
  EXPECT_EQ(Cloud().UnfinishedUploads(), 0);
  EXPECT_THAT(log_, AllOf(HasSubstr(Bucket()), Not(HasSubstr(Cloud().Secret()))));
  EXPECT_FALSE(IsWritten(Cloud().Secret()));
}

TEST_F(BucketTest, ABackupLeavesTheFilesInTheBucketAndARestorationFindsThemThere) {
  MustStart("data", Bucket());
  Fill(weights_);
  const v1::Backup backup = BackUp();
  EXPECT_EQ(backup.bucket(), Bucket());
  EXPECT_GT(backup.files(), 4);
  EXPECT_LT(backup.size_bytes(), 1 << 20);
  EXPECT_FALSE(fs::exists(Path("backup/artifacts")));
  End();

  const CapturedResult without = Run("restore", "new", "", {"--from", Path("backup")});
  EXPECT_EQ(without.exit_code, 1);
  EXPECT_THAT(without.err, AllOf(HasSubstr("--artifact-store"), HasSubstr(Bucket())));
  EXPECT_THAT(Run("check", "backup", "").err, HasSubstr(Bucket()));
  const CapturedResult checked = Run("check", "backup", Bucket());
  EXPECT_EQ(checked.exit_code, 0) << checked.err;

  const CapturedResult restored = Run("restore", "new", Bucket(), {"--from", Path("backup")});
  ASSERT_EQ(restored.exit_code, 0) << restored.err;
  MustStart("new", Bucket());
  EXPECT_TRUE(Download() == weights_);
  EXPECT_TRUE(Submit("another").ok());
}

TEST_F(BucketTest, ABackupOfAFolderIsRestoredIntoABucket) {
  MustStart("data", "");
  Fill(weights_);
  EXPECT_EQ(BackUp().bucket(), "");
  End();
  const CapturedResult restored = Run("restore", "new", Bucket(), {"--from", Path("backup")});
  ASSERT_EQ(restored.exit_code, 0) << restored.err;
  MustStart("new", Bucket());
  EXPECT_TRUE(Download() == weights_);
  End();
  EXPECT_EQ(Run("check", "new", Bucket()).exit_code, 0);
  EXPECT_FALSE(fs::exists(Path("new/artifacts")));
}

TEST_F(BucketTest, FilesAreNeverLookedForInAnotherStoreThanWhereTheyAre) {
  MustStart("data", Bucket());
  End();
  Start("data", "");
  EXPECT_FALSE(server_->Serves());
  EXPECT_THAT(server_->log(), AllOf(HasSubstr("--artifact-store"), HasSubstr(Bucket())));
  Start("data", Bucket() + "-other");
  EXPECT_FALSE(server_->Serves());
  Start("second", Bucket());
  EXPECT_FALSE(server_->Serves());
  EXPECT_THAT(server_->log(), HasSubstr("is another server's"));
  MustStart("local", "");
  End();
  Start("local", Bucket() + "-new");
  EXPECT_FALSE(server_->Serves());
  EXPECT_THAT(server_->log(), HasSubstr("luthierd restore"));
}

TEST_F(BucketTest, AnOutageOfTheBucketRefusesWhatNeedsItAndIsOverWhenItIsOver) {
  std::atomic<bool> down = false;
  FaultyProxy proxy(Cloud().port(), [&](const std::string& request) {
    return down && !absl::StrContains(request, "/owner") ? FaultyProxy::Fault::kDenied : FaultyProxy::Fault::kNone;
  });
  Cloud().UseFromHere(proxy.port());
  MustStart("data", Bucket());
  ASSERT_TRUE(Register().ok());
  ASSERT_TRUE(Upload("rows").ok());
  down = true;
  const grpc::Status refused = Upload("more");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE) << refused.error_message();
  EXPECT_THAT(refused.error_message(), HasSubstr(Bucket()));
  v1::ListDatasetsResponse listed;
  EXPECT_TRUE(Call(v1::DatasetService::NewStub(server_->channel()), &v1::DatasetService::Stub::ListDatasets,
                   v1::ListDatasetsRequest(), listed)
                  .ok());
  EXPECT_EQ(listed.datasets_size(), 1);
  down = false;
  EXPECT_TRUE(Upload("more").ok());
  EXPECT_TRUE(Submit("tuned").ok());
}

// The bucket is asked by the test itself, and luthierd no longer runs.
TEST_F(BucketTest, UrlsOfAVersionBringItsFilesStraightFromTheBucket) {
  MustStart("data", Bucket());
  Fill(weights_);
  const auto urls = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {LUTHIER_PROGRAM, "model", "urls", "tuned", "--server", server_->address()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunCaptured(arguments);
  };
  const CapturedResult text = urls({}), json = urls({"-o", "json", "--for", "10m"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.err, HasSubstr("models/tuned/versions/1"));
  EXPECT_EQ(urls({"--for", "169h"}).exit_code, 3);
  End();
  const std::string endpoint = CloudServer::Endpoint(Cloud().port());
  std::map<std::string, std::string> found;
  for (const absl::string_view line : absl::StrSplit(text.out, '\n', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> url_and_file = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    ASSERT_TRUE(absl::StartsWith(url_and_file.first, endpoint)) << line;
    found[url_and_file.second] = HttpGet(Cloud().port(), url_and_file.first.substr(endpoint.size()));
  }
  EXPECT_EQ(found.size(), 2u);
  EXPECT_TRUE(found["adapter_model.safetensors"] == weights_);
  EXPECT_EQ(found["adapter_config.json"], "{}");
  const nlohmann::json answer = nlohmann::json::parse(json.out, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(answer.is_object()) << json.out << json.err;
  EXPECT_EQ(answer["name"], "models/tuned/versions/1");
  for (const nlohmann::json& file : answer["files"]) {
    const std::string target = file["url"].get<std::string>().substr(endpoint.size());
    EXPECT_EQ(file["file"]["sha256"], Sha256Hex(HttpGet(Cloud().port(), target)));
    EXPECT_THAT(log_, Not(HasSubstr(target))) << "it is as good as a token";
  }
}

// The certificate is one that `luthier admin tls init` made; only who knows its authority talks to the server.
TEST_F(BucketTest, AnHttpsEndpointNeedsACertificateOfAnAuthorityThatIsKnown) {
  if (Cloud().scheme() != "s3") GTEST_SKIP() << "SKIPPED: all clouds have the same TLS; tested with S3";
  ASSERT_EQ(
      RunCaptured({LUTHIER_PROGRAM, "admin", "tls", "init", "--to", Path("tls"), "--host", "127.0.0.1"}).exit_code, 0);
  const int port = FreePort();
  const std::string endpoint = absl::StrCat("https://127.0.0.1:", port);
  const BackgroundProgram tls_server({"/bin/sh", "-c", "exec \"$0\" \"$@\" >/dev/null 2>&1", S3Server::Program(), "-H",
                                      "127.0.0.1", "-p", absl::StrCat(port), "-s", "-c", Path("tls/server.pem"), "-k",
                                      Path("tls/server.key")});
  const std::string python = fs::path(S3Server::Program()).parent_path() / "python";
  const std::string make_bucket = absl::StrCat("import boto3; boto3.client('s3', endpoint_url='", endpoint,
                                               "', verify='", Path("tls/ca.pem"), "').create_bucket(Bucket='bucket')");
  ASSERT_TRUE(WaitFor([&] { return RunCaptured({python, "-c", make_bucket}).exit_code == 0; }));
  setenv("AWS_ENDPOINT_URL", endpoint.c_str(), 1);
  Start("stranger", Bucket());
  EXPECT_FALSE(server_->Serves());
  EXPECT_THAT(server_->log(), HasSubstr("certificate"));
  setenv("SSL_CERT_FILE", Path("tls/ca.pem").c_str(), 1);
  MustStart("data", Bucket());
  EXPECT_TRUE(Register().ok());
  unsetenv("SSL_CERT_FILE");
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::RunCloudTests(argc, argv); }
