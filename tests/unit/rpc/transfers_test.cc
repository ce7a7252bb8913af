// Uploads and downloads that are too many, too large, or say nothing.
#include <gmock/gmock.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "server/rpc/transfers.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

constexpr char kRow[] = R"({"prompt": "a", "completion": "b"})"
                        "\n";

// An upload of which the test sends what it likes.
struct SlowUpload {
  SlowUpload(v1::DatasetService::Stub& stub, const std::string& secret) {
    if (!secret.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", secret));
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    writer = stub.UploadDataset(&context, &dataset);
  }
  void SendHeader(int64_t bytes, const std::vector<std::string>& parts = {"train"}) {
    v1::UploadDatasetRequest request;
    request.mutable_header()->set_dataset_id("d");
    for (const std::string& name : parts) {
      v1::DatasetPart& part = *request.mutable_header()->add_parts();
      part.set_part(name);
      part.set_size_bytes(bytes);
      part.set_sha256(Sha256Hex(kRow));
    }
    writer->Write(request);
  }
  void SendChunk(const std::string& bytes) {
    v1::UploadDatasetRequest request;
    request.mutable_chunk()->set_part("train");
    request.mutable_chunk()->set_data(bytes);
    request.mutable_chunk()->set_crc32c(Crc32c(bytes));
    writer->Write(request);
  }

  grpc::ClientContext context;
  v1::Dataset dataset;
  std::unique_ptr<grpc::ClientWriter<v1::UploadDatasetRequest>> writer;
};

class TransfersTest : public ServicesTest {
 protected:
  explicit TransfersTest(absl::Duration longest_silence = absl::Minutes(5))
      : ServicesTest({.most = 4, .most_of_tenant = 2, .longest_silence = longest_silence}) {}

  ~TransfersTest() override {
    for (SlowUpload& upload : uploads_) upload.context.TryCancel();
  }

  // A token of a member; of an admin if `tenant` is empty.
  std::string TokenOf(const std::string& tenant) {
    v1::CreateTokenRequest request;
    request.set_token_id(absl::StrCat("of-", tenant.empty() ? "all" : tenant));
    request.mutable_token()->set_role(tenant.empty() ? v1::ROLE_ADMIN : v1::ROLE_MEMBER);
    request.mutable_token()->set_tenant(tenant);
    grpc::ClientContext context;
    if (!root_.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", root_));
    v1::CreateTokenResponse response;
    EXPECT_TRUE(admin_->CreateToken(&context, request, &response).ok());
    return response.secret();
  }
  void RequireTokens() { root_ = TokenOf(""); }
  SlowUpload& Begin(const std::string& secret = "") {
    SlowUpload& upload = uploads_.emplace_back(*datasets_, secret);
    upload.SendHeader(1000);
    return upload;
  }
  bool WaitForOpen(size_t open) {
    return WaitFor([&] { return transfers_.open() == open; });
  }

  std::string root_;
  std::deque<SlowUpload> uploads_;
};

class SilentTransfersTest : public TransfersTest {
 protected:
  SilentTransfersTest() : TransfersTest(absl::Seconds(1)) {}
};

TEST_F(TransfersTest, OneTenantCannotTakeAllAndNobodyMoreThanThereAre) {
  RequireTokens();
  const std::string a = TokenOf("a"), b = TokenOf("b"), c = TokenOf("c");
  SlowUpload& first = Begin(a);
  Begin(a);
  ASSERT_TRUE(WaitForOpen(2));
  const grpc::Status third = Begin(a).writer->Finish();
  EXPECT_EQ(third.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails of_tenant = ParseErrorDetails(third.error_details());
  EXPECT_EQ(of_tenant.reason, "TOO_MANY_TRANSFERS");
  EXPECT_EQ(of_tenant.quota_subject, "tenants/a");
  EXPECT_TRUE(of_tenant.retry_delay.has_value());

  Begin(b);
  Begin(b);
  ASSERT_TRUE(WaitForOpen(4)) << "the others' uploads go on";
  const grpc::Status fifth = Begin(c).writer->Finish();
  EXPECT_EQ(fifth.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(fifth), "TOO_MANY_TRANSFERS");
  EXPECT_EQ(ParseErrorDetails(fifth.error_details()).quota_subject, "");
  EXPECT_TRUE(ParseErrorDetails(fifth.error_details()).retry_delay.has_value());

  // Agents are not kept from publishing: this one is refused for what it sends.
  grpc::ClientContext agent;
  agent.AddMetadata("authorization", absl::StrCat("Bearer ", root_));
  v1::UploadArtifactResponse response;
  const auto artifact = workers_->UploadArtifact(&agent, &response);
  artifact->WritesDone();
  EXPECT_EQ(artifact->Finish().error_code(), StatusCode::INVALID_ARGUMENT);

  first.context.TryCancel();
  ASSERT_TRUE(WaitForOpen(3));
  Begin(c);
  EXPECT_TRUE(WaitForOpen(4)) << "there is room again";
}

TEST_F(TransfersTest, AnUploadThatSaysNothingDoesNotOutliveItsToken) {
  RequireTokens();
  SlowUpload& upload = Begin(TokenOf("a"));
  ASSERT_TRUE(WaitForOpen(1));
  v1::RevokeTokenRequest request;
  request.set_name("tokens/of-a");
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", root_));
  v1::Token token;
  ASSERT_TRUE(admin_->RevokeToken(&context, request, &token).ok());
  EXPECT_FALSE(upload.writer->Finish().ok());
  EXPECT_TRUE(WaitForOpen(0));
}

TEST_F(SilentTransfersTest, AnUploadWhoseClientSendsNothingEnds) {
  SlowUpload& silent = Begin();
  EXPECT_EQ(silent.writer->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(WaitForOpen(0));
  EXPECT_TRUE(store_->ListResources(ResourceKind::kDataset)->empty());
}

// In one process nothing is sent before it is read.
TEST_F(SilentTransfersTest, ADownloadThatNobodyReadsEnds) {
  AddInputs();
  grpc::ClientContext context;
  v1::DownloadBaseModelRequest request;
  request.set_name("baseModels/base");
  const auto download = models_->DownloadBaseModel(&context, request);
  v1::DownloadBaseModelResponse message;
  EXPECT_TRUE(download->Read(&message));
  EXPECT_TRUE(WaitForOpen(0));
  while (download->Read(&message)) {
  }
  EXPECT_FALSE(download->Finish().ok());
}

TEST_F(TransfersTest, AStoredFileThatIsGoneOrCutIsDamageAndNoMistakeOfTheCaller) {
  AddInputs();
  v1::GetBaseModelRequest get;
  get.set_name("baseModels/base");
  v1::BaseModel base;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::GetBaseModel, get, base).ok());
  const v1::ModelFile& file = base.files(0);
  const auto download = [&](int64_t offset) {
    v1::DownloadBaseModelRequest request;
    request.set_name("baseModels/base");
    request.set_path(file.path());
    request.set_offset(offset);
    grpc::ClientContext context;
    const auto stream = models_->DownloadBaseModel(&context, request);
    v1::DownloadBaseModelResponse message;
    while (stream->Read(&message)) {
    }
    return stream->Finish();
  };
  EXPECT_TRUE(download(file.size_bytes()).ok());
  for (const int64_t outside : {int64_t{-1}, file.size_bytes() + 1}) {
    const grpc::Status refused = download(outside);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::OUT_OF_RANGE);
    EXPECT_THAT(refused.error_message(), testing::HasSubstr(absl::StrCat("offset: ", outside, " is no position in ")));
  }
  const std::string stored = artifacts_->MakeLocal(file.sha256())->path;
  std::filesystem::remove(stored);
  std::ofstream(stored) << "x";
  const grpc::Status cut = download(file.size_bytes());
  EXPECT_EQ(cut.error_code(), grpc::StatusCode::DATA_LOSS) << cut.error_message();
  std::filesystem::remove(stored);
  const grpc::Status gone = download(0);
  EXPECT_EQ(gone.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(gone.error_message(), testing::HasSubstr("restore it from a backup"));
}

TEST_F(TransfersTest, AnArtifactStoreThatCannotBeWrittenIsNoMistakeOfWhoUploads) {
  Submit("j");
  PlayedAgent agent(*workers_, "n1");
  agent.TakeStart();
  const PlayedAgent::Files files = {{"weights", "bytes"}};
  ASSERT_TRUE(agent.Upload(files).ok());
  const std::string incoming = folder_.path() + "/artifacts/incoming";
  std::filesystem::remove(incoming);
  v1::Dataset dataset;
  for (const grpc::Status& refused : {Upload("d", kRow, dataset), agent.Upload(files), agent.UploadResult(files),
                                      agent.UploadResult(files, /*left_out=*/{"weights"})}) {
    EXPECT_EQ(refused.error_code(), StatusCode::UNAVAILABLE) << refused.error_message();
    EXPECT_THAT(refused.error_message(), HasSubstr("the server's artifact store cannot be written"));
  }
  std::filesystem::create_directory(incoming);
  EXPECT_TRUE(Upload("d", kRow, dataset).ok());
  EXPECT_TRUE(agent.UploadResult(files).ok());
}

TEST_F(TransfersTest, ContentThatIsNotWhatWasAnnouncedIsRefusedByItsName) {
  SlowUpload upload(*datasets_, "");
  const std::string other(sizeof kRow - 1, 'x');
  upload.SendHeader(static_cast<int64_t>(other.size()));
  upload.SendChunk(other);
  const grpc::Status refused = upload.writer->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(), "parts.sha256: the content of train is another; upload again");
}

TEST_F(TransfersTest, ADatasetIsNoLargerThanItMayBe) {
  backend_.max_dataset_bytes = 50;
  v1::Dataset dataset;
  EXPECT_TRUE(Upload("small", kRow, dataset).ok());
  // By what is announced, over all parts, and before a byte is sent.
  for (const std::vector<std::string>& parts : {std::vector<std::string>{"train"}, {"train", "test"}}) {
    SlowUpload upload(*datasets_, "");
    upload.SendHeader(parts.size() == 1 ? 51 : 26, parts);
    const grpc::Status refused = upload.writer->Finish();
    EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(refused.error_message(), HasSubstr("50 bytes"));
    EXPECT_THAT(refused.error_message(), HasSubstr("--max-dataset-size"));
  }
  // By what comes, if that is more than was announced.
  SlowUpload longer(*datasets_, "");
  longer.SendHeader(10);
  longer.SendChunk(std::string(11, 'x'));
  const grpc::Status refused = longer.writer->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("more than the 10 bytes"));
  SlowUpload negative(*datasets_, "");
  negative.SendHeader(-1);
  EXPECT_THAT(negative.writer->Finish().error_message(), HasSubstr("parts.size_bytes: -1 of train is out of range"));
}

TEST_F(TransfersTest, AHeaderHearsOfEverythingThatIsWrongWithIt) {
  SlowUpload upload(*datasets_, "");
  upload.SendHeader(-1, {"train", "trial"});
  const grpc::Status refused = upload.writer->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(),
            "parts.size_bytes: -1 of train is out of range; give the size of the content\n"
            "parts.part: 'trial' is unknown; give train, validation or test\n"
            "parts.size_bytes: -1 of 'trial' is out of range; give the size of the content");
  SlowUpload many(*datasets_, "");
  many.SendHeader(1, std::vector<std::string>(1000, "train"));  // a message has room for a million
  EXPECT_THAT(many.writer->Finish().error_message(), testing::StartsWith("parts: 1000 given; give train, and "));
}

TEST_F(TransfersTest, APartThatIsGivenTwiceIsNamed) {
  SlowUpload upload(*datasets_, "");
  upload.SendHeader(1, {"train", "test", "train"});
  const grpc::Status refused = upload.writer->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("train is given twice"));
}

}  // namespace
}  // namespace luthier
