// The client against a server that breaks calls and streams on purpose.
#include "client/lib/client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "client/lib/dataset_upload.h"
#include "client/lib/grpc_status.h"
#include "client/lib/job_watch.h"
#include "client/lib/model_download.h"
#include "lib/artifact/hash.h"
#include "lib/base/steady_now.h"
#include "lib/text/json_file.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

grpc::Status Unavailable() { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting"); }

// Fails the first `failures` calls; a watch sends `events_a_stream` events and breaks until all `events` are sent.
class FakeJobs final : public v1::FineTuningService::Service {
 public:
  grpc::Status GetFineTuningJob(grpc::ServerContext*, const v1::GetFineTuningJobRequest* request,
                                v1::FineTuningJob* job) override {
    ++calls;
    if (failures > 0 && failures-- > 0) return grpc::Status(failure, "no");
    job->set_name(request->name());
    return grpc::Status::OK;
  }
  grpc::Status CreateFineTuningJob(grpc::ServerContext*, const v1::CreateFineTuningJobRequest* request,
                                   v1::FineTuningJob* job) override {
    request_ids.push_back(request->request_id());
    if (failures > 0 && failures-- > 0) return Unavailable();
    job->set_name("jobs/made");
    return grpc::Status::OK;
  }
  grpc::Status RetryFineTuningJob(grpc::ServerContext*, const v1::RetryFineTuningJobRequest* request,
                                  v1::FineTuningJob*) override {
    request_ids.push_back(request->request_id());
    return failures > 0 && failures-- > 0 ? Unavailable() : grpc::Status::OK;
  }
  grpc::Status UpdateFineTuningJob(grpc::ServerContext*, const v1::UpdateFineTuningJobRequest* request,
                                   v1::FineTuningJob*) override {
    request_ids.push_back(request->request_id());
    return failures > 0 && failures-- > 0 ? Unavailable() : grpc::Status::OK;
  }
  grpc::Status ListFineTuningJobs(grpc::ServerContext*, const v1::ListFineTuningJobsRequest* request,
                                  v1::ListFineTuningJobsResponse* response) override {
    const int first = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    for (int i = first; i < first + 2 && i < 5; ++i) {
      v1::FineTuningJob& job = *response->add_jobs();
      job.set_name(std::to_string(i));
      job.set_pending_reason(pending_reason);
    }
    if (first + 2 < 5) response->set_next_page_token(std::to_string(first + 2));
    return grpc::Status::OK;
  }
  grpc::Status WatchFineTuningJob(grpc::ServerContext* context, const v1::WatchFineTuningJobRequest* request,
                                  grpc::ServerWriter<v1::WatchFineTuningJobResponse>* writer) override {
    cursors.push_back(request->after_sequence());
    if (failures > 0 && failures-- > 0) return Unavailable();
    v1::WatchFineTuningJobResponse message;
    message.mutable_job()->set_name(request->name());
    message.mutable_job()->set_state(v1::FineTuningJob::RUNNING);
    writer->Write(message);
    int sent = 0;
    for (int64_t i = request->after_sequence() + 1; i <= events; ++i) {
      if (sent++ == events_a_stream) return grpc::Status(break_code, "broken off");
      message.mutable_event()->set_sequence(i);
      writer->Write(message);
    }
    while (never_ends && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    message.mutable_job()->set_name(request->name());
    message.mutable_job()->set_state(v1::FineTuningJob::SUCCEEDED);
    writer->Write(message);
    return grpc::Status::OK;
  }

  int failures = 0;
  grpc::StatusCode failure = grpc::StatusCode::UNAVAILABLE;
  int calls = 0;
  std::vector<std::string> request_ids;
  std::string pending_reason;
  int64_t events = 0;
  int events_a_stream = 1000000;
  grpc::StatusCode break_code = grpc::StatusCode::UNAVAILABLE;
  bool never_ends = false;
  std::vector<int64_t> cursors;
};

// Takes every upload but the first `failures`, which it breaks off after the header.
class FakeDatasets final : public v1::DatasetService::Service {
 public:
  grpc::Status UploadDataset(grpc::ServerContext*, grpc::ServerReader<v1::UploadDatasetRequest>* reader,
                             v1::Dataset* dataset) override {
    ++uploads;
    v1::UploadDatasetRequest message;
    if (!reader->Read(&message)) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no header");
    header = message.header();
    content.clear();
    if (failures > 0 && failures-- > 0) return Unavailable();
    while (reader->Read(&message)) {
      EXPECT_EQ(message.chunk().offset(), static_cast<int64_t>(content[message.chunk().part()].size()));
      EXPECT_EQ(message.chunk().crc32c(), Crc32c(message.chunk().data()));
      EXPECT_LE(message.chunk().data().size(), size_t{1} << 20);
      content[message.chunk().part()] += message.chunk().data();
    }
    dataset->set_name("datasets/" + header.dataset_id());
    return grpc::Status::OK;
  }

  int failures = 0;
  int uploads = 0;
  v1::UploadDatasetHeader header;
  std::map<std::string, std::string> content;
};

// Sends files in chunks of 1,000 bytes; the first streams break after `chunks_a_stream`, and damage lies where it is
// told to.
class FakeModels final : public v1::ModelService::Service {
 public:
  grpc::Status DownloadModelVersion(grpc::ServerContext*, const v1::DownloadModelVersionRequest* request,
                                    grpc::ServerWriter<v1::DownloadModelVersionResponse>* writer) override {
    if (refusal != grpc::StatusCode::OK) return grpc::Status(refusal, "no");
    offsets.push_back(request->offset());
    const std::string& content = files.at(request->path());
    v1::DownloadModelVersionResponse message;
    message.mutable_file()->set_path(request->path());
    writer->Write(message);
    int sent = 0;
    for (size_t at = static_cast<size_t>(request->offset()); at < content.size(); at += 1000) {
      if (breaks > 0 && sent++ == chunks_a_stream) return --breaks, Unavailable();
      std::string data = content.substr(at, 1000);
      message.mutable_chunk()->set_crc32c(Crc32c(data));
      if (damage_on_the_way > 0 && --damage_on_the_way == 0) data[0] ^= 1;
      message.mutable_chunk()->set_offset(static_cast<int64_t>(at));
      message.mutable_chunk()->set_data(data);
      writer->Write(message);
    }
    return grpc::Status::OK;
  }
  RemoteFolder Remote() const {
    RemoteFolder remote{"models/m/versions/1", {}};
    for (const auto& [path, content] : files) {
      v1::ModelFile& file = remote.files.emplace_back();
      file.set_path(path);
      file.set_size_bytes(static_cast<int64_t>(content.size()));
      file.set_sha256(Sha256Hex(content));
    }
    return remote;
  }

  std::map<std::string, std::string> files;
  int breaks = 0;
  int chunks_a_stream = 2;
  int damage_on_the_way = 0;  // the n-th chunk
  grpc::StatusCode refusal = grpc::StatusCode::OK;
  std::vector<int64_t> offsets;
};

class ClientTest : public testing::Test {
 protected:
  ClientTest() {
    grpc::ServerBuilder builder;
    int port = 0;  // a channel within the process has no connection that could be waited for
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&jobs_);
    builder.RegisterService(&datasets_);
    builder.RegisterService(&models_);
    server_ = builder.BuildAndStart();
    Client::Options options;
    options.server = absl::StrCat("127.0.0.1:", port);
    options.retry.initial_pause = absl::Milliseconds(1);
    client_ = std::make_unique<Client>(options);
  }
  ~ClientTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  TempFolder folder_;
  FakeJobs jobs_;
  FakeDatasets datasets_;
  FakeModels models_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientTest, TriesAgainWhileTheServerIsUnavailable) {
  jobs_.failures = 3;
  EXPECT_EQ(client_->GetJob("jobs/a")->name(), "jobs/a");
  EXPECT_EQ(jobs_.calls, 4);
}

TEST_F(ClientTest, GivesUpAfterTheTriesOfItsPolicy) {
  jobs_.failures = 100;
  EXPECT_EQ(client_->GetJob("jobs/a").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(jobs_.calls, client_->options().retry.attempts);
}

TEST_F(ClientTest, ACallThatTheServerCancelsIsOneOfAServerThatShutsDown) {
  jobs_.failure = grpc::StatusCode::CANCELLED;
  jobs_.failures = 1;
  EXPECT_TRUE(client_->GetJob("jobs/a").ok()) << "it is tried again";
  jobs_.failures = 100;
  const absl::Status ended = client_->GetJob("jobs/a").status();
  EXPECT_EQ(ended.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(ended.message()), HasSubstr("ended the call"));
}

TEST_F(ClientTest, NeverRepeatsOtherErrors) {
  for (const grpc::StatusCode code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::NOT_FOUND,
                                      grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INVALID_ARGUMENT}) {
    jobs_.failures = 1;
    jobs_.failure = code;
    jobs_.calls = 0;
    EXPECT_EQ(static_cast<int>(client_->GetJob("jobs/a").status().code()), static_cast<int>(code));
    EXPECT_EQ(jobs_.calls, 1);
  }
}

TEST_F(ClientTest, RepeatsASubmitUnderTheSameRequestId) {
  jobs_.failures = 2;
  EXPECT_EQ(client_->CreateJob({})->name(), "jobs/made");
  ASSERT_THAT(jobs_.request_ids, SizeIs(3));
  EXPECT_EQ(std::set<std::string>(jobs_.request_ids.begin(), jobs_.request_ids.end()).size(), 1u);
  EXPECT_THAT(jobs_.request_ids[0],
              testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
}

TEST_F(ClientTest, RepeatsARetryAndAnUpdateUnderTheirRequestIds) {
  jobs_.failures = 1;
  EXPECT_TRUE(client_->RetryJob("jobs/a").ok());
  ASSERT_THAT(jobs_.request_ids, SizeIs(2));
  EXPECT_EQ(jobs_.request_ids[0], jobs_.request_ids[1]);
  jobs_.failures = 1;
  v1::UpdateFineTuningJobRequest update;
  update.mutable_job()->set_etag("1");
  EXPECT_TRUE(client_->UpdateJob(update).ok());
  ASSERT_THAT(jobs_.request_ids, SizeIs(4));
  EXPECT_EQ(jobs_.request_ids[2], jobs_.request_ids[3]);
  EXPECT_NE(jobs_.request_ids[1], jobs_.request_ids[2]);
}

TEST_F(ClientTest, ReadsEveryPageOfAListUpToItsLimit) {
  EXPECT_EQ(client_->ListJobs({}, 100)->size(), 5u);
  EXPECT_GE(client_->ListJobs({}, 3)->size(), 3u);
}

TEST_F(ClientTest, TakesAPageThatIsLongerThanWhatGrpcTakesByDefault) {
  jobs_.pending_reason = std::string(3 << 20, 'x');
  const auto jobs = client_->ListJobs({}, 100);
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  EXPECT_EQ(jobs->size(), 5u);
}

TEST(RetryPauseTest, DoublesUpToALimitWithJitterOfHalf) {
  const RetryPolicy policy = {.initial_pause = absl::Milliseconds(100), .longest_pause = absl::Seconds(1)};
  EXPECT_EQ(RetryPause(policy, 1, 0.5), absl::Milliseconds(100));
  EXPECT_EQ(RetryPause(policy, 2, 0.5), absl::Milliseconds(200));
  EXPECT_EQ(RetryPause(policy, 3, 0.0), absl::Milliseconds(200));
  EXPECT_EQ(RetryPause(policy, 5, 0.5), absl::Seconds(1));
  EXPECT_EQ(RetryPause(policy, 1000, 0.5), absl::Seconds(1));
}

TEST_F(ClientTest, AWatchThatBreaksGoesOnBehindTheLastEventItSaw) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INTERNAL}) {
    jobs_.events = 10;
    jobs_.events_a_stream = 4;
    jobs_.break_code = code;
    jobs_.cursors.clear();
    std::vector<int64_t> seen;
    int interrupted = 0, resumed = 0;
    JobWatch watch(*client_, "jobs/a", {},
                   {.on_event = [&](const v1::JobEvent& event) { seen.push_back(event.sequence()); },
                    .on_interrupted = [&](const absl::Status&) { ++interrupted; },
                    .on_resumed = [&] { ++resumed; }});
    EXPECT_EQ(watch.Run()->state(), v1::FineTuningJob::SUCCEEDED);
    EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
    EXPECT_THAT(jobs_.cursors, ElementsAre(0, 4, 8));
    EXPECT_EQ(interrupted, 2);
    EXPECT_EQ(resumed, 2);
  }
}

TEST_F(ClientTest, AWatchOfAServerThatIsNotThereGivesUpSoon) {
  jobs_.failures = 100;
  JobWatch watch(*client_, "jobs/a", {}, {});
  EXPECT_EQ(watch.Run().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(jobs_.cursors, SizeIs(client_->options().retry.attempts));
}

TEST_F(ClientTest, AWatchGivesUpWhenTheServerStaysAwayTooLong) {
  jobs_.events = 10;
  jobs_.events_a_stream = 0;  // every stream breaks, after its snapshot
  JobWatch watch(*client_, "jobs/a", {.longest_silence = absl::ZeroDuration()}, {});
  EXPECT_EQ(watch.Run().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, AWatchCanBeStoppedFromAnotherThread) {
  jobs_.never_ends = true;
  JobWatch* running = nullptr;
  std::thread stopper;
  JobWatch watch(*client_, "jobs/a", {}, {.on_job = [&](const v1::FineTuningJob&) {
    if (!stopper.joinable()) stopper = std::thread([&] { running->Stop(); });
  }});
  running = &watch;
  EXPECT_EQ(watch.Run().status().code(), absl::StatusCode::kCancelled);
  stopper.join();
}

TEST_F(ClientTest, AWatchEndsAtItsDeadline) {
  jobs_.never_ends = true;
  JobWatch watch(*client_, "jobs/a", {.deadline = SteadyNow() + absl::Milliseconds(200)}, {});
  EXPECT_EQ(watch.Run().status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ClientTest, UploadsPartsInOrderInCheckedChunksAndAgainAfterABreak) {
  const std::string large(2'500'000, 'x');
  WriteText(folder_.path() + "/a", large);
  WriteText(folder_.path() + "/b", "rows");
  datasets_.failures = 1;
  int64_t last_done = 0, last_total = 0;
  const auto dataset = UploadDataset(*client_, "d", {{"train", folder_.path() + "/a"}, {"test", folder_.path() + "/b"}},
                                     [&](int64_t done, int64_t total) { last_done = done, last_total = total; });
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(datasets_.uploads, 2);
  EXPECT_EQ(datasets_.content.at("train"), large);
  EXPECT_EQ(datasets_.content.at("test"), "rows");
  EXPECT_EQ(datasets_.header.parts(0).sha256(), Sha256Hex(large));
  EXPECT_EQ(last_done, 2'500'004);
  EXPECT_EQ(last_total, 2'500'004);
}

TEST_F(ClientTest, UploadOfAMissingFileSendsNothing) {
  EXPECT_EQ(UploadDataset(*client_, "d", {{"train", folder_.path() + "/none"}}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(datasets_.uploads, 0);
}

std::string Noise(size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) text += static_cast<char>((i * 2654435761u) >> 13);
  return text;
}

TEST_F(ClientTest, ADownloadGoesOnAtTheByteWhereItBroke) {
  models_.files = {{"adapter_model.safetensors", Noise(9500)}, {"sub/config.json", "{}"}};
  models_.breaks = 3;
  const std::string target = folder_.path() + "/out";
  ASSERT_TRUE(DownloadFolder(*client_, models_.Remote(), target).ok());
  EXPECT_THAT(models_.offsets, ElementsAre(0, 2000, 4000, 6000, 0));
  EXPECT_EQ(*ReadTextFile(target + "/adapter_model.safetensors"), Noise(9500));
  EXPECT_EQ(*ReadTextFile(target + "/sub/config.json"), "{}");
  EXPECT_FALSE(std::filesystem::exists(target + ".partial"));
}

TEST_F(ClientTest, ALaterDownloadGoesOnWhereAnEarlierProcessStopped) {
  models_.files = {{"a", Noise(9500)}};
  const std::string target = folder_.path() + "/out";
  models_.breaks = 1000;
  models_.chunks_a_stream = 0;
  EXPECT_EQ(DownloadFolder(*client_, models_.Remote(), target).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(std::filesystem::exists(target)) << "nothing counts before it is complete";
  WriteText(target + ".partial/a", Noise(9500).substr(0, 3000));
  models_.breaks = 0;
  models_.offsets.clear();
  ASSERT_TRUE(DownloadFolder(*client_, models_.Remote(), target).ok());
  EXPECT_THAT(models_.offsets, ElementsAre(3000));
  EXPECT_EQ(*ReadTextFile(target + "/a"), Noise(9500));
}

TEST_F(ClientTest, BytesOfAnotherFileOnDiskAreNoticedAndFetchedAgain) {
  models_.files = {{"a", Noise(5000)}};
  const std::string target = folder_.path() + "/out";
  std::filesystem::create_directories(target + ".partial");
  WriteText(target + ".partial/a", std::string(3000, 'x'));
  WriteText(target + ".partial/left-over", "x");
  ASSERT_TRUE(DownloadFolder(*client_, models_.Remote(), target).ok());
  EXPECT_THAT(models_.offsets, ElementsAre(3000, 0));
  EXPECT_EQ(*ReadTextFile(target + "/a"), Noise(5000));
  EXPECT_FALSE(std::filesystem::exists(target + "/left-over"));
}

TEST_F(ClientTest, AChunkThatWasDamagedOnTheWayIsFetchedAgain) {
  models_.files = {{"a", Noise(5000)}};
  models_.damage_on_the_way = 3;
  ASSERT_TRUE(DownloadFolder(*client_, models_.Remote(), folder_.path() + "/out").ok());
  EXPECT_THAT(models_.offsets, ElementsAre(0, 2000));
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/out/a"), Noise(5000));
}

TEST_F(ClientTest, ContentThatIsNotWhatWasPublishedNeverLands) {
  models_.files = {{"a", Noise(5000)}};
  RemoteFolder remote = models_.Remote();
  remote.files[0].set_sha256(Sha256Hex("another"));
  EXPECT_EQ(DownloadFolder(*client_, remote, folder_.path() + "/out").code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(std::filesystem::exists(folder_.path() + "/out"));
}

TEST_F(ClientTest, AFolderThatIsThereIsKeptOrNamed) {
  models_.files = {{"a", "content"}};
  const std::string target = folder_.path() + "/out";
  ASSERT_TRUE(DownloadFolder(*client_, models_.Remote(), target).ok());
  models_.offsets.clear();
  EXPECT_TRUE(DownloadFolder(*client_, models_.Remote(), target).ok());
  EXPECT_TRUE(models_.offsets.empty()) << "the same files are not fetched again";
  WriteText(target + "/mine", "work of the user");
  const absl::Status status = DownloadFolder(*client_, models_.Remote(), target);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*ReadTextFile(target + "/mine"), "work of the user");
}

// The server has the version and lets us read it: by its NOT_FOUND or PERMISSION_DENIED a script would think otherwise.
TEST_F(ClientTest, WhatOurDiskRefusesOnTheWayIsNoAnswerOfTheServer) {
  models_.files = {{"a", Noise(5000)}, {"b", "content"}};
  const std::string target = folder_.path() + "/out", partial = target + ".partial";
  std::filesystem::create_symlink("nowhere", partial);
  const absl::Status locked = DownloadFolder(*client_, models_.Remote(), target);
  EXPECT_TRUE(absl::IsFailedPrecondition(locked)) << locked;
  EXPECT_THAT(std::string(locked.message()), HasSubstr(partial));

  std::filesystem::remove(partial);
  const absl::Status swept = DownloadFolder(*client_, models_.Remote(), target,
                                            [&](int64_t, int64_t) { std::filesystem::remove_all(partial); });
  EXPECT_TRUE(absl::IsFailedPrecondition(swept)) << swept;

  if (geteuid() == 0) GTEST_SKIP() << "SKIPPED: root may write everywhere; a folder that is not ours was not tested";
  const auto may_write = std::filesystem::perms::owner_write;
  const absl::Status protected_since =
      DownloadFolder(*client_, models_.Remote(), target, [&](int64_t done, int64_t total) {
        if (done == total)
          std::filesystem::permissions(folder_.path(), may_write, std::filesystem::perm_options::remove);
      });
  std::filesystem::permissions(folder_.path(), may_write, std::filesystem::perm_options::add);
  EXPECT_TRUE(absl::IsFailedPrecondition(protected_since)) << protected_since;
}

TEST_F(ClientTest, WhatTheServerSaysOfADownloadStaysAsItIs) {
  models_.files = {{"a", "content"}};
  for (const grpc::StatusCode code : {grpc::StatusCode::NOT_FOUND, grpc::StatusCode::PERMISSION_DENIED}) {
    models_.refusal = code;
    const absl::Status refused = DownloadFolder(*client_, models_.Remote(), folder_.path() + "/out");
    EXPECT_EQ(static_cast<int>(refused.code()), static_cast<int>(code)) << refused;
  }
}

TEST_F(ClientTest, AServerCannotMakeTheClientWriteElsewhere) {
  models_.files = {{"../evil", "x"}};
  EXPECT_EQ(DownloadFolder(*client_, models_.Remote(), folder_.path() + "/out").code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(folder_.path() + "/evil"));
}

TEST(GrpcStatusTest, TellsAServerThatIsNotThereFromOneThatCannotServe) {
  const absl::Status gone =
      FromGrpc(grpc::Status(grpc::StatusCode::UNAVAILABLE, "failed to connect to all addresses"), "host:1");
  EXPECT_TRUE(IsUnreachable(gone));
  EXPECT_THAT(std::string(gone.message()), HasSubstr("no server answers at host:1"));
  EXPECT_FALSE(WasHungUpOn(gone));
  EXPECT_TRUE(WasHungUpOn(FromGrpc(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                                "failed to connect to all addresses; last error: UNKNOWN: "
                                                "ipv4:127.0.0.1:1: Ssl handshake failed"),
                                   "host:1")));
  EXPECT_FALSE(WasHungUpOn(FromGrpc(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                                 "failed to connect to all addresses; last error: UNKNOWN: "
                                                 "ipv4:127.0.0.1:1: tcp handshaker shutdown"),
                                    "host:1")))
      << "what gRPC says after a connect that took too long";
  const absl::Status busy =
      FromGrpc(grpc::Status(grpc::StatusCode::UNAVAILABLE, "cannot write the record; free disk space"), "host:1");
  EXPECT_FALSE(IsUnreachable(busy));
  EXPECT_EQ(busy.message(), "cannot write the record; free disk space");
}

TEST(GrpcStatusTest, SaysThatAnotherServerAnswers) {
  const absl::Status other =
      FromGrpc(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "Received http2 header with status: 404"), "host:1");
  EXPECT_THAT(std::string(other.message()), HasSubstr("what answers at host:1 is no luthierd"));
  EXPECT_TRUE(absl::IsFailedPrecondition(other));
}

TEST(GrpcStatusTest, SaysThatAnOlderServerHasNoSuchCall) {
  const absl::Status lacking = FromGrpc(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, ""), "host:1");
  EXPECT_THAT(std::string(lacking.message()), HasSubstr("the server at host:1 has no such call: it is older"));
  EXPECT_TRUE(absl::IsUnimplemented(lacking));
}

}  // namespace
}  // namespace luthier
