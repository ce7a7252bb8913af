// What users do with base models, versions and aliases through the API.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Models = v1::ModelService::Stub;

class ModelsTest : public ServicesTest {
 protected:
  void SetUp() override { AddInputs(); }
};

TEST_F(ModelsTest, ANameThatNamesNoModelFindsNoVersionOfAnother) {
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Report("j", 1, 3, JobInput::kArtifactStored);
  v1::ModelVersion version;
  v1::GetModelVersionRequest request;
  request.set_name("models/j/versions/1");
  ASSERT_TRUE(Call(*models_, &Models::GetModelVersion, request, version).ok());
  for (const char* name : {"models//versions/1", "models//versions/latest", "models/j/versions/01",
                           "models/j/versions/+1", "models/j/versions/ 1", "models/j\nx/versions/1"}) {
    request.set_name(name);
    EXPECT_EQ(Call(*models_, &Models::GetModelVersion, request, version).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT)
        << name;
  }
}

TEST_F(ModelsTest, PromotesAVersionIfItIsGoodEnough) {
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Do([](State& state, absl::Time now) {
    v1::FineTuningJob report;
    v1::Evaluation& evaluation = *report.add_evaluations();
    evaluation.set_split("test");
    evaluation.set_model("tuned");
    evaluation.set_exact_match(0.9);
    luthier::Report finished;
    finished.attempt = {"j", 1};
    finished.sequence = 2;
    finished.job_report = report.SerializeAsString();
    finished.input = JobInput::kTrainerFinished;
    state.Record(std::move(finished), now);
  });
  Report("j", 1, 3, JobInput::kArtifactStored);
  v1::PromoteModelVersionRequest request;
  request.set_name("models/j/versions/latest");
  request.set_alias("production");
  request.mutable_minimum()->set_metric("exact_match");
  request.mutable_minimum()->set_value(0.95);
  v1::ModelVersion version;
  const grpc::Status below = Call(*models_, &Models::PromoteModelVersion, request, version);
  EXPECT_EQ(below.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(below), "BELOW_MINIMUM");
  for (const double value : {-0.1, 90.0, std::nan("")}) {
    request.mutable_minimum()->set_value(value);
    const grpc::Status wrong = Call(*models_, &Models::PromoteModelVersion, request, version);
    EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << value;
    EXPECT_THAT(wrong.error_message(), HasSubstr("minimum.value: ")) << value;
  }
  request.mutable_minimum()->set_value(0.85);
  ASSERT_TRUE(Call(*models_, &Models::PromoteModelVersion, request, version).ok());
  EXPECT_THAT(version.aliases(), ElementsAre("production"));
  v1::GetModelVersionRequest get;
  get.set_name("models/j/versions/production");
  ASSERT_TRUE(Call(*models_, &Models::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/j/versions/1");
  v1::DeleteModelAliasRequest remove;
  remove.set_name("models/j/versions/production");
  google::protobuf::Empty nothing;
  EXPECT_TRUE(Call(*models_, &Models::DeleteModelAlias, remove, nothing).ok());
  EXPECT_EQ(Call(*models_, &Models::GetModelVersion, get, version).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ModelsTest, EverythingThatIsWrongWithAPromotionIsSaidAtOnce) {
  v1::PromoteModelVersionRequest request;
  request.set_name("models/gone/versions/1");
  request.set_alias("latest");
  request.mutable_minimum()->set_metric("loss");
  request.mutable_minimum()->set_value(2);
  v1::ModelVersion version;
  const grpc::Status refused = Call(*models_, &Models::PromoteModelVersion, request, version);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(refused), ElementsAre("alias", "name", "minimum.metric", "minimum.value"));
}

TEST_F(ModelsTest, EverythingThatIsWrongWithABaseModelIsSaidAtOnce) {
  v1::RegisterBaseModelRequest request;
  request.set_base_model_id("No Id");
  request.set_source("a\nb");
  request.set_revision(std::string(513, 'a'));
  request.set_source_path("model");
  v1::BaseModel model;
  EXPECT_THAT(FieldsOf(Call(*models_, &Models::RegisterBaseModel, request, model)),
              ElementsAre("base_model_id", "source", "revision", "source_path"));
}

TEST_F(ModelsTest, VersionsBeyondThoseThatAreKeptGoUnlessAnAliasPointsToThem) {
  Connect("n1");
  for (const char* id : {"a", "b", "c", "d"}) {
    v1::CreateFineTuningJobRequest request = RequestFor(id);
    request.mutable_job()->mutable_spec()->set_output_model("intents");
    Create(request);
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Report(id, 1, 3, JobInput::kArtifactStored);
  }
  v1::PromoteModelVersionRequest promotion;
  promotion.set_name("models/intents/versions/1");
  promotion.set_alias("production");
  v1::ModelVersion version;
  ASSERT_TRUE(Call(*models_, &Models::PromoteModelVersion, promotion, version).ok());
  const auto left = [&] {
    v1::ListModelVersionsRequest request;
    request.set_parent("models/intents");
    v1::ListModelVersionsResponse response;
    EXPECT_TRUE(Call(*models_, &Models::ListModelVersions, request, response).ok());
    std::vector<std::string> names;
    for (const v1::ModelVersion& one : response.model_versions()) names.push_back(one.name());
    return names;
  };
  ASSERT_TRUE(housekeeping_.ExpireVersions(0).ok());
  EXPECT_EQ(left().size(), 4u);
  ASSERT_TRUE(housekeeping_.ExpireVersions(1).ok());
  EXPECT_THAT(left(), ElementsAre("models/intents/versions/4", "models/intents/versions/1"));

  v1::DeleteModelVersionRequest request;
  google::protobuf::Empty nothing;
  const auto remove = [&](const std::string& name) {
    request.set_name(name);
    return Call(*models_, &Models::DeleteModelVersion, request, nothing);
  };
  EXPECT_EQ(ReasonOf(remove("models/intents/versions/1")), "IN_USE");
  EXPECT_EQ(remove("models/intents/versions/latest").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(remove("models/intents/versions/2").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(remove("models/intents/versions/4").ok());
  EXPECT_THAT(left(), ElementsAre("models/intents/versions/1"));
}

// Somebody set the clock back between the two.
TEST_F(ModelsTest, TheNewestVersionIsThatWithTheHighestNumberWhateverTheClockSaid) {
  Connect("n1");
  absl::Duration back;
  for (const char* id : {"a", "b"}) {
    v1::CreateFineTuningJobRequest request = RequestFor(id);
    request.mutable_job()->mutable_spec()->set_output_model("intents");
    Create(request);
    Report(id, 1, 1, JobInput::kTrainerStarted);
    Report(id, 1, 2, JobInput::kTrainerFinished);
    Do([&](State& state, absl::Time now) {
      luthier::Report report{.attempt = {id, 1}, .sequence = 3};
      report.input = JobInput::kArtifactStored;
      EXPECT_TRUE(state.Record(std::move(report), now - back));
    });
    back = absl::Hours(48);
  }
  v1::GetModelVersionRequest get;
  get.set_name("models/intents/versions/latest");
  v1::ModelVersion version;
  ASSERT_TRUE(Call(*models_, &Models::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/intents/versions/2");
  v1::ListModelsResponse models;
  ASSERT_TRUE(Call(*models_, &Models::ListModels, v1::ListModelsRequest(), models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).latest_version(), 2);
  ASSERT_TRUE(housekeeping_.ExpireVersions(1).ok());
  EXPECT_TRUE(Call(*models_, &Models::GetModelVersion, get, version).ok());
  EXPECT_EQ(version.name(), "models/intents/versions/2") << "the newest is what is kept";
}

TEST_F(ModelsTest, ABaseModelGoesWhenNoJobUsesItAndItsNameIsFreeAgain) {
  Create(RequestFor("j"));
  v1::DeleteBaseModelRequest request;
  request.set_name("baseModels/base");
  google::protobuf::Empty nothing;
  const auto remove = [&] { return Call(*models_, &Models::DeleteBaseModel, request, nothing); };
  EXPECT_EQ(ReasonOf(remove()), "IN_USE");
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Cancel("j", now).ok()); });
  EXPECT_TRUE(remove().ok());
  EXPECT_EQ(remove().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(RegisterBase("base").ok());
  Create(RequestFor("again"));
}

TEST_F(ModelsTest, ABaseOfBeforeFilesForConvertersWereKeptIsTheSameWithThem) {
  Create(RequestFor("j"));
  v1::ArtifactStored adapter;
  adapter.set_kind(v1::ModelVersion::ADAPTER);
  Publish("j", adapter.SerializeAsString());
  const std::string merges = folder_.path() + "/model/merges.txt";
  std::ofstream(merges) << "a b\n";
  EXPECT_TRUE(RegisterBase("base").ok());
  v1::DeleteBaseModelRequest remove;
  remove.set_name("baseModels/base");
  google::protobuf::Empty nothing;
  ASSERT_TRUE(Call(*models_, &Models::DeleteBaseModel, remove, nothing).ok());
  EXPECT_TRUE(RegisterBase("base").ok()) << "its adapter does not know the file";
  std::ofstream(merges) << "b a\n";
  EXPECT_EQ(RegisterBase("base").error_code(), grpc::StatusCode::ALREADY_EXISTS) << "both have one, and they differ";
}

TEST_F(ModelsTest, NoOtherModelGetsTheNameOfABaseThatHasAdapters) {
  Create(RequestFor("j"));
  v1::ArtifactStored adapter;
  adapter.set_kind(v1::ModelVersion::ADAPTER);
  Publish("j", adapter.SerializeAsString());
  google::protobuf::Empty nothing;
  v1::DeleteBaseModelRequest remove_base;
  remove_base.set_name("baseModels/base");
  const auto remove = [&] { return Call(*models_, &Models::DeleteBaseModel, remove_base, nothing); };
  ASSERT_TRUE(remove().ok());
  EXPECT_TRUE(RegisterBase("base").ok()) << "the same content may come back";
  ASSERT_TRUE(remove().ok());

  std::ofstream(folder_.path() + "/model/generation_config.json") << R"({"do_sample": false})";
  const grpc::Status refused = RegisterBase("base");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(refused), "HAS_ADAPTERS");
  EXPECT_THAT(refused.error_message(), HasSubstr("models/j/versions/1 is an adapter of other content"));
  EXPECT_TRUE(RegisterBase("another").ok());

  v1::DeleteModelVersionRequest remove_version;
  remove_version.set_name("models/j/versions/1");
  ASSERT_TRUE(Call(*models_, &Models::DeleteModelVersion, remove_version, nothing).ok());
  EXPECT_TRUE(RegisterBase("base").ok()) << "nothing was tuned from the other one any more";
}

}  // namespace
}  // namespace luthier
