// Exports: jobs that write a published adapter in another form.
#include <gmock/gmock.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/plan/trainer_spec.h"
#include "nlohmann/json.hpp"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using Jobs = v1::FineTuningService::Stub;
using Models = v1::ModelService::Stub;

class ExportsTest : public ServicesTest {
 protected:
  // A base model, rows, and version 1 of `tuned`, as a LoRA job with a template of its own leaves it.
  void SetUp() override {
    AddInputs();
    PublishVersion("tuned", v1::ModelVersion::ADAPTER,
                   {{"adapter_config.json", R"({"peft_type": "LORA", "r": 3, "target_modules": ["q_proj"]})"},
                    {"adapter_model.safetensors", "weights"},
                    {"chat_template.jinja", "{{ messages }}"},
                    {"README.md", "words"}});
  }
  // By a job with the model's name.
  void PublishVersion(const std::string& model, v1::ModelVersion::Kind kind,
                      const std::map<std::string, std::string>& files) {
    Submit(model);
    v1::ArtifactStored stored;
    stored.set_kind(kind);
    for (const auto& [path, content] : files) {
      auto blob = artifacts_->PutBlob(Sha256Hex(content), static_cast<int64_t>(content.size()));
      ASSERT_TRUE(blob.ok() && (*blob)->Append(content).ok() && (*blob)->Commit().ok());
      v1::ModelFile& file = *stored.add_files();
      file.set_path(path);
      file.set_size_bytes(static_cast<int64_t>(content.size()));
      file.set_sha256(Sha256Hex(content));
    }
    Publish(model, stored.SerializeAsString());
  }
  static v1::ExportModelVersionRequest RequestFor(const std::string& id,
                                                  v1::ModelExport::Format format = v1::ModelExport::MERGED) {
    v1::ExportModelVersionRequest request;
    request.set_name("models/tuned/versions/latest");
    request.set_format(format);
    request.set_job_id(id);
    return request;
  }
  grpc::Status Export(const v1::ExportModelVersionRequest& request, v1::FineTuningJob& job) {
    return Call(*jobs_, &Jobs::ExportModelVersion, request, job);
  }
  // The words with which an export is refused as the caller's mistake.
  std::string RefusalOf(const v1::ExportModelVersionRequest& request) {
    v1::FineTuningJob job;
    const grpc::Status status = Export(request, job);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << status.error_message();
    return status.error_message();
  }
  grpc::Status DeleteTuned() {
    v1::DeleteModelVersionRequest request;
    request.set_name("models/tuned/versions/1");
    google::protobuf::Empty nothing;
    return Call(*models_, &Models::DeleteModelVersion, request, nothing);
  }
  grpc::Status Cancel(const std::string& id) {
    v1::CancelFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    v1::FineTuningJob job;
    return Call(*jobs_, &Jobs::CancelFineTuningJob, request, job);
  }
};

TEST_F(ExportsTest, AnExportIsAJobThatNeedsAVersionAndNothingElse) {
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.mutable_job()->set_priority(3);
  (*request.mutable_job()->mutable_labels())["team"] = "support";
  request.set_hold(true);
  v1::FineTuningJob job;
  const grpc::Status made = Export(request, job);
  ASSERT_TRUE(made.ok()) << made.error_message();
  EXPECT_EQ(job.name(), "jobs/x");
  EXPECT_EQ(job.state(), v1::FineTuningJob::HELD);
  EXPECT_EQ(job.priority(), 3);
  EXPECT_EQ(job.labels().at("team"), "support");
  const v1::FineTuningSpec& spec = job.spec();
  EXPECT_EQ(spec.model_export().model_version(), "models/tuned/versions/1") << "an alias may point elsewhere tomorrow";
  EXPECT_EQ(spec.base_model(), "baseModels/base");
  EXPECT_EQ(spec.output_model(), "tuned-merged");
  std::set<std::string> fields;
  for (const v1::ResolvedValue& value : job.resolved()) fields.insert(value.field());
  EXPECT_THAT(fields, UnorderedElementsAre("base_model", "model_export.model_version", "model_export.format",
                                           "resources.devices"));

  const auto plan = planner_.PlanOf(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const v1::StartAttempt& start = (*plan)->start;
  ASSERT_EQ(start.inputs_size(), 2);
  EXPECT_EQ(start.inputs(0).role(), "start_adapter");
  std::set<std::string> files;
  for (const v1::ModelFile& file : start.inputs(0).files()) files.insert(file.path());
  EXPECT_THAT(files, UnorderedElementsAre("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"));
  EXPECT_EQ(start.inputs(1).role(), "base_model");
  // With the paths of an agent it is a spec that the trainer takes.
  nlohmann::json of_trainer = nlohmann::json::parse(start.trainer_spec_json());
  of_trainer["base_model"] = "base";
  of_trainer["start_adapter"] = "adapter";
  const auto parsed = ParseTrainerSpec(of_trainer);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->export_as, "merged");

  v1::FineTuningJob other;
  ASSERT_TRUE(Export(RequestFor("y", v1::ModelExport::GGUF_ADAPTER), other).ok());
  EXPECT_EQ(other.spec().output_model(), "tuned-gguf");
  request = RequestFor("z");
  request.set_output_model("support");
  request.set_validate_only(true);
  ASSERT_TRUE(Export(request, other).ok());
  EXPECT_EQ(other.spec().output_model(), "support");
}

TEST_F(ExportsTest, EveryFieldThatHasNoEffectIsRefusedByName) {
  v1::ExportModelVersionRequest request = RequestFor("x", v1::ModelExport::FORMAT_UNSPECIFIED);
  request.set_output_model("No Name");
  v1::FineTuningSpec& spec = *request.mutable_job()->mutable_spec();
  spec.mutable_dataset()->set_dataset("rows");
  spec.set_task(v1::TASK_CLASSIFICATION);
  spec.mutable_training()->set_epochs(2);
  spec.mutable_evaluation()->set_every(2);
  spec.mutable_checkpoint()->set_every(2);
  spec.set_chat_template("{{ messages }}");
  spec.set_template_date("2026-11-29");
  spec.mutable_resources()->set_nodes(3);
  spec.mutable_resources()->set_devices(2);
  const std::string refusal = RefusalOf(request);
  for (const char* field :
       {"dataset", "task", "training", "evaluation", "checkpoint", "chat_template", "template_date"})
    EXPECT_THAT(refusal, HasSubstr(absl::StrCat(field, ": has no effect on an export"))) << field;
  EXPECT_THAT(refusal, HasSubstr("model_export.format: is missing"));
  EXPECT_THAT(refusal, HasSubstr("output_model: 'No Name'"));
  EXPECT_THAT(refusal, HasSubstr("resources.nodes: 3 is more than an export uses"));
  EXPECT_THAT(refusal, HasSubstr("resources.devices: 2 is more than an export uses"));
}

// The trainer would refuse the same, once a node has been taken and the base has been read.
TEST_F(ExportsTest, WhatAGgufAdapterCannotHoldIsRefusedAtSubmission) {
  const auto publish = [&](const std::string& model, const std::string& fields) {
    const std::string config = absl::StrCat(R"({"peft_type": "LORA", "r": 3, )", fields, "}");
    PublishVersion(model, v1::ModelVersion::ADAPTER,
                   {{"adapter_config.json", config}, {"adapter_model.safetensors", "weights"}});
  };
  publish("dora", R"("target_modules": ["q_proj"], "use_dora": true)");
  publish("saved", R"("target_modules": ["q_proj"], "modules_to_save": ["lm_head"])");
  publish("tied-head", R"("target_modules": ["lm_head"])");
  publish("tied-embedding", R"("target_modules": ["q_proj", "embed_tokens"])");
  for (const auto& [model, words] :
       {std::pair<const char*, const char*>{"dora", "use_dora: a GGUF adapter cannot hold magnitudes"},
        {"saved", "modules_to_save: a GGUF adapter cannot hold whole modules"},
        {"tied-head", "target_modules: a GGUF adapter cannot hold an adapter on a head"},
        {"tied-embedding", "target_modules: a GGUF adapter cannot hold an adapter on an embedding"}}) {
    v1::ExportModelVersionRequest request = RequestFor(absl::StrCat("export-", model), v1::ModelExport::GGUF_ADAPTER);
    request.set_name(absl::StrCat("models/", model, "/versions/1"));
    const std::string refusal = RefusalOf(request);
    EXPECT_THAT(refusal, HasSubstr(absl::StrCat("model_export.format: GGUF_ADAPTER has no place for ", request.name(),
                                                ": ", words)));
    EXPECT_THAT(refusal, HasSubstr("export the merged model instead"));
    request.set_format(v1::ModelExport::MERGED);
    v1::FineTuningJob job;
    const grpc::Status merged = Export(request, job);
    EXPECT_TRUE(merged.ok()) << merged.error_message();
  }
}

TEST_F(ExportsTest, OnlyAnAdapterOnItsOwnBaseIsExported) {
  PublishVersion("whole", v1::ModelVersion::FULL_MODEL, {{"model.safetensors", "weights"}});
  PublishVersion("llama-cpp", v1::ModelVersion::GGUF_ADAPTER, {{"adapter.gguf", "GGUF"}});
  PublishVersion("broken", v1::ModelVersion::ADAPTER, {{"adapter_config.json", "{}"}});
  for (const auto& [model, words] : {std::pair<const char*, const char*>{
                                         "models/whole/versions/1", "models/whole/versions/1 is a whole model already"},
                                     {"models/llama-cpp/versions/1", "is no adapter"},
                                     {"models/broken/versions/1", "lacks its configuration or its weights"},
                                     {"tuned", "model_export.model_version: 'tuned' is no name"}}) {
    v1::ExportModelVersionRequest request = RequestFor("x");
    request.set_name(model);
    EXPECT_THAT(RefusalOf(request), HasSubstr(words));
  }
  ASSERT_TRUE(RegisterBase("other").ok());
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.mutable_job()->mutable_spec()->set_base_model("other");
  EXPECT_THAT(RefusalOf(request), HasSubstr("base_model: other is not that of models/tuned/versions/1"));

  v1::FineTuningJob job;
  request = RequestFor("x");
  request.set_name("models/tuned/versions/7");
  const grpc::Status missing = Export(request, job);
  EXPECT_EQ(missing.error_code(), StatusCode::NOT_FOUND);
  EXPECT_THAT(missing.error_message(), HasSubstr("models/tuned/versions/7 does not exist"));
}

// It would be the newest version of a model whose jobs are adapters.
TEST_F(ExportsTest, AnExportIsPublishedUnderAnotherNameThanItsVersion) {
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.set_output_model("tuned");
  EXPECT_THAT(RefusalOf(request), HasSubstr("output_model: tuned is the model of models/tuned/versions/1"));
}

TEST_F(ExportsTest, ABrokenAdapterIsToldByItsFieldAndNotByWhereItsFileLies) {
  PublishVersion("torn", v1::ModelVersion::ADAPTER,
                 {{"adapter_config.json", "{"}, {"adapter_model.safetensors", "weights"}});
  v1::ExportModelVersionRequest request = RequestFor("x", v1::ModelExport::GGUF_ADAPTER);
  request.set_name("models/torn/versions/1");
  v1::CreateFineTuningJobRequest continuation = ServicesTest::RequestFor("y");
  continuation.mutable_job()->mutable_spec()->mutable_lora()->set_start_from(request.name());
  v1::FineTuningJob job;
  const grpc::Status refused = Call(*jobs_, &Jobs::CreateFineTuningJob, continuation, job);
  EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("lora.start_from"));
  for (const std::string& refusal : {refused.error_message(), RefusalOf(request)}) {
    EXPECT_THAT(refusal, HasSubstr(": models/torn/versions/1: adapter_config.json: is not valid JSON"));
    EXPECT_THAT(refusal, testing::Not(HasSubstr(folder_.path())));
  }
}

TEST_F(ExportsTest, AVersionStaysUntilItsExportIsOver) {
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.set_request_id("00000000-0000-7000-8000-000000000001");
  request.set_hold(true);
  v1::FineTuningJob job;
  ASSERT_TRUE(Export(request, job).ok());
  const grpc::Status in_use = DeleteTuned();
  EXPECT_EQ(in_use.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(in_use), "IN_USE");
  EXPECT_THAT(in_use.error_message(), HasSubstr("jobs/x"));
  ASSERT_TRUE(Cancel("x").ok());
  ASSERT_TRUE(DeleteTuned().ok());

  v1::RetryFineTuningJobRequest retry;
  retry.set_name("jobs/x");
  EXPECT_EQ(Call(*jobs_, &Jobs::RetryFineTuningJob, retry, job).error_code(), StatusCode::FAILED_PRECONDITION);
  v1::CloneFineTuningJobRequest clone;
  clone.set_name("jobs/x");
  EXPECT_EQ(Call(*jobs_, &Jobs::CloneFineTuningJob, clone, job).error_code(), StatusCode::NOT_FOUND);
  const grpc::Status again = Export(request, job);
  EXPECT_TRUE(again.ok()) << "the same request is the same job, also once its version is gone: "
                          << again.error_message();
  EXPECT_EQ(job.state(), v1::FineTuningJob::CANCELLED);
}

// The job that is asked for names the alias, so a repeated request is the same one wherever that points by then.
TEST_F(ExportsTest, ARepeatedRequestIsTheFirstJobThoughAnAliasHasMoved) {
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.set_request_id("00000000-0000-7000-8000-000000000002");
  request.set_hold(true);
  v1::FineTuningJob first, second;
  ASSERT_TRUE(Export(request, first).ok());
  Do([](State& state, absl::Time now) {
    Job job{.id = "more", .base_model = "base", .model = "tuned"};
    EXPECT_TRUE(state.Create(job, {}, {.own = JoinStoredSpec("", "")}, now).ok());
  });
  ASSERT_TRUE(Report("more", 1, 1, JobInput::kTrainerStarted));
  ASSERT_TRUE(Report("more", 1, 2, JobInput::kTrainerFinished));
  ASSERT_TRUE(Report("more", 1, 3, JobInput::kArtifactStored));
  const grpc::Status again = Export(request, second);
  ASSERT_TRUE(again.ok()) << again.error_message();
  EXPECT_EQ(second.uid(), first.uid());
  EXPECT_EQ(second.spec().model_export().model_version(), "models/tuned/versions/1");
}

TEST_F(ExportsTest, AnExportCanBeClonedAndTriedAgainAndIsNoSweep) {
  v1::FineTuningJob job;
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.set_hold(true);
  ASSERT_TRUE(Export(request, job).ok());
  ASSERT_TRUE(Cancel("x").ok());
  v1::RetryFineTuningJobRequest retry;
  retry.set_name("jobs/x");
  EXPECT_TRUE(Call(*jobs_, &Jobs::RetryFineTuningJob, retry, job).ok());
  v1::CloneFineTuningJobRequest clone;
  clone.set_name("jobs/x");
  clone.set_job_id("y");
  clone.mutable_job()->mutable_spec()->mutable_model_export()->set_format(v1::ModelExport::GGUF_ADAPTER);
  clone.mutable_job()->mutable_spec()->set_output_model("tuned-gguf");
  clone.mutable_update_mask()->add_paths("spec.model_export.format");
  clone.mutable_update_mask()->add_paths("spec.output_model");
  const grpc::Status cloned = Call(*jobs_, &Jobs::CloneFineTuningJob, clone, job);
  ASSERT_TRUE(cloned.ok()) << cloned.error_message();
  EXPECT_EQ(job.spec().model_export().format(), v1::ModelExport::GGUF_ADAPTER);
  EXPECT_EQ(job.spec().model_export().model_version(), "models/tuned/versions/1");

  v1::CreateSweepRequest sweep;
  sweep.set_sweep_id("s");
  *sweep.mutable_sweep()->mutable_job()->mutable_spec() = job.spec();
  sweep.mutable_sweep()->add_grid()->set_field("resources.threads");
  sweep.mutable_sweep()->mutable_grid(0)->add_values("1");
  v1::Sweep made;
  const grpc::Status refused = Call(*sweeps_, &v1::SweepService::Stub::CreateSweep, sweep, made);
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("sweep.job.spec.model_export: has no values to vary"));
}

TEST_F(ExportsTest, AnExportWritesNoCheckpoints) {
  v1::FineTuningJob job;
  ASSERT_TRUE(Export(RequestFor("x"), job).ok());
  v1::CreateJobCheckpointRequest request;
  request.set_parent("jobs/x");
  v1::CreateJobCheckpointResponse response;
  const grpc::Status refused = Call(*jobs_, &Jobs::CreateJobCheckpoint, request, response);
  EXPECT_EQ(refused.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(refused), "NO_CHECKPOINTS");
}

TEST_F(ExportsTest, TheEstimateOfAnExportIsThatOfItsBaseAndItsCopies) {
  v1::FineTuningJob job;
  v1::ExportModelVersionRequest request = RequestFor("x");
  request.set_hold(true);
  ASSERT_TRUE(Export(request, job).ok());
  v1::EstimateFineTuningJobRequest question;
  *question.mutable_spec() = job.spec();
  v1::EstimateFineTuningJobResponse merged, gguf;
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, question, merged).ok());
  question.mutable_spec()->mutable_model_export()->set_format(v1::ModelExport::GGUF_ADAPTER);
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, question, gguf).ok());
  const int64_t base = 4 * ReadModelFacts(folder_.path() + "/model")->parameters;
  EXPECT_NEAR(static_cast<double>(merged.memory().weights_bytes()), 3.0 * static_cast<double>(base), 1000);
  EXPECT_NEAR(static_cast<double>(gguf.memory().weights_bytes()), static_cast<double>(base), 1000);
  EXPECT_EQ(merged.total_steps(), 0);
  EXPECT_GE(merged.duration().seconds(), 5);
  EXPECT_EQ(merged.duration_reason(), "from the size of the model");
  EXPECT_THAT(merged.fitting_nodes(), testing::ElementsAre("nodes/n1"));

  v1::Inventory small;
  small.set_memory_bytes(100'000'000);
  planner_.SetNode("n1", small);
  const grpc::Status refused = Call(*jobs_, &Jobs::EstimateFineTuningJob, question, gguf);
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(ParseErrorDetails(refused.error_details()).retry_delay.has_value()) << "waiting does not help";
}

TEST_F(ExportsTest, OnANodeWithGpusAnExportNeedsMainMemory) {
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Drain("n1", /*requeue=*/false, now).ok()); });
  v1::Register registration = PlayedAgent::Registration("gpu-1");
  registration.mutable_inventory()->set_memory_bytes(1'000'000);
  registration.mutable_inventory()->add_gpus()->set_memory_bytes(int64_t{80} << 30);
  const PlayedAgent agent(*workers_, registration);
  v1::FineTuningJob job;
  ASSERT_TRUE(Export(RequestFor("x"), job).ok());
  job = GetJob("x");
  EXPECT_EQ(job.pending_code(), v1::PENDING_REASON_DRAINED) << job.pending_reason();
  EXPECT_THAT(job.pending_reason(), HasSubstr("node n1 would take it"));
}

TEST_F(ExportsTest, WhatWasExportedIsPublishedAndItsFiguresAreThoseOfItsVersion) {
  v1::FineTuningJob job;
  ASSERT_TRUE(Export(RequestFor("x"), job).ok());
  ASSERT_TRUE(Report("x", 1, 1, JobInput::kTrainerStarted));
  ASSERT_TRUE(Report("x", 1, 2, JobInput::kTrainerFinished));
  v1::ArtifactStored stored;
  stored.set_kind(v1::ModelVersion::FULL_MODEL);
  ASSERT_TRUE(Report("x", 1, 3, JobInput::kArtifactStored, stored.SerializeAsString()));
  v1::GetModelVersionRequest request;
  request.set_name("models/tuned-merged/versions/latest");
  v1::ModelVersion version;
  ASSERT_TRUE(Call(*models_, &Models::GetModelVersion, request, version).ok());
  EXPECT_EQ(version.kind(), v1::ModelVersion::FULL_MODEL);
  EXPECT_EQ(version.base_model(), "baseModels/base");
  EXPECT_TRUE(DeleteTuned().ok()) << "the export is over";

  v1::PromoteModelVersionRequest promotion;
  promotion.set_name(version.name());
  promotion.set_alias("production");
  promotion.mutable_minimum()->set_metric("exact_match");
  const grpc::Status unknown = Call(*models_, &Models::PromoteModelVersion, promotion, version);
  EXPECT_EQ(unknown.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(unknown.error_message(), HasSubstr("ask models/tuned/versions/1"));
}

}  // namespace
}  // namespace luthier
