#include "server/rpc/services.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/status.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"
#include "tests/support/wait_for.h"
#include "tests/unit/rpc/played_agent.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

constexpr char kRow[] = R"({"prompt": "a", "completion": "b"})"
                        "\n";

TEST(StatusTest, AMessageThatFitsIntoNoHeaderIsCutBehindAWholeCharacter) {
  std::string message;
  for (int i = 0; i < 50'000; ++i) message += "é";
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError(absl::StrCat(".", message)));
  EXPECT_THAT(status.error_message(), testing::EndsWith("éé…"));
  EXPECT_LT(status.error_message().size() + status.error_details().size(), size_t{200} << 10);
}

TEST(StatusTest, AnIdThatIsCutWithinACharacterOrHasALineBreakIsStillOneViolation) {
  const std::string cut = std::string(79, 'a') + "é";
  for (const std::string& id : {cut, std::string("a\nb: c"), std::string("\0\x1b[2J", 5)}) {
    const grpc::Status status = ToGrpcStatus(CheckId("job_id", id));
    EXPECT_EQ(ReasonOf(status), "INVALID_ARGUMENT") << id;
    EXPECT_THAT(FieldsOf(status), testing::ElementsAre("job_id")) << id;
  }
  EXPECT_THAT(std::string(CheckId("tenant", "").message()), HasSubstr("tenant: is missing; give 1 to 63 characters"));
}

TEST_F(ServicesTest, StoresADatasetOnceAndRefusesOtherContentUnderItsName) {
  v1::Dataset dataset;
  ASSERT_TRUE(Upload("d", kRow, dataset).ok());
  EXPECT_EQ(dataset.parts(0).rows(), 1);
  EXPECT_TRUE(Upload("d", kRow, dataset).ok());
  EXPECT_EQ(Upload("d", std::string(kRow) + kRow, dataset).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

// As they were on record before sizes were.
TEST_F(ServicesTest, FilesOfAnOlderServerAreCountedForTheirTenants) {
  const TempFolder folder;
  const std::unique_ptr<Store> store = *Store::Open(folder.path());
  v1::Dataset dataset;
  dataset.set_tenant("support");
  dataset.add_parts()->set_size_bytes(100);
  dataset.add_parts()->set_size_bytes(20);
  v1::ArtifactStored version;
  version.add_files()->set_size_bytes(4000);
  version.add_files()->set_size_bytes(500);
  Writes writes;
  writes.resources.push_back(
      {ResourceKind::kDataset, "rows", Resource{.id = "rows", .payload = dataset.SerializeAsString()}});
  Job job{.number = 1, .id = "j", .base_model = "base", .model = "m", .state = JobState::kSucceeded};
  writes.jobs.push_back(job);
  writes.new_jobs.push_back({.number = 1});
  writes.versions.push_back({.model = "m",
                             .version = 1,
                             .job = "j",
                             .tenant = "default",
                             .attempt = 1,
                             .base_model = "base",
                             .payload = version.SerializeAsString()});
  ASSERT_TRUE(store->Commit(writes).ok());
  ASSERT_TRUE(CountOlderFiles(*store).ok());
  const absl::StatusOr<State> state = store->LoadState(absl::Now());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->TenantOf("support").storage_bytes, 120);
  EXPECT_EQ(state->TenantOf("default").storage_bytes, 4500);
}

TEST_F(ServicesTest, APageBeginsBehindTheLastItemOfTheOneBeforeWhateverCameOrWentInFrontOfIt) {
  v1::Dataset dataset;
  for (const char* id : {"a", "b", "c", "d"}) ASSERT_TRUE(Upload(id, kRow, dataset).ok());
  using Datasets = v1::DatasetService::Stub;
  v1::ListDatasetsRequest request;
  request.set_page_size(2);
  v1::ListDatasetsResponse page;
  ASSERT_TRUE(Call(*datasets_, &Datasets::ListDatasets, request, page).ok());
  ASSERT_EQ(page.datasets_size(), 2);
  EXPECT_EQ(page.datasets(1).name(), "datasets/c");
  request.set_page_token(page.next_page_token());
  v1::DeleteDatasetRequest removal;
  google::protobuf::Empty nothing;
  for (const char* name : {"datasets/d", "datasets/c"}) {
    removal.set_name(name);
    ASSERT_TRUE(Call(*datasets_, &Datasets::DeleteDataset, removal, nothing).ok());
  }
  ASSERT_TRUE(Upload("e", kRow, dataset).ok());
  ASSERT_TRUE(Call(*datasets_, &Datasets::ListDatasets, request, page).ok());
  ASSERT_EQ(page.datasets_size(), 2);
  EXPECT_EQ(page.datasets(0).name(), "datasets/b");
  EXPECT_EQ(page.datasets(1).name(), "datasets/a");
  EXPECT_EQ(page.next_page_token(), "");
}

TEST_F(ServicesTest, NamesPartAndLineOfMalformedRowsAndKeepsNothing) {
  v1::Dataset dataset;
  const grpc::Status status = Upload("d", std::string(kRow) + "{oops\n", dataset);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("train"));
  EXPECT_THAT(status.error_message(), HasSubstr("2"));
  EXPECT_TRUE(store_->ListResources(ResourceKind::kDataset)->empty());
}

TEST_F(ServicesTest, ABaseModelKeepsWhereItCameFrom) {
  using Models = v1::ModelService::Stub;
  ASSERT_TRUE(WriteTinyModel(folder_.path() + "/model").ok());
  v1::RegisterBaseModelRequest request;
  request.set_base_model_id("base");
  request.set_source_path(folder_.path() + "/model");
  request.set_source(std::string(513, 'a'));
  v1::BaseModel model;
  EXPECT_THAT(Call(*models_, &Models::RegisterBaseModel, request, model).error_message(), HasSubstr("source: "));
  request.set_source("hf://org/tiny");
  request.set_revision("a\nb");
  EXPECT_THAT(Call(*models_, &Models::RegisterBaseModel, request, model).error_message(), HasSubstr("revision: "));
  request.set_revision("0123abc");
  ASSERT_TRUE(Call(*models_, &Models::RegisterBaseModel, request, model).ok());
  request.set_revision("of somebody who has the same files");
  ASSERT_TRUE(Call(*models_, &Models::RegisterBaseModel, request, model).ok());
  v1::GetBaseModelRequest get;
  get.set_name("baseModels/base");
  ASSERT_TRUE(Call(*models_, &Models::GetBaseModel, get, model).ok());
  EXPECT_EQ(model.source(), "hf://org/tiny");
  EXPECT_EQ(model.revision(), "0123abc");
}

// The API fetches nothing: a base model is a folder of the server's machine, and everything else is uploaded.
TEST_F(ServicesTest, TakesNoAddressInPlaceOfAFolder) {
  for (const char* address : {"http://169.254.169.254/latest/meta-data", "https://example.org/model", "file:///etc",
                              "s3://bucket/model", "hf://owner/model", "//example.org/model"}) {
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(address);
    v1::BaseModel model;
    const grpc::Status refused = Call(*models_, &v1::ModelService::Stub::RegisterBaseModel, request, model);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << address;
    EXPECT_THAT(refused.error_message(), HasSubstr("no folder on the server's machine")) << address;
  }
}

// The store has to know the name of what it gets before the first byte.
TEST_F(ServicesTest, RefusesAnUploadThatDoesNotSayWhatItsContentIs) {
  for (const std::string& sha256 : {std::string(), std::string("abc")}) {
    grpc::ClientContext context;
    v1::Dataset dataset;
    const auto writer = datasets_->UploadDataset(&context, &dataset);
    v1::UploadDatasetRequest request;
    request.mutable_header()->set_dataset_id("d");
    request.mutable_header()->add_parts()->set_part("train");
    request.mutable_header()->mutable_parts(0)->set_sha256(sha256);
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("parts.sha256"));
  }
}

TEST_F(ServicesTest, AnUploadHearsOfWhatIsWrongInAnyOfItsParts) {
  const std::vector<std::pair<std::string, std::string>> parts = {
      {"train", absl::StrCat(kRow, "{}\n")}, {"validation", kRow}, {"test", "no row\n"}};
  grpc::ClientContext context;
  v1::Dataset dataset;
  const auto writer = datasets_->UploadDataset(&context, &dataset);
  v1::UploadDatasetRequest header, chunk;
  header.mutable_header()->set_dataset_id("d");
  for (const auto& [name, rows] : parts) {
    v1::DatasetPart& part = *header.mutable_header()->add_parts();
    part.set_part(name);
    part.set_size_bytes(static_cast<int64_t>(rows.size()));
    part.set_sha256(Sha256Hex(rows));
  }
  writer->Write(header);
  for (const auto& [name, rows] : parts) {
    chunk.mutable_chunk()->set_part(name);
    chunk.mutable_chunk()->set_data(rows);
    chunk.mutable_chunk()->set_crc32c(Crc32c(rows));
    writer->Write(chunk);
  }
  writer->WritesDone();
  const grpc::Status refused = writer->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), testing::AllOf(HasSubstr("train:2: "), HasSubstr("\ntest:1: ")));
}

TEST_F(ServicesTest, RefusesAChunkThatWasDamagedOnTheWay) {
  v1::Dataset dataset;
  EXPECT_EQ(Upload("d", kRow, dataset, 1).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServicesTest, ListsEveryViolationOfASubmittedJob) {
  v1::CreateFineTuningJobRequest request;
  v1::FineTuningSpec& spec = *request.mutable_job()->mutable_spec();
  spec.set_base_model("b");
  spec.mutable_dataset()->set_dataset("d");
  spec.mutable_lora()->set_rank(0);
  spec.mutable_training()->set_epochs(-1);
  grpc::ClientContext context;
  v1::FineTuningJob job;
  const grpc::Status status = jobs_->CreateFineTuningJob(&context, request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("lora.rank"));
  EXPECT_THAT(status.error_message(), HasSubstr("training.epochs"));
  EXPECT_EQ(ReasonOf(status), "INVALID_ARGUMENT");
  EXPECT_THAT(FieldsOf(status), testing::ElementsAre("lora.rank", "training.epochs", "base_model", "dataset"))
      << "neither base model nor dataset is there";
}

TEST_F(ServicesTest, SaysOfAllThatAJobNamesWhatIsNotThere) {
  AddInputs();
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  v1::DatasetSelection& dataset = *request.mutable_job()->mutable_spec()->mutable_dataset();
  dataset.clear_dataset();
  dataset.set_train("rows/train");
  dataset.set_validation("gone");
  dataset.set_test("never");
  v1::FineTuningJob job;
  const auto create = [&] { return Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job); };
  EXPECT_EQ(create().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(create().error_message(),
            "dataset.validation: datasets/gone does not exist\ndataset.test: datasets/never does not exist");
  dataset.set_validation("rows/odd");
  dataset.set_test("rows/even");
  EXPECT_EQ(create().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(create()), testing::ElementsAre("dataset.validation", "dataset.test"));
  request.mutable_job()->mutable_spec()->mutable_lora()->set_rank(0);
  dataset.set_validation("gone");
  EXPECT_THAT(FieldsOf(create()), testing::ElementsAre("lora.rank", "dataset.validation", "dataset.test"))
      << "a value, a dataset and a part";
  dataset.set_train("rows/one");
  dataset.set_validation("rows/two");
  dataset.set_test("gone");
  dataset.add_mixture()->set_dataset("gone/three");
  EXPECT_THAT(FieldsOf(create()), testing::ElementsAre("dataset.mixture", "lora.rank", "dataset.train",
                                                       "dataset.mixture", "dataset.validation"))
      << "both a train part and a mixture; of a dataset that is not there only the first field is told";
}

TEST_F(ServicesTest, ListsWhatIsWrongWithAJobAndWithItsSpecAtOnce) {
  v1::CreateFineTuningJobRequest request = RequestFor("No Id");
  request.mutable_job()->set_priority(std::numeric_limits<int32_t>::min());  // which has no absolute value
  request.mutable_job()->mutable_spec()->mutable_lora()->set_rank(0);
  request.mutable_job()->mutable_spec()->mutable_training()->set_epochs(-1);
  v1::FineTuningJob job;
  const grpc::Status status = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(status),
              testing::ElementsAre("job_id", "priority", "lora.rank", "training.epochs", "base_model", "dataset"));
}

// It was to come when the request came first.
TEST_F(ServicesTest, ARepeatedRequestIsAnsweredWithItsJobThoughItsDeadlineIsOver) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.set_request_id("0195f1a2-0000-7000-8000-000000000000");
  request.mutable_job()->mutable_deadline()->set_seconds(1700000000);
  v1::FineTuningJob job;
  const auto create = [&] { return Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job); };
  EXPECT_THAT(create().error_message(), HasSubstr("deadline: "));
  const std::string body = absl::StrCat("j\n", DeterministicBytes(request.job()));
  ASSERT_TRUE(loop_
                  .Run([&](State& state, absl::Time now) {
                    (void)state.AddResource(ResourceKind::kBaseModel, {.id = "base", .create_time = now});
                    Job first{.id = "j", .base_model = "base"};
                    return state.Create(first, {request.request_id(), Sha256Hex(body)}, {.own = JoinStoredSpec("", "")},
                                        now);
                  })
                  .ok());
  const grpc::Status repeated = create();
  EXPECT_TRUE(repeated.ok()) << repeated.error_message();
  EXPECT_EQ(job.name(), "jobs/j");
}

TEST_F(ServicesTest, AWatcherSeesEveryEventOfAJobUntilItIsOver) {
  Submit("j");
  grpc::ClientContext watch_context, agent_context;
  v1::WatchFineTuningJobRequest watch;
  watch.set_name("jobs/j");
  const auto watcher = jobs_->WatchFineTuningJob(&watch_context, watch);
  const auto session = workers_->Session(&agent_context);
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id("n1");
  session->Write(request);
  v1::SessionResponse response;
  ASSERT_TRUE(session->Read(&response));
  EXPECT_TRUE(response.has_registered());
  ASSERT_TRUE(session->Read(&response));
  ASSERT_TRUE(response.has_start_attempt());
  EXPECT_EQ(response.start_attempt().attempt(), "jobs/j/attempts/1");
  request.mutable_report()->set_attempt("jobs/j/attempts/1");
  request.mutable_report()->set_sequence(1);
  request.mutable_report()->mutable_ended()->set_outcome(v1::AttemptEnded::FAILED);
  request.mutable_report()->mutable_ended()->set_cause("USER_DATA");
  request.mutable_report()->mutable_ended()->set_message("row 3 is empty");
  session->Write(request);
  ASSERT_TRUE(session->Read(&response));
  EXPECT_EQ(response.report_ack().sequence(), 1);

  v1::WatchFineTuningJobResponse message;
  int64_t last = 0;
  v1::FineTuningJob job;
  while (watcher->Read(&message)) {
    if (message.has_job()) job = message.job();
    if (message.has_event()) {
      EXPECT_EQ(message.event().sequence(), ++last);
    }
  }
  EXPECT_TRUE(watcher->Finish().ok());
  EXPECT_EQ(job.state(), v1::FineTuningJob::FAILED);
  EXPECT_EQ(job.failure().cause(), v1::JobFailure::USER_DATA);
  EXPECT_EQ(job.failure().message(), "row 3 is empty");
  EXPECT_EQ(last, job.last_event_sequence());
  session->WritesDone();
}

TEST_F(ServicesTest, AWatcherIsToldWhyTheJobWaits) {
  Submit("j");
  grpc::ClientContext context;
  v1::WatchFineTuningJobRequest watch;
  watch.set_name("jobs/j");
  const auto watcher = jobs_->WatchFineTuningJob(&context, watch);
  v1::WatchFineTuningJobResponse snapshot;
  ASSERT_TRUE(watcher->Read(&snapshot));
  EXPECT_EQ(snapshot.job().state(), v1::FineTuningJob::QUEUED);
  EXPECT_EQ(snapshot.job().pending_code(), v1::PENDING_REASON_NO_NODE);
  EXPECT_NE(snapshot.job().pending_reason(), "");
  context.TryCancel();
}

TEST_F(ServicesTest, AWatcherResumesFromItsCursorAndReadsFromTheRecordWhatItMissed) {
  Submit("j");
  for (int i = 0; i < 300; ++i) {  // more than a watcher's buffer and a page
    ASSERT_TRUE(loop_
                    .Run([&](State& state, absl::Time now) {
                      if (i == 0) state.Register(Node{.id = "n1"}, {}, now);
                      if (i == 0) state.Tick(now);
                      luthier::Report report;
                      report.attempt = {"j", 1};
                      report.sequence = i + 1;
                      report.events.push_back({.type = "log", .message = "line"});
                      state.Record(std::move(report), now);
                      return absl::OkStatus();
                    })
                    .ok());
  }
  ASSERT_TRUE(loop_.Run([](State& state, absl::Time now) { return state.Cancel("j", now); }).ok());
  ASSERT_TRUE(Report("j", 1, 301, JobInput::kAttemptStopped));
  for (const int64_t after : {int64_t{0}, int64_t{100}, store_->GetJob("j")->job.last_event}) {
    grpc::ClientContext context;
    v1::WatchFineTuningJobRequest request;
    request.set_name("jobs/j");
    request.set_after_sequence(after);
    const auto watcher = jobs_->WatchFineTuningJob(&context, request);
    v1::WatchFineTuningJobResponse message;
    int64_t last = after;
    int snapshots = 0;
    while (watcher->Read(&message)) {
      if (message.has_event()) {
        EXPECT_EQ(message.event().sequence(), ++last);
      }
      snapshots += message.has_job() ? 1 : 0;
    }
    EXPECT_TRUE(watcher->Finish().ok());
    EXPECT_EQ(last, store_->GetJob("j")->job.last_event);
    EXPECT_EQ(snapshots, 2);
  }
}

// The record of a server that was restored from a backup has fewer events than the watcher has seen.
TEST_F(ServicesTest, AWatcherWhoseCursorIsAheadOfTheRecordGetsWhatHappensFromNowOn) {
  Submit("j");
  const int64_t recorded = store_->GetJob("j")->job.last_event;
  grpc::ClientContext context;
  v1::WatchFineTuningJobRequest request;
  request.set_name("jobs/j");
  request.set_after_sequence(recorded + 1000);
  const auto watcher = jobs_->WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  ASSERT_TRUE(watcher->Read(&message));
  EXPECT_EQ(message.job().last_event_sequence(), recorded);
  ASSERT_TRUE(loop_.Run([](State& state, absl::Time now) { return state.Cancel("j", now); }).ok());
  ASSERT_TRUE(watcher->Read(&message));
  EXPECT_EQ(message.event().sequence(), recorded + 1);
  while (watcher->Read(&message)) {
  }
  EXPECT_TRUE(watcher->Finish().ok());
}

// For each share of a device the server makes a place, and for each GPU series of metrics that stay.
TEST_F(ServicesTest, AnAgentWithMoreDevicesThanAMachineCanHaveIsRefused) {
  const auto refusal = [&](auto&& change) {
    v1::Register registration = PlayedAgent::Registration("n1");
    change(*registration.mutable_inventory());
    return PlayedAgent::RefusalOf(*workers_, registration).error_message();
  };
  EXPECT_THAT(refusal([](v1::Inventory& i) { i.set_shares(65); }), HasSubstr("register.inventory.shares: 65"));
  EXPECT_THAT(refusal([](v1::Inventory& i) { i.add_gpus()->set_index(256); }),
              HasSubstr("register.inventory.gpus.index: 256"));
  EXPECT_THAT(refusal([](v1::Inventory& i) {
                for (int gpu = 0; gpu < 257; ++gpu) i.add_gpus()->set_index(0);
              }),
              HasSubstr("register.inventory.gpus: 257"));

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  const auto session = workers_->Session(&context);
  v1::SessionRequest request;
  *request.mutable_register_() = PlayedAgent::Registration("n1");
  session->Write(request);
  v1::SessionResponse response;
  ASSERT_TRUE(session->Read(&response));
  request.mutable_heartbeat()->mutable_inventory()->add_gpus()->set_index(256);
  session->Write(request);
  EXPECT_FALSE(session->Read(&response));
  EXPECT_THAT(session->Finish().error_message(), HasSubstr("heartbeat.inventory.gpus.index: 256"));
}

TEST_F(ServicesTest, WhatADamagedRowMayNameIsNotTakenForUnused) {
  Do([](State& state, absl::Time now) {
    ASSERT_TRUE(state.AddResource(ResourceKind::kDataset, {.id = "d", .create_time = now, .payload = "\xff"}).ok());
  });
  const absl::Status refused = housekeeping_.Collect().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the record of datasets/d is damaged"));
}

TEST_F(ServicesTest, RefusesToWatchAJobThatDoesNotExist) {
  grpc::ClientContext context;
  v1::WatchFineTuningJobRequest request;
  request.set_name("jobs/nobody");
  const auto watcher = jobs_->WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  EXPECT_FALSE(watcher->Read(&message));
  const grpc::Status status = watcher->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ReasonOf(status), "NOT_FOUND");
}

TEST_F(ServicesTest, AStreamFromBelowItsStartIsRefused) {
  Submit("j");
  const auto end_of = [&](auto method, auto request, auto message) {
    request.set_name("jobs/j");
    grpc::ClientContext context;
    const auto reader = (jobs_.get()->*method)(&context, request);
    while (reader->Read(&message)) {
    }
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  using Jobs = v1::FineTuningService::Stub;
  v1::WatchFineTuningJobRequest watch;
  watch.set_after_sequence(-1);
  EXPECT_THAT(end_of(&Jobs::WatchFineTuningJob, watch, v1::WatchFineTuningJobResponse()),
              HasSubstr("after_sequence: "));
  v1::StreamJobMetricsRequest metrics;
  metrics.set_after_sequence(-1);
  EXPECT_THAT(end_of(&Jobs::StreamJobMetrics, metrics, v1::StreamJobMetricsResponse()), HasSubstr("after_sequence: "));
  v1::TailJobLogsRequest logs;
  logs.set_after_sequence(-1);
  logs.set_lines(-1);
  EXPECT_THAT(end_of(&Jobs::TailJobLogs, logs, v1::TailJobLogsResponse()),
              testing::AllOf(HasSubstr("after_sequence: "), HasSubstr("\nlines: ")));
}

TEST_F(ServicesTest, ARetentionThatNoDurationMayHoldIsRefused) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  v1::FineTuningJob job;
  request.mutable_job()->mutable_retention()->set_seconds(315576000001);
  EXPECT_THAT(Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job).error_message(),
              HasSubstr("retention: "));
}

TEST_F(ServicesTest, ARetentionIsShownAsItWasGiven) {
  AddInputs();
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  google::protobuf::Duration& retention = *request.mutable_job()->mutable_retention();
  retention.set_seconds(3153600000);
  retention.set_nanos(999999999);
  v1::FineTuningJob job;
  const auto create = [&] { return Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job); };
  ASSERT_TRUE(create().ok());
  EXPECT_EQ(job.retention().seconds(), 3153600000);
  EXPECT_EQ(job.retention().nanos(), 999999999);
  retention.set_nanos(1000000000);
  EXPECT_THAT(create().error_message(), HasSubstr("retention: ")) << "JSON has no such Duration";
}

// No client could print the job.
TEST_F(ServicesTest, ADeadlineThatNoTimestampMayHoldIsRefused) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  v1::FineTuningJob job;
  for (const int64_t seconds : {int64_t{253402300800}, int64_t{1} << 50, std::numeric_limits<int64_t>::max()}) {
    request.mutable_job()->mutable_deadline()->set_seconds(seconds);
    const grpc::Status status = Call(*jobs_, &v1::FineTuningService::Stub::CreateFineTuningJob, request, job);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << seconds;
    EXPECT_THAT(status.error_message(), HasSubstr("is beyond the year 9999")) << seconds;
  }
}

// Both would train what the node gets, and end one another's sessions for ever.
TEST_F(ServicesTest, ASecondAgentOfANameIsRefusedWhileTheFirstIsConnected) {
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id("n1");
  request.mutable_register_()->set_instance("first");
  v1::SessionResponse response;
  grpc::ClientContext context;
  const auto first = workers_->Session(&context);
  first->Write(request);
  ASSERT_TRUE(first->Read(&response));
  request.mutable_register_()->set_instance("second");
  const auto dial = [&] {
    grpc::ClientContext another;
    const auto second = workers_->Session(&another);
    second->Write(request);
    const bool registered = second->Read(&response);
    if (registered) second->WritesDone();
    const grpc::Status end = second->Finish();
    if (!registered) {
      EXPECT_EQ(ReasonOf(end), "NODE_ID_TAKEN") << end.error_message();
      EXPECT_THAT(end.error_message(), HasSubstr("give each agent a --node-id of its own"));
    }
    return registered;
  };
  EXPECT_FALSE(dial());
  first->WritesDone();
  EXPECT_TRUE(first->Finish().ok());
  EXPECT_TRUE(WaitFor(dial)) << "the first one is gone";
}

TEST_F(ServicesTest, ANewSessionOfANodeEndsItsOldOne) {
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id("n1");
  v1::SessionResponse response;
  grpc::ClientContext first_context, second_context;
  const auto first = workers_->Session(&first_context);
  first->Write(request);
  ASSERT_TRUE(first->Read(&response));
  const auto second = workers_->Session(&second_context);
  second->Write(request);
  ASSERT_TRUE(second->Read(&response));
  EXPECT_TRUE(response.has_registered());
  EXPECT_FALSE(first->Read(&response));
  EXPECT_EQ(first->Finish().error_code(), grpc::StatusCode::ABORTED);
  // The end of the first says nothing about the node.
  ASSERT_TRUE(loop_
                  .Run([](State& state, absl::Time) {
                    EXPECT_TRUE(state.nodes().at("n1").ready);
                    return absl::OkStatus();
                  })
                  .ok());
  second->WritesDone();
}

TEST_F(ServicesTest, CancelsOnceAndRefusesWhatIsOver) {
  Submit("j");
  v1::CancelFineTuningJobRequest request;
  request.set_name("jobs/j");
  v1::FineTuningJob job;
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    ASSERT_TRUE(jobs_->CancelFineTuningJob(&context, request, &job).ok());
    EXPECT_EQ(job.state(), v1::FineTuningJob::CANCELLED);
  }
  Submit("failed");
  ASSERT_TRUE(loop_
                  .Run([](State& state, absl::Time now) {
                    state.Register(Node{.id = "n1"}, {}, now);
                    state.Tick(now);
                    return absl::OkStatus();
                  })
                  .ok());
  ASSERT_TRUE(Report("failed", 1, 1, JobInput::kAttemptFailed));
  request.set_name("jobs/failed");
  grpc::ClientContext context;
  const grpc::Status status = jobs_->CancelFineTuningJob(&context, request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(status), "JOB_IS_OVER");
}

TEST(NewJobIdTest, IsInTheOrderOfCreationAndFitsTheRules) {
  std::string last;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = NewJobId(absl::FromUnixSeconds(1700000000));
    EXPECT_GT(id, last);
    EXPECT_TRUE(CheckId("job_id", id).ok()) << id;
    EXPECT_EQ(id.size(), 15u);
    last = id;
  }
}

TEST_F(ServicesTest, ABackupTakesNoPathThatNoFolderCouldHave) {
  for (const std::string& path : {"/tmp/a" + std::string(1, '\0') + "b", "/" + std::string(4096, 'a')}) {
    v1::CreateBackupRequest request;
    request.set_path(path);
    v1::Backup backup;
    const grpc::Status refused = Call(*admin_, &v1::AdminService::Stub::CreateBackup, request, backup);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << refused.error_message();
    EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("path"));
    EXPECT_THAT(refused.error_message(), HasSubstr("give one of at most 4096 bytes"));
  }
}

TEST_F(ServicesTest, ChecksItsDataWhileItServesAndNamesWhatIsDamaged) {
  AddInputs();
  Submit("j");
  v1::CheckDataResponse found;
  const auto check = [&] { return Call(*admin_, &v1::AdminService::Stub::CheckData, v1::CheckDataRequest(), found); };
  ASSERT_TRUE(check().ok());
  EXPECT_EQ(found.jobs(), 1);
  EXPECT_GE(found.files(), 4) << "rows, and a model of several files";
  v1::GetDatasetRequest request;
  request.set_name("datasets/rows");
  v1::Dataset dataset;
  ASSERT_TRUE(Call(*datasets_, &v1::DatasetService::Stub::GetDataset, request, dataset).ok());
  const std::string blob = FileArtifactStore::BlobPathIn(folder_.path() + "/artifacts", dataset.parts(0).sha256());
  std::filesystem::permissions(blob, std::filesystem::perms::owner_write, std::filesystem::perm_options::add);
  std::fstream(blob, std::ios::in | std::ios::out) << "damage";
  const grpc::Status damaged = check();
  EXPECT_EQ(damaged.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(damaged.error_message(), HasSubstr("blob " + dataset.parts(0).sha256()));
}

}  // namespace
}  // namespace luthier
