// luthierd as users start it, over real sockets; the test plays client and agent.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/artifact/private_folder.h"
#include "lib/wire/error_details.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "tests/support/hostile_templates.h"
#include "tests/support/luthierd.h"
#include "tests/support/processes.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Rows(int count) {
  std::string rows;
  for (int i = 0; i < count; ++i) rows += ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
  return rows;
}

// Stubs for one server.
struct Client {
  explicit Client(const std::shared_ptr<grpc::Channel>& channel)
      : jobs(v1::FineTuningService::NewStub(channel)),
        datasets(v1::DatasetService::NewStub(channel)),
        models(v1::ModelService::NewStub(channel)),
        nodes(v1::NodeService::NewStub(channel)),
        workers(v1::WorkerService::NewStub(channel)) {}

  grpc::Status Upload(const std::string& id, const std::string& rows) {
    v1::Dataset dataset;
    return Call([&](grpc::ClientContext& context) { return UploadRows(*datasets, context, id, rows, dataset); });
  }
  grpc::Status Register(const std::string& id, const std::string& folder) {
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id(id);
    request.set_source_path(folder);
    v1::BaseModel model;
    return Call([&](grpc::ClientContext& context) { return models->RegisterBaseModel(&context, request, &model); });
  }
  grpc::Status Submit(const v1::CreateFineTuningJobRequest& request, v1::FineTuningJob& job) {
    return Call([&](grpc::ClientContext& context) { return jobs->CreateFineTuningJob(&context, request, &job); });
  }
  v1::FineTuningJob Get(const std::string& id) {
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    v1::FineTuningJob job;
    const grpc::Status status =
        Call([&](grpc::ClientContext& context) { return jobs->GetFineTuningJob(&context, request, &job); });
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  static grpc::Status Call(const std::function<grpc::Status(grpc::ClientContext&)>& method) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return method(context);
  }

  std::unique_ptr<v1::FineTuningService::Stub> jobs;
  std::unique_ptr<v1::DatasetService::Stub> datasets;
  std::unique_ptr<v1::ModelService::Stub> models;
  std::unique_ptr<v1::NodeService::Stub> nodes;
  std::unique_ptr<v1::WorkerService::Stub> workers;
};

v1::CreateFineTuningJobRequest JobRequestFor(const std::string& id) {
  v1::CreateFineTuningJobRequest request;
  request.set_job_id(id);
  v1::FineTuningSpec& spec = *request.mutable_job()->mutable_spec();
  spec.set_base_model("base");
  spec.mutable_dataset()->set_dataset("rows");
  spec.set_task(v1::TASK_CLASSIFICATION);
  return request;
}

// The agent's side of a session, one message at a time.
class Agent {
 public:
  explicit Agent(Client& client, const std::string& node = "n1")
      : client_(client), stream_(client.workers->Session(&context_)) {
    v1::SessionRequest request;
    request.mutable_register_()->set_node_id(node);
    request.mutable_register_()->mutable_inventory()->set_cpus(2);
    stream_->Write(request);
    const v1::SessionResponse response = Next();
    EXPECT_TRUE(response.has_registered());
    registered = response.registered();
    credentials_.insert(registered.credentials().begin(), registered.credentials().end());
  }
  ~Agent() { context_.TryCancel(); }

  v1::SessionResponse Next() {
    v1::SessionResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    if (response.has_start_attempt())
      credentials_[response.start_attempt().attempt()] = response.start_attempt().credential();
    return response;
  }
  void Heartbeat(const v1::Inventory& inventory) {
    v1::SessionRequest request;
    *request.mutable_heartbeat()->mutable_inventory() = inventory;
    stream_->Write(request);
  }
  // Sends the next report of an attempt and waits until it is durable.
  void Report(const std::string& attempt, v1::AttemptReport report) {
    v1::SessionRequest request;
    *request.mutable_report() = std::move(report);
    request.mutable_report()->set_attempt(attempt);
    request.mutable_report()->set_sequence(++sequence_[attempt]);
    stream_->Write(request);
    const v1::SessionResponse response = Next();
    EXPECT_EQ(response.report_ack().sequence(), sequence_[attempt]) << response.ShortDebugString();
  }
  void Event(const std::string& attempt, const nlohmann::json& event) {
    v1::AttemptReport report;
    *report.mutable_trainer_event() = *JsonToStruct(event);
    Report(attempt, std::move(report));
  }
  // Uploads one file and publishes it.
  void Publish(const std::string& attempt, const std::string& content) {
    v1::ModelFile file;
    file.set_path("adapter_model.safetensors");
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    file.set_sha256(Sha256Hex(content));
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    const auto writer = client_.workers->UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.mutable_header()->set_attempt(attempt);
    request.mutable_header()->set_credential(credentials_[attempt]);
    *request.mutable_header()->add_files() = file;
    writer->Write(request);
    request.mutable_chunk()->mutable_chunk()->set_data(content);
    request.mutable_chunk()->mutable_chunk()->set_crc32c(Crc32c(content));
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    v1::AttemptReport report;
    report.mutable_artifact_stored()->set_kind(v1::ModelVersion::ADAPTER);
    *report.mutable_artifact_stored()->add_files() = file;
    Report(attempt, std::move(report));
  }

  v1::Registered registered;

 private:
  Client& client_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
  std::map<std::string, int64_t> sequence_;
  std::map<std::string, std::string> credentials_;  // by attempt
};

class ServerProgramTest : public testing::Test {
 protected:
  ServerProgramTest() { EXPECT_TRUE(WriteTinyModel(folder_.path() + "/model").ok()); }
  std::vector<std::string> Arguments(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"--listen",    "127.0.0.1:0", "--metrics-listen",
                                          "127.0.0.1:0", "--data-dir",  DataDir()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string DataDir() const { return folder_.path() + "/data"; }
  // A server that serves, with a base model and a dataset.
  void Start(const std::vector<std::string>& more = {}) {
    server_.reset();
    server_ = std::make_unique<Luthierd>(LUTHIERD_PROGRAM, Arguments(more));
    ASSERT_TRUE(server_->Serves()) << server_->log();
    client_.emplace(server_->channel());
  }
  void AddInputs() {
    ASSERT_TRUE(client_->Register("base", folder_.path() + "/model").ok());
    ASSERT_TRUE(client_->Upload("rows", Rows(24)).ok());
  }
  v1::FineTuningJob Submit(const v1::CreateFineTuningJobRequest& request) {
    v1::FineTuningJob job;
    const grpc::Status status = client_->Submit(request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }

  TempFolder folder_;
  std::unique_ptr<Luthierd> server_;
  std::optional<Client> client_;
};

TEST_F(ServerProgramTest, RunsAJobFromSubmissionToDownload) {
  Start();
  AddInputs();
  v1::CreateFineTuningJobRequest request = JobRequestFor("j");
  request.mutable_job()->mutable_spec()->set_output_model("intents");
  (*request.mutable_job()->mutable_labels())["team"] = "support";
  const v1::FineTuningJob created = Submit(request);
  EXPECT_EQ(created.state(), v1::FineTuningJob::QUEUED);
  EXPECT_EQ(created.uid().size(), 36u);
  EXPECT_GT(created.resolved_size(), 10);
  EXPECT_EQ(created.labels().at("team"), "support");
  EXPECT_THAT(client_->Get("j").pending_reason(), HasSubstr("no node is connected"));

  Agent agent(*client_);
  const v1::SessionResponse order = agent.Next();
  ASSERT_TRUE(order.has_start_attempt());
  const std::string attempt = order.start_attempt().attempt();
  EXPECT_EQ(attempt, "jobs/j/attempts/1");
  EXPECT_THAT(order.start_attempt().trainer_spec_json(), HasSubstr("\"classification\""));
  ASSERT_EQ(order.start_attempt().inputs_size(), 2);
  const v1::ModelFile& rows = order.start_attempt().inputs(1).files(0);
  EXPECT_EQ(rows.sha256(), Sha256Hex(Rows(24)));

  // The inputs come in pieces, from any byte on.
  grpc::ClientContext fetch_context;
  v1::FetchBlobRequest fetch;
  fetch.set_attempt(attempt);
  fetch.set_credential(order.start_attempt().credential());
  fetch.set_sha256(rows.sha256());
  fetch.set_offset(100);
  const auto blob = client_->workers->FetchBlob(&fetch_context, fetch);
  v1::FetchBlobResponse piece;
  std::string fetched;
  while (blob->Read(&piece)) {
    EXPECT_EQ(piece.chunk().offset(), 100 + static_cast<int64_t>(fetched.size()));
    EXPECT_EQ(piece.chunk().crc32c(), Crc32c(piece.chunk().data()));
    fetched += piece.chunk().data();
  }
  EXPECT_TRUE(blob->Finish().ok());
  EXPECT_EQ(fetched, Rows(24).substr(100));

  agent.Event(attempt, {{"event", "started"}, {"device", "cpu"}, {"resumed_step", 0}});
  agent.Event(attempt, {{"event", "progress"},
                        {"step", 1},
                        {"total_steps", 2},
                        {"loss", 2.5},
                        {"tokens", 640},
                        {"tokens_per_second", 320.0},
                        {"step_seconds", 2.0}});
  EXPECT_EQ(client_->Get("j").state(), v1::FineTuningJob::RUNNING);
  EXPECT_EQ(client_->Get("j").progress().step(), 1);
  v1::Inventory inventory;
  v1::Gpu& gpu = *inventory.add_gpus();
  gpu.set_memory_bytes(80);
  gpu.set_memory_used_bytes(7);
  agent.Heartbeat(inventory);
  EXPECT_TRUE(WaitFor([&] { return server_->Metrics().find("luthier_gpu_memory_used_bytes") != std::string::npos; }));
  const std::string metrics = server_->Metrics();
  for (const char* series :
       {"luthier_jobs{state=\"running\"} 1", "luthier_queue_depth 0", "luthier_oldest_queued_job_age_seconds 0",
        "luthier_job_submissions_total{result=\"accepted\"} 1", "luthier_job_queue_wait_seconds_count 1",
        "luthier_grpc_server_handling_seconds_count{method=\"CreateFineTuningJob\"} 1",
        "luthier_grpc_server_handled_total{code=\"OK\",method=\"CreateFineTuningJob\"} 1",
        "luthier_train_tokens_per_second 320", "luthier_train_tokens_total 640", "luthier_train_step_seconds_count 1",
        "luthier_gpu_memory_used_bytes{gpu=\"0\",node=\"n1\"} 7", "luthier_db_commit_seconds_count",
        "luthier_agents{state=\"ready\"} 1"}) {
    EXPECT_THAT(metrics, HasSubstr(series));
  }

  agent.Event(attempt,
              {{"event", "finished"}, {"stop_reason", "COMPLETED"}, {"train_loss", 0.5}, {"trainable_parameters", 10}});
  const std::string weights(3 << 20, 'w');
  agent.Publish(attempt, weights);
  const v1::FineTuningJob done = client_->Get("j");
  EXPECT_EQ(done.state(), v1::FineTuningJob::SUCCEEDED);
  EXPECT_EQ(done.model_version(), "models/intents/versions/1");
  EXPECT_EQ(done.summary().trainable_parameters(), 10);
  EXPECT_EQ(done.stop_reason(), "COMPLETED");

  grpc::ClientContext download_context;
  v1::DownloadModelVersionRequest download;
  download.set_name("models/intents/versions/latest");
  download.set_path("adapter_model.safetensors");
  download.set_offset(1 << 20);
  const auto reader = client_->models->DownloadModelVersion(&download_context, download);
  v1::DownloadModelVersionResponse message;
  std::string downloaded;
  while (reader->Read(&message)) downloaded += message.chunk().data();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(downloaded, weights.substr(1 << 20));
}

TEST_F(ServerProgramTest, AnswersARepeatedRequestWithoutLookingAtItAgain) {
  Start();
  AddInputs();
  v1::CreateFineTuningJobRequest request = JobRequestFor("j");
  request.set_request_id("8e2f3b1c-6a55-4c8e-9a37-0f6f6b0f2a11");
  const v1::FineTuningJob first = Submit(request);
  EXPECT_EQ(Submit(request).uid(), first.uid());
  v1::CancelFineTuningJobRequest cancel;
  cancel.set_name("jobs/j");
  v1::FineTuningJob job;
  ASSERT_TRUE(Client::Call([&](grpc::ClientContext& context) {
                return client_->jobs->CancelFineTuningJob(&context, cancel, &job);
              }).ok());
  v1::DeleteDatasetRequest remove;
  remove.set_name("datasets/rows");
  google::protobuf::Empty nothing;
  ASSERT_TRUE(Client::Call([&](grpc::ClientContext& context) {
                return client_->datasets->DeleteDataset(&context, remove, &nothing);
              }).ok());

  EXPECT_EQ(Submit(request).uid(), first.uid());
  Start();  // the same after a restart
  EXPECT_EQ(Submit(request).uid(), first.uid());
  request.mutable_job()->mutable_spec()->mutable_training()->set_epochs(7);
  const grpc::Status other = client_->Submit(request, job);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ParseErrorDetails(other.error_details()).reason, "REQUEST_ID_REUSED");
  request.set_request_id("");
  const grpc::Status gone = client_->Submit(request, job);
  EXPECT_EQ(gone.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(gone.error_message(), HasSubstr("datasets/rows"));
}

TEST_F(ServerProgramTest, RemovesTheFilesOfADeletedDataset) {
  Start({"--keep-unused", "0s"});
  ASSERT_TRUE(client_->Upload("kept", Rows(3)).ok());
  ASSERT_TRUE(client_->Upload("twin", Rows(4)).ok());
  ASSERT_TRUE(client_->Upload("gone", Rows(4)).ok());
  ASSERT_TRUE(client_->Upload("other", Rows(5)).ok());
  const auto blob = [&](int rows) {
    const std::string sha256 = Sha256Hex(Rows(rows));
    return DataDir() + "/artifacts/blobs/sha256/" + sha256.substr(0, 2) + "/" + sha256;
  };
  for (const char* id : {"gone", "other"}) {
    v1::DeleteDatasetRequest remove;
    remove.set_name(absl::StrCat("datasets/", id));
    google::protobuf::Empty nothing;
    ASSERT_TRUE(Client::Call([&](grpc::ClientContext& context) {
                  return client_->datasets->DeleteDataset(&context, remove, &nothing);
                }).ok());
  }
  EXPECT_TRUE(WaitFor([&] { return !fs::exists(blob(5)); })) << server_->log();
  EXPECT_TRUE(fs::exists(blob(3)));
  EXPECT_TRUE(fs::exists(blob(4))) << "another dataset has the same content";
}

TEST_F(ServerProgramTest, FlagsBeatTheEnvironmentAndThatTheFile) {
  const std::string config = folder_.path() + "/luthierd.yaml";
  const auto folder = [&](const char* name) { return folder_.path() + "/" + name; };
  std::ofstream(config) << "listen: 127.0.0.1:0\nmetrics-listen: 127.0.0.1:0\ndata-dir: " << folder("of-file") << "\n";
  {
    Luthierd server(LUTHIERD_PROGRAM, {"--config", config});
    EXPECT_TRUE(server.Serves()) << server.log();
    EXPECT_THAT(server.log(), HasSubstr(folder("of-file")));
  }
  {
    Luthierd server(LUTHIERD_PROGRAM, {"--config", config}, {"LUTHIER_DATA_DIR=" + folder("of-environment")});
    EXPECT_TRUE(server.Serves()) << server.log();
    EXPECT_THAT(server.log(), HasSubstr(folder("of-environment")));
  }
  {
    Luthierd server(LUTHIERD_PROGRAM, {"--data-dir", folder("of-flag")},
                    {"LUTHIER_DATA_DIR=" + folder("of-environment"), "LUTHIERD_CONFIG=" + config,
                     "LUTHIER_CONFIG=" + folder_.path() + "/of-the-command-line.yaml"});
    EXPECT_TRUE(server.Serves()) << server.log();
    EXPECT_THAT(server.log(), HasSubstr(folder("of-flag")));
  }
  EXPECT_TRUE(fs::exists(folder("of-flag") + "/luthier.db"));
}

TEST_F(ServerProgramTest, TakesNoDatasetLargerThanItIsTold) {
  Start({"--max-dataset-size", "1KB"});
  EXPECT_TRUE(client_->Upload("small", Rows(2)).ok());
  const grpc::Status refused = client_->Upload("large", Rows(100));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("--max-dataset-size"));
}

TEST_F(ServerProgramTest, AFolderThatCannotBeLookedAtIsAnErrorAndNoCrash) {
  const std::string folder = folder_.path() + "/" + std::string(300, 'x');
  for (const std::vector<std::string>& action : {std::vector<std::string>{}, {"check"}, {"admin-token"}}) {
    std::vector<std::string> arguments = {"--data-dir", folder};
    arguments.insert(arguments.end(), action.begin(), action.end());
    Luthierd server(LUTHIERD_PROGRAM, arguments);
    EXPECT_EQ(server.Wait(), 1) << server.log();
    EXPECT_THAT(server.log(), HasSubstr("File name too long"));
  }
}

TEST_F(ServerProgramTest, AWrongCommandLineHasAnExitCodeOfItsOwn) {
  Luthierd wrong(LUTHIERD_PROGRAM, Arguments({"--lisen", "127.0.0.1:0"}));
  EXPECT_EQ(wrong.Wait(), 2);
  EXPECT_EQ(wrong.log(), "luthierd: '--lisen' is unknown; did you mean '--listen'?\nsee: luthierd --help\n");
  Luthierd portless(LUTHIERD_PROGRAM, {"--listen", "7070", "--data-dir", DataDir()});
  EXPECT_EQ(portless.Wait(), 1);
  EXPECT_THAT(portless.log(), HasSubstr("--listen: '7070' is no HOST:PORT"));
  Luthierd help(LUTHIERD_PROGRAM, {"--help"});
  EXPECT_EQ(help.Wait(), 0);
}

TEST_F(ServerProgramTest, SaysWhatIsWrongWithAConfigurationFile) {
  const std::string config = folder_.path() + "/luthierd.yaml";
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"lisen: 127.0.0.1:0\n", "'lisen' is unknown; known are listen,"},
           {"listen: [\n", "cannot be read"},
           {"keep-unused: soon\n", "'soon' is no duration"},
           {"retention: 30 days\n", "give one such as 30m, 24h or 30d"}}) {
    std::ofstream(config) << text;
    Luthierd server(LUTHIERD_PROGRAM, Arguments({"--config", config}));
    EXPECT_EQ(server.Wait(), 1) << text;
    EXPECT_THAT(server.log(), HasSubstr(message));
  }
  Luthierd server(LUTHIERD_PROGRAM, Arguments({"--config", folder_.path() + "/absent.yaml"}));
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.log(), HasSubstr("absent.yaml"));
}

TEST_F(ServerProgramTest, SaysHowItsAgentEndedAndStartsItAgain) {
  Luthierd server(LUTHIERD_PROGRAM, Arguments({"--with-local-worker", "--worker-metrics-listen", "127.0.0.1:0"}),
                  {"LUTHIER_TRAINER=/nonexistent"});  // with which no agent starts
  ASSERT_TRUE(server.Serves()) << server.log();
  EXPECT_TRUE(WaitFor([&] {
    return server.log().find("luthier-worker ended with code 1; starting it again") != std::string::npos;
  })) << server.log();
}

TEST_F(ServerProgramTest, EndsWithin30SecondsThoughItsAgentHangs) {
  Luthierd server(LUTHIERD_PROGRAM, Arguments({"--with-local-worker", "--worker-metrics-listen", "127.0.0.1:0"}),
                  {"LUTHIER_TRAINER=/bin/false"});  // which is never run
  ASSERT_TRUE(server.Serves()) << server.log();
  ASSERT_TRUE(WaitFor([&] { return server.log().find("connected as node") != std::string::npos; })) << server.log();
  const std::vector<pid_t> agents = ProcessesWith(DataDir() + "/worker");
  ASSERT_EQ(agents.size(), 1u);
  kill(agents[0], SIGSTOP);
  const int code = server.End(SIGTERM, std::chrono::seconds(30));
  if (code != 0) kill(agents[0], SIGKILL);
  EXPECT_EQ(code, 0) << server.log();
  EXPECT_THAT(server.log(), HasSubstr("the local agent has not ended in 23 s and is killed"));
  EXPECT_TRUE(ProcessesWith(DataDir() + "/worker").empty());
}

TEST_F(ServerProgramTest, ASecondServerOnTheSameFolderEndsAndTheFirstGoesOn) {
  Start();
  Luthierd second(LUTHIERD_PROGRAM, Arguments());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.log(), HasSubstr("another luthierd uses the data folder"));
  EXPECT_TRUE(client_->Upload("rows", Rows(2)).ok());
}

TEST_F(ServerProgramTest, ADataFolderOnANetworkFileSystemIsRefusedUnlessItIsAllowed) {
  const std::vector<std::string> nfs = {"LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_TYPE=26985"};
  Luthierd refused(LUTHIERD_PROGRAM, Arguments(), nfs);
  EXPECT_EQ(refused.Wait(), 1);
  EXPECT_THAT(refused.log(),
              AllOf(HasSubstr("--data-dir: " + DataDir()), HasSubstr("(NFS)"), HasSubstr("--allow-network-disk")));
  EXPECT_FALSE(fs::exists(DataDir() + "/luthier.db"));
  Luthierd allowed(LUTHIERD_PROGRAM, Arguments({"--allow-network-disk"}), nfs);
  EXPECT_TRUE(allowed.Serves()) << allowed.log();
}

TEST_F(ServerProgramTest, APortInUseIsNamedWithItsFlag) {
  Start();
  const std::string other = folder_.path() + "/other";
  Luthierd api(LUTHIERD_PROGRAM,
               {"--listen", server_->address(), "--metrics-listen", "127.0.0.1:0", "--data-dir", other});
  EXPECT_EQ(api.Wait(), 1);
  EXPECT_THAT(api.log(), AllOf(HasSubstr("--listen: cannot listen on " + server_->address()), Not(HasSubstr("chttp2"))))
      << "what gRPC logs";
  Luthierd metrics(LUTHIERD_PROGRAM,
                   {"--listen", "127.0.0.1:0", "--metrics-listen", server_->metrics_address(), "--data-dir", other});
  EXPECT_EQ(metrics.Wait(), 1);
  EXPECT_THAT(metrics.log(), HasSubstr("--metrics-listen: cannot listen on " + server_->metrics_address()));
}

TEST_F(ServerProgramTest, EndsWithin10SecondsWhateverStreamsAreOpenAndSaysSoFirst) {
  Start();
  AddInputs();
  Submit(JobRequestFor("j"));
  grpc::ClientContext watch_context, upload_context, health_context;
  v1::WatchFineTuningJobRequest watch;
  watch.set_name("jobs/j");
  const auto watcher = client_->jobs->WatchFineTuningJob(&watch_context, watch);
  v1::WatchFineTuningJobResponse seen;
  ASSERT_TRUE(watcher->Read(&seen));
  Agent agent(*client_);
  EXPECT_TRUE(agent.Next().has_start_attempt());
  v1::Dataset dataset;
  const auto upload = client_->datasets->UploadDataset(&upload_context, &dataset);
  v1::UploadDatasetRequest header;
  header.mutable_header()->set_dataset_id("half");
  header.mutable_header()->add_parts()->set_part("train");
  header.mutable_header()->mutable_parts(0)->set_size_bytes(1000);
  header.mutable_header()->mutable_parts(0)->set_sha256(Sha256Hex("never sent"));
  ASSERT_TRUE(upload->Write(header));
  // The standard health service, by its bytes: an empty request, and a response whose field 1 is 1 (SERVING) or 2
  // (NOT_SERVING).
  const grpc::Slice nothing;
  const grpc::ByteBuffer empty(&nothing, 1);
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch", grpc::internal::RpcMethod::SERVER_STREAMING);
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> health(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(server_->channel().get(), method, &health_context,
                                                                    empty));
  const auto status_of = [](const grpc::ByteBuffer& buffer) {
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(buffer.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return bytes;
  };
  grpc::ByteBuffer answer;
  ASSERT_TRUE(health->Read(&answer));
  EXPECT_EQ(status_of(answer), "\x08\x01");

  server_->Signal(SIGTERM);
  ASSERT_TRUE(health->Read(&answer));
  EXPECT_EQ(status_of(answer), "\x08\x02");
  EXPECT_EQ(server_->Wait(std::chrono::seconds(10)), 0) << server_->log();
  while (watcher->Read(&seen)) {
  }
  EXPECT_EQ(watcher->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  upload->WritesDone();
  EXPECT_FALSE(upload->Finish().ok());
}

TEST_F(ServerProgramTest, EndsWithin10SecondsThoughRowsAreRead) {
  Start();
  AddInputs();
  v1::CreateFineTuningJobRequest request = JobRequestFor("j");
  request.mutable_job()->mutable_spec()->set_chat_template(EndlessTemplate());
  grpc::Status refused;
  std::thread caller([&] {
    v1::FineTuningJob job;
    refused = client_->Submit(request, job);
  });
  const std::string reading = absl::StrCat("check-rows", std::string(1, '\0'), server_->pid());
  EXPECT_TRUE(WaitFor([&] { return !ProcessesWith(reading).empty(); }));
  EXPECT_EQ(server_->End(SIGTERM, std::chrono::seconds(10)), 0) << server_->log();
  caller.join();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE) << refused.error_message();
  EXPECT_EQ(ParseErrorDetails(refused.error_details()).reason, "SHUTTING_DOWN");
}

// The idle server's memory, and over ten seconds how often its threads wake and what that takes. Wakes are the tight
// limit: their number is the program's doing, their price the machine's. There are virtual machines where each page
// that a thread touches after half a second's sleep takes 0.03 to 0.1 ms, and the same 130 wakes cost 0.01 s of
// processor time on one machine and 0.2 s on another, half of it in gRPC's own threads.
TEST_F(ServerProgramTest, CostsLittleWhileIdle) {
  Start();
  AddInputs();
  Submit(JobRequestFor("j"));
  Agent agent(*client_);
  EXPECT_TRUE(agent.Next().has_start_attempt());
  const auto wakes = [&] {
    constexpr std::string_view kField = "\nvoluntary_ctxt_switches:";
    int64_t sum = 0;
    for (const auto& thread : fs::directory_iterator(absl::StrCat("/proc/", server_->pid(), "/task"))) {
      std::ifstream stream(thread.path() / "status");
      const std::string text((std::istreambuf_iterator<char>(stream)), {});
      const size_t at = text.find(kField);
      if (at != std::string::npos) sum += std::stoll(text.substr(at + kField.size()));
    }
    return sum;
  };
  const double seconds_before = server_->CpuSeconds();
  const int64_t wakes_before = wakes();
  std::this_thread::sleep_for(std::chrono::seconds(10));  // what is measured is time
  const double spent = server_->CpuSeconds() - seconds_before;
  const int64_t woken = wakes() - wakes_before;
  std::printf("idle: %.1f MB, %lld wakes and %.2f s of processor time in 10 s\n",
              static_cast<double>(server_->ResidentBytes()) / 1e6, static_cast<long long>(woken), spent);
  EXPECT_LT(server_->ResidentBytes(), 60'000'000);
  EXPECT_LE(woken, 200);
  EXPECT_LE(spent, 0.5);
}

// A disk of 100 MB, filled while a job runs.
struct Unmount {
  std::string path;
  ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
};

// Rows and the record are in there, and who may call the server is not who has an account on its machine.
TEST_F(ServerProgramTest, ItsDataFolderIsItsUsersAloneAndOneThatIsOpenIsTold) {
  Start();
  EXPECT_EQ(fs::status(DataDir()).permissions(), fs::perms::owner_all);
  EXPECT_THAT(server_->log(), Not(HasSubstr("can read what is in")));
  if (!IsOpenToEverybody(fs::path(folder_.path()).parent_path()))
    GTEST_SKIP() << "SKIPPED: the folder for temporary files is not open to everybody; the warning was not tested";
  for (const std::string& folder : {folder_.path(), DataDir()})
    fs::permissions(folder, fs::perms::others_exec, fs::perm_options::add);
  Start();
  EXPECT_TRUE(
      WaitFor([&] { return absl::StrContains(server_->log(), "every user of this machine can read what is in"); }));
  EXPECT_THAT(server_->log(), HasSubstr("`chmod o= " + DataDir() + "`"));
  EXPECT_NE(fs::status(DataDir()).permissions(), fs::perms::owner_all) << "it stays as it is";
}

// On a page that no start reads: the root of the events, the sixth of what the first migration makes.
TEST_F(ServerProgramTest, ADamagedRecordIsRefusedAtTheStartWithTheCommandThatBringsItBack) {
  Start();
  AddInputs();
  ASSERT_EQ(server_->End(SIGTERM), 0) << server_->log();
  {
    std::fstream file(DataDir() + "/luthier.db", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(6 * 4096);
    file << std::string(4096, 'x');
  }
  Luthierd refused(LUTHIERD_PROGRAM, Arguments());
  EXPECT_EQ(refused.Wait(), 1);
  EXPECT_THAT(refused.log(), AllOf(HasSubstr(DataDir() + "/luthier.db is damaged: "), HasSubstr("Page 7"),
                                   HasSubstr("luthierd restore --from BACKUP")));
}

TEST_F(ServerProgramTest, AReadOnlyDiskIsNamedAtTheStart) {
  fs::create_directories(DataDir());
  if (mount("tmpfs", DataDir().c_str(), "tmpfs", MS_RDONLY, "size=1m") != 0) {
    GTEST_SKIP() << "SKIPPED: mounting a tmpfs needs root; a read-only disk was not tested";
  }
  const Unmount unmount{DataDir()};
  Luthierd refused(LUTHIERD_PROGRAM, Arguments());
  EXPECT_EQ(refused.Wait(), 1);
  EXPECT_THAT(refused.log(), AllOf(HasSubstr("--data-dir: " + DataDir()), HasSubstr("Read-only file system")));
}

TEST_F(ServerProgramTest, AFullDiskRefusesNewWorkAndLosesNothing) {
  fs::create_directories(DataDir());
  if (mount("tmpfs", DataDir().c_str(), "tmpfs", 0, "size=100m") != 0) {
    GTEST_SKIP() << "SKIPPED: mounting a tmpfs needs root; a full disk was not tested";
  }
  const Unmount unmount{DataDir()};
  Start();
  AddInputs();
  Submit(JobRequestFor("running"));
  Agent agent(*client_);
  const std::string attempt = agent.Next().start_attempt().attempt();
  agent.Event(attempt, {{"event", "started"}, {"device", "cpu"}, {"resumed_step", 0}});

  const std::string filler = DataDir() + "/filler";
  std::ofstream(filler) << std::string(60 << 20, 'x');
  const grpc::Status upload = client_->Upload("more", Rows(10));
  EXPECT_EQ(upload.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(upload.error_message(), HasSubstr("free space"));
  Submit(JobRequestFor("on-the-reserve"));  // what is kept free for the record

  {
    std::ofstream rest(filler, std::ios::app);
    const std::string megabyte(1 << 20, 'x');
    while (rest << megabyte << std::flush) {
    }
  }
  std::set<std::string> acknowledged;
  grpc::Status refused;
  for (int i = 0; i < 5000 && refused.ok(); ++i) {
    v1::FineTuningJob job;
    refused = client_->Submit(JobRequestFor(absl::StrCat("full-", i)), job);
    if (refused.ok()) acknowledged.insert(absl::StrCat("full-", i));
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ParseErrorDetails(refused.error_details()).reason, "DISK_FULL");
  EXPECT_THAT(refused.error_message(), HasSubstr("free space"));
  EXPECT_EQ(client_->Get("running").state(), v1::FineTuningJob::RUNNING);

  fs::remove(filler);
  Submit(JobRequestFor("afterwards"));
  agent.Event(attempt, {{"event", "progress"}, {"step", 1}, {"total_steps", 2}, {"tokens", 5}});
  EXPECT_EQ(client_->Get("running").progress().step(), 1);
  EXPECT_TRUE(WaitFor([&] { return server_->log().find("new things are recorded again") != std::string::npos; }));
  EXPECT_THAT(server_->log(), HasSubstr("luthierd: the disk of --data-dir is full"));
  server_->End(SIGKILL);
  Start();
  for (const std::string& id : acknowledged)
    EXPECT_NE(client_->Get(id).state(), v1::FineTuningJob::STATE_UNSPECIFIED) << id;
  EXPECT_EQ(client_->Get("running").state(), v1::FineTuningJob::RUNNING);
  server_.reset();
}

}  // namespace
}  // namespace luthier
