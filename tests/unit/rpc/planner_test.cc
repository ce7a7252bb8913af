// What the service plans for a job before a node is taken: rows, memory, templates, a warm start, and warnings.
#include "server/rpc/planner.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/civil_time.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "server/core/reason.h"
#include "tests/support/hostile_templates.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

class PlannerTest : public ServicesTest {};

// The rows of a mixture reach the trainer with their weights, and the plan counts them so.
TEST_F(PlannerTest, PlansAMixtureOfDatasets) {
  AddInputs();
  v1::Dataset dataset;
  ASSERT_TRUE(Upload("more", ChatLine("more", "odd") + ChatLine("more still", "even"), dataset).ok());
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  spec.mutable_dataset()->clear_dataset();
  spec.mutable_dataset()->add_mixture()->set_dataset("rows");
  v1::WeightedDataset& more = *spec.mutable_dataset()->add_mixture();
  more.set_dataset("datasets/more/train");
  more.set_weight(2.5);
  const auto plan = planner_.PlanOf(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->estimate.train_rows(), 24 + 5);
  EXPECT_EQ((*plan)->datasets, "more,rows");
  std::vector<std::string> inputs;
  for (const v1::AttemptInput& input : (*plan)->start.inputs()) {
    if (input.role() == "train") inputs.push_back(absl::StrCat(input.name(), " ", input.weight()));
  }
  EXPECT_THAT(inputs, testing::ElementsAre("rows/train 1", "more/train 2.5"));
  more.set_weight(0);
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()), testing::HasSubstr("dataset.mixture.weight: 0"));
}

// What a small device could still do with smaller micro-batches is not refused to it.
TEST_F(PlannerTest, AsksForTheLeastMemoryWithWhichAJobTrains) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  (*spec.mutable_resources()->mutable_node_selector())["gpu"] = "h100";
  const auto least = *planner_.PlanOf(spec);
  EXPECT_EQ(least->node_selector, "gpu=h100");
  EXPECT_GT(least->cpu_memory_bytes, 0);
  EXPECT_GT(least->gpu_memory_bytes, 0);
  spec.mutable_training()->set_micro_batch_tokens(400);
  spec.mutable_training()->set_batch_tokens(400);
  const auto plan = planner_.PlanOf(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GE((*plan)->cpu_memory_bytes, least->cpu_memory_bytes);
  EXPECT_NEAR(static_cast<double>((*plan)->cpu_memory_bytes) * 0.9,
              static_cast<double>((*plan)->estimate.memory().total_bytes()),
              0.05 * static_cast<double>((*plan)->cpu_memory_bytes));
}

TEST_F(PlannerTest, WarnsAtSubmissionOfHeldOutRowsThatAreTrainedOn) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  const auto warnings = [&] {
    const auto plan = planner_.PlanOf(spec);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return std::vector<std::string>((*plan)->job.warnings().begin(), (*plan)->job.warnings().end());
  };
  const auto shared = testing::HasSubstr("dataset.test: rows/train has the rows of rows/train");
  EXPECT_THAT(warnings(), testing::Not(testing::Contains(shared)));
  spec.mutable_dataset()->clear_dataset();
  spec.mutable_dataset()->set_train("rows");
  spec.mutable_dataset()->set_test("rows");
  EXPECT_THAT(warnings(), testing::Contains(shared));
}

// Rows that were held out would be trained on, and a misspelt part would be another one.
TEST_F(PlannerTest, TakesNoOtherPartForOneThatIsNotThere) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  const auto refusal = [&] { return std::string(planner_.PlanOf(spec).status().message()); };
  v1::DatasetSelection& dataset = *spec.mutable_dataset();
  dataset.set_dataset("rows/train");
  EXPECT_EQ(refusal(), "dataset: 'rows/train' is a part of a dataset; give the dataset, or {train: 'rows/train'}");
  dataset.clear_dataset();
  dataset.set_train("rows/trian");
  EXPECT_EQ(refusal(), "dataset.train: datasets/rows has no part 'trian'; give one that it has: train");
  dataset.set_train("rows");
  dataset.set_test("rows");
  EXPECT_EQ(refusal(), "") << "a dataset of one part is that part where its role is given";
}

TEST_F(PlannerTest, WarnsOfMoreDevicesThanAnyNodeHas) {
  AddInputs();
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->mutable_spec()->mutable_resources()->set_devices(99);
  v1::EstimateFineTuningJobRequest question;
  *question.mutable_spec() = request.job().spec();
  v1::EstimateFineTuningJobResponse estimate;
  using Jobs = v1::FineTuningService::Stub;
  const auto warning = testing::Contains(
      testing::HasSubstr("resources.devices: 99 is more than any node has, of which the largest has 2"));
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, question, estimate).ok());
  EXPECT_THAT(estimate.warnings(), testing::Not(warning)) << "no node was seen, so nobody can say";
  v1::Inventory inventory;
  inventory.set_shares(2);
  planner_.SetNode("n1", inventory);
  ASSERT_TRUE(Call(*jobs_, &Jobs::EstimateFineTuningJob, question, estimate).ok());
  EXPECT_THAT(estimate.warnings(), warning);
  v1::FineTuningJob job;
  request.set_validate_only(true);
  ASSERT_TRUE(Call(*jobs_, &Jobs::CreateFineTuningJob, request, job).ok());
  EXPECT_THAT(job.warnings(), warning);
  request.set_validate_only(false);
  Connect("n1", 2);
  ASSERT_TRUE(Call(*jobs_, &Jobs::CreateFineTuningJob, request, job).ok());
  EXPECT_THAT(job.warnings(), warning);
  v1::ExplainFineTuningJobRequest why;
  why.set_name("jobs/j");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, why, explained).ok());
  EXPECT_EQ(
      explained.pending_reason(),
      "the job asks for 99 devices and the largest connected node has 2; connect a larger one, or clone the job with "
      "fewer resources.devices");
}

// A client that waits as it is told would wait for ever.
TEST_F(PlannerTest, NobodyIsToldToWaitForRoomThatNoNodeHas) {
  AddInputs();
  v1::Inventory small;
  small.set_memory_bytes(1'000'000);
  planner_.SetNode("n1", small);
  v1::FineTuningJob job;
  const grpc::Status refused = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), testing::HasSubstr("the device has 0.00 GB; give a device with "));
  const ErrorDetails details = ParseErrorDetails(refused.error_details());
  EXPECT_EQ(details.reason, "TOO_LARGE");
  EXPECT_FALSE(details.retry_delay.has_value());
}

TEST_F(PlannerTest, WarnsOfMoreNodesThanItHasSeen) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  spec.mutable_resources()->set_nodes(2);
  const auto warnings = [&] {
    const auto plan = planner_.PlanOf(spec);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return std::vector<std::string>((*plan)->job.warnings().begin(), (*plan)->job.warnings().end());
  };
  const auto warning =
      testing::Contains(testing::HasSubstr("resources.nodes: 2 are more than the 1 that the server has seen"));
  EXPECT_THAT(warnings(), testing::Not(warning)) << "no node was seen, so nobody can say";
  planner_.SetNode("n1", v1::Inventory());
  EXPECT_THAT(warnings(), warning);
  planner_.SetNode("n2", v1::Inventory());
  EXPECT_THAT(warnings(), testing::Not(warning));
}

// A plan is made once, though nodes come one after the other.
TEST_F(PlannerTest, ANodeMoreMakesNoNewPlanOfAJobThatHasEnough) {
  AddInputs();
  const v1::FineTuningSpec spec = RequestFor("j").job().spec();
  planner_.SetNode("n1", v1::Inventory());
  const auto plan = planner_.PlanOf(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  planner_.SetNode("n2", v1::Inventory());
  EXPECT_EQ(planner_.KnownPlanOf(spec), *plan);
}

// Hundreds of them would stay in memory, whoever asked for an estimate.
TEST_F(PlannerTest, APlanWithALongTemplateIsNotKept) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  for (const auto& [length, kept] : {std::pair<size_t, bool>{1000, true}, {200'000, false}}) {
    spec.set_chat_template(absl::StrCat("{#", std::string(length, 'x'),
                                        "#}{% for message in messages %}{{ message['content'] }}{% endfor %}"));
    const auto plan = planner_.PlanOf(spec);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(planner_.KnownPlanOf(spec) != nullptr, kept) << length;
  }
}

TEST_F(PlannerTest, GoesOnFromAVersionWithTheShapeOfItsAdapter) {
  AddInputs();
  Submit("first");
  v1::ArtifactStored stored;
  stored.set_kind(v1::ModelVersion::ADAPTER);
  for (const auto& [path, content] :
       {std::pair<const char*, std::string>{
            "adapter_config.json",
            R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], "use_rslora": true})"},
        {"adapter_model.safetensors", "weights"},
        {"README.md", "words"}}) {
    auto blob = artifacts_->PutBlob(Sha256Hex(content), static_cast<int64_t>(content.size()));
    ASSERT_TRUE(blob.ok() && (*blob)->Append(content).ok() && (*blob)->Commit().ok());
    v1::ModelFile& file = *stored.add_files();
    file.set_path(path);
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    file.set_sha256(Sha256Hex(content));
  }
  Publish("first", stored.SerializeAsString());

  v1::CreateFineTuningJobRequest request = RequestFor("second");
  request.mutable_job()->mutable_spec()->mutable_lora()->set_start_from("models/first/versions/latest");
  v1::FineTuningJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job).ok());
  EXPECT_EQ(job.spec().lora().start_from(), "models/first/versions/1") << "an alias may point elsewhere tomorrow";
  const auto plan = planner_.PlanOf(job.spec());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto recipe = nlohmann::json::parse((*plan)->start.trainer_spec_json());
  EXPECT_EQ(recipe["lora"]["rank"], 3);
  EXPECT_EQ(recipe["lora"]["rslora"], true);
  EXPECT_EQ(recipe["lora"]["target_modules"], nlohmann::json({"q_proj"}));
  EXPECT_FALSE(recipe["lora"].contains("start_from")) << "the agent gives the trainer a folder";
  const v1::AttemptInput& input = (*plan)->start.inputs(0);
  EXPECT_EQ(input.role(), "start_adapter");
  EXPECT_EQ(input.files_size(), 2);

  request = RequestFor("third");
  for (const auto& [version, words] : {std::pair<const char*, const char*>{"models/first/versions/7", "does not exist"},
                                       {"models/nobody/versions/1", "does not exist"},
                                       {"first", "lora.start_from: 'first' is no name"}}) {
    request.mutable_job()->mutable_spec()->mutable_lora()->set_start_from(version);
    const grpc::Status refused = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
    EXPECT_THAT(refused.error_message(), testing::HasSubstr(words));
  }
}

TEST_F(PlannerTest, GoesOnFromNoWholeModelAndFromNoAdapterOfAnotherBase) {
  AddInputs();
  Submit("first");
  v1::ArtifactStored stored;
  stored.set_kind(v1::ModelVersion::FULL_MODEL);
  Publish("first", stored.SerializeAsString());
  v1::FineTuningSpec spec = RequestFor("second").job().spec();
  spec.mutable_lora()->set_start_from("models/first/versions/1");
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()), testing::HasSubstr("is no adapter"));

  ASSERT_TRUE(RegisterBase("other").ok());
  stored.set_kind(v1::ModelVersion::ADAPTER);
  Submit("again");
  Publish("again", stored.SerializeAsString());
  spec.set_base_model("other");
  spec.mutable_lora()->set_start_from("models/again/versions/1");
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()),
              testing::HasSubstr("is an adapter of baseModels/base, and the job tunes baseModels/other"));
}

// A template that asks for the date gets one that stays with the job; for any other the plan is the same on every day.
TEST_F(PlannerTest, PlansWithAJobsOwnTemplateAndPinsItsDate) {
  AddInputs();
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  const int64_t tokens = (*planner_.PlanOf(spec))->estimate.train_tokens();
  const auto recipe_of = [&] {
    const auto plan = planner_.PlanOf(spec);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return nlohmann::json::parse((*plan)->start.trainer_spec_json());
  };
  EXPECT_FALSE(recipe_of().contains("template_date"));
  const std::string turns =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  spec.set_chat_template("Today is {{ strftime_now('%d %B %Y') }}." + turns);
  const std::string before = absl::FormatCivilTime(absl::ToCivilDay(absl::Now(), absl::UTCTimeZone()));
  const nlohmann::json recipe = recipe_of();
  const std::string after = absl::FormatCivilTime(absl::ToCivilDay(absl::Now(), absl::UTCTimeZone()));
  EXPECT_THAT(recipe["template_date"].get<std::string>(), testing::AnyOf(before, after));
  EXPECT_EQ(recipe["chat_template"], spec.chat_template());
  EXPECT_GT((*planner_.PlanOf(spec))->estimate.train_tokens(), tokens + 24 * 20);
  spec.set_template_date("2025-01-31");
  EXPECT_EQ(recipe_of()["template_date"], "2025-01-31");
  spec.set_template_date("31 January");
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()), testing::HasSubstr("template_date: '31 January'"));
  spec.clear_template_date();
  spec.set_chat_template("/etc/passwd");  // a path is the client's to read
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()), testing::HasSubstr("give its text"));
  spec.set_chat_template("{% if %}");
  EXPECT_THAT(std::string(planner_.PlanOf(spec).status().message()), testing::HasSubstr("chat_template: "));
}

// The program is gone, as no server's is, to show who asks for it.
TEST_F(PlannerTest, StartsAProcessForRowsThatItHasNotSeenLatelyAndForNoOthers) {
  AddInputs();
  const std::string program = folder_.path() + "/luthierd";
  std::filesystem::create_symlink(LUTHIERD_PROGRAM, program);
  Planner planner(*store_, *artifacts_, planning_, folder_.path(), program);
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  ASSERT_TRUE(planner.PlanOf(spec).ok());
  std::filesystem::remove(program);
  for (const double rate : {1e-4, 2e-4, 3e-4}) {
    spec.mutable_training()->set_learning_rate(rate);
    EXPECT_TRUE(planner.PlanOf(spec).ok()) << "the same rows in another plan";
  }
  spec.set_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}");
  EXPECT_TRUE(absl::IsUnavailable(planner.PlanOf(spec).status())) << "the rows are other tokens";
}

TEST_F(PlannerTest, AtItsEndNobodyWaitsForRowsAndNoneAreReadForWhoComesLater) {
  AddInputs();
  const v1::FineTuningSpec spec = RequestFor("j").job().spec();
  const std::string endless = folder_.path() + "/endless", started = folder_.path() + "/started";
  std::ofstream(endless) << "#!/bin/sh\necho > " << started << "\nwhile :; do :; done\n";
  std::filesystem::permissions(endless, std::filesystem::perms::owner_all);
  Planner planner(*store_, *artifacts_, planning_, folder_.path(), endless);
  absl::Status under_way;
  std::thread caller([&] { under_way = planner.PlanOf(spec).status(); });
  EXPECT_TRUE(WaitFor([&] { return std::filesystem::exists(started); }));
  planner.Stop();
  caller.join();
  std::filesystem::remove(started);
  for (const absl::Status& status : {under_way, planner.PlanOf(spec).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ReasonOf(status), "SHUTTING_DOWN");
  }
  EXPECT_FALSE(std::filesystem::exists(started));
}

// The program is gone, to show who asks for it.
TEST_F(PlannerTest, ReadsNoRowsForACallerThatIsGone) {
  AddInputs();
  const v1::FineTuningSpec spec = RequestFor("j").job().spec();
  Planner planner(*store_, *artifacts_, planning_, folder_.path(), folder_.path() + "/luthierd");
  EXPECT_TRUE(absl::IsCancelled(planner.PlanOf(spec, {"default", [] { return true; }}).status()));
  EXPECT_TRUE(absl::IsUnavailable(planner.PlanOf(spec, {"default", [] { return false; }}).status()));
}

TEST_F(PlannerTest, ATenantWithAsManyPlansWaitingAsMayIsRefused) {
  AddInputs();
  const auto end = KeepPlanningBusy();
  while (planning_.Post("crowd", [] {})) {
  }
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->set_tenant("crowd");
  v1::FineTuningJob job;
  const grpc::Status refused = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = ParseErrorDetails(refused.error_details());
  EXPECT_EQ(details.reason, "TOO_MANY_PLANS");
  EXPECT_EQ(details.quota_subject, "tenants/crowd");
  EXPECT_TRUE(details.retry_delay.has_value());
  EXPECT_TRUE(absl::IsResourceExhausted(planner_.PlanOf(request.job().spec(), {"crowd", nullptr}).status()))
      << "of a call that waits";
  request.mutable_job()->set_tenant("other");
  end->Notify();
  Create(request);
}

TEST_F(PlannerTest, ARepeatedRequestIsAnsweredWithItsJobThoughTooManyPlansWait) {
  AddInputs();
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.set_request_id("00000000-0000-4000-8000-000000000001");
  Create(request);
  planner_.Forget();
  const auto end = KeepPlanningBusy();
  while (planning_.Post("default", [] {})) {
  }
  v1::FineTuningJob job;
  const grpc::Status status = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(job.name(), "jobs/j");
  end->Notify();
}

// A trainer would die of it, which counts as the fault of its node.
TEST_F(PlannerTest, ATemplateThatWouldEndAnEvaluationIsRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends a program in its own way";
#endif
  AddInputs();
  v1::Dataset dataset;
  ASSERT_TRUE(Upload("held-out", ChatLine("good", "a") + ChatLine("bad", "a"), dataset).ok());
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  spec.mutable_dataset()->clear_dataset();
  spec.mutable_dataset()->set_train("rows");
  spec.set_chat_template(absl::StrCat(
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
      "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
      "{{ '\n' }}{% endfor %}{% if add_generation_prompt and messages[-1].content == 'bad' %}",
      HostileTemplates().front().source, "{% endif %}"));
  EXPECT_TRUE(planner_.PlanOf(spec).ok()) << "nothing is held out";
  spec.mutable_dataset()->set_validation("held-out");
  spec.mutable_evaluation()->set_max_rows(1);
  EXPECT_TRUE(planner_.PlanOf(spec).ok()) << "the first row is a good one";
  spec.clear_evaluation();
  const absl::Status refused = planner_.PlanOf(spec).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("chat_template: checking the rows with it needs more than "));
}

// Only conversations with tools ask for the date here, and their template is a file in a folder of its own.
TEST_F(PlannerTest, ABasesTemplateForToolsIsRegisteredAndAsksForTheDay) {
  AddInputs();
  const std::string folder = folder_.path() + "/model";
  std::ofstream(folder + "/chat_template.jinja")
      << "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  std::filesystem::create_directory(folder + "/additional_chat_templates");
  std::ofstream(folder + "/additional_chat_templates/tool_use.jinja") << "{{ strftime_now('%F') }}";
  std::ofstream(folder + "/additional_chat_templates/README.md") << "not a template";
  ASSERT_TRUE(RegisterBase("tools").ok());
  v1::GetBaseModelRequest request;
  request.set_name("baseModels/tools");
  v1::BaseModel model;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::GetBaseModel, request, model).ok());
  std::vector<std::string> paths;
  for (const v1::ModelFile& file : model.files()) paths.push_back(file.path());
  EXPECT_THAT(paths, testing::Contains("additional_chat_templates/tool_use.jinja"));
  EXPECT_THAT(paths, testing::Not(testing::Contains("additional_chat_templates/README.md")));
  v1::FineTuningSpec spec = RequestFor("j").job().spec();
  spec.set_base_model("tools");
  const auto plan = planner_.PlanOf(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(nlohmann::json::parse((*plan)->start.trainer_spec_json()).contains("template_date"));
}

// The exception is one of std::filesystem, which finds a loop where it looks for the model's folder.
TEST_F(PlannerTest, APlanThatThrowsIsAnErrorAndHoldsUpNobodyWhoWantsTheSame) {
  AddInputs();
  const std::string base_models = folder_.path() + "/base_models";
  std::filesystem::create_symlink(base_models, base_models);
  const auto create = [&] {
    v1::FineTuningJob job;
    return Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, RequestFor("j"), job);
  };
  for (int again = 0; again < 2; ++again) {
    const grpc::Status refused = create();
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(refused.error_message(), HasSubstr("cannot be planned"));
  }
  std::filesystem::remove(base_models);
  const grpc::Status created = create();
  EXPECT_TRUE(created.ok()) << created.error_message();
}

}  // namespace
}  // namespace luthier
