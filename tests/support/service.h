// luthierd and luthier-worker as users start them, on a folder and ports of the test's own, with stubs to talk to them.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/plan/job_spec.h"
#include "lib/wire/job_spec_wire.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "tests/support/background_program.h"
#include "tests/support/free_port.h"
#include "tests/support/processes.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "tests/support/upload_rows.h"
#include "tests/support/wait_for.h"

namespace luthier {

class Service {
 public:
  Service(std::string bin_folder, std::string folder)
      : bin_(std::move(bin_folder)), folder_(std::move(folder)), port_(FreePort()) {}

  void StartServer(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {bin_ + "/luthierd", "--listen",   Address(),          "--metrics-listen",
                                          server_metrics,     "--data-dir", folder_ + "/server"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    server = BackgroundProgram(arguments);
    // A channel of its own: a shared one would still be backing off from the server before.
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    own.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    const auto channel = grpc::CreateCustomChannel(Address(), grpc::InsecureChannelCredentials(), own);
    jobs = v1::FineTuningService::NewStub(channel);
    datasets = v1::DatasetService::NewStub(channel);
    models = v1::ModelService::NewStub(channel);
    nodes = v1::NodeService::NewStub(channel);
  }
  void StartAgent(const std::vector<std::string>& more = {}) { agent = RunAgent("n1", agent_metrics, more); }
  BackgroundProgram RunAgent(const std::string& node, const std::string& metrics = "127.0.0.1:0",
                             const std::vector<std::string>& more = {}) const {
    std::vector<std::string> command = {bin_ + "/luthier-worker", "--server",  Address(),
                                        "--metrics-listen",       metrics,     "--data-dir",
                                        AgentFolder(node),        "--node-id", node};
    command.insert(command.end(), more.begin(), more.end());
    return BackgroundProgram(command);
  }
  std::string Address() const { return absl::StrCat("127.0.0.1:", port_); }
  std::string AgentFolder(const std::string& node = "n1") const { return folder_ + "/" + node; }

  // Makes a tiny base model with the trainer and registers it as `base`; uploads 24 rows as `rows`.
  void AddInputs() {
    WriteTinyBase(folder_ + "/empty");
    std::string rows;
    for (int i = 0; i < 24; ++i) rows += ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
    WriteText(folder_ + "/train.jsonl", rows);
    const nlohmann::json spec = {{"protocol", 1},
                                 {"base_model", folder_ + "/empty"},
                                 {"init", "random"},
                                 {"tuning", "full"},
                                 {"dataset", {{"train", folder_ + "/train.jsonl"}}},
                                 {"training", {{"max_steps", 1}, {"loss_on", "all"}}}};
    WriteText(folder_ + "/make.json", spec.dump());
    ASSERT_EQ(
        RunProgram({bin_ + "/luthier-trainer", "run", "--spec", folder_ + "/make.json", "--out", folder_ + "/made"})
            .exit_code,
        0);
    v1::RegisterBaseModelRequest request;
    request.set_base_model_id("base");
    request.set_source_path(folder_ + "/made/model");
    v1::BaseModel model;
    Call([&](grpc::ClientContext& context) { return models->RegisterBaseModel(&context, request, &model); });
    v1::Dataset dataset;
    Call([&](grpc::ClientContext& context) { return UploadRows(*datasets, context, "rows", rows, dataset); });
  }

  // `more` is merged into a job file for `base` and `rows`.
  void Submit(const std::string& id, const nlohmann::json& more = nlohmann::json::object(),
              v1::ServiceClass service_class = v1::SERVICE_CLASS_STANDARD) {
    nlohmann::json file = {{"base_model", "base"}, {"dataset", "rows"}, {"task", "classification"}};
    file.update(more, /*merge_objects=*/true);
    const auto spec = ParseJobSpec(file);
    ASSERT_TRUE(spec.ok()) << spec.status();
    v1::CreateFineTuningJobRequest request;
    request.set_job_id(id);
    *request.mutable_job() = *JobToProto(*spec);
    request.mutable_job()->set_service_class(service_class);
    v1::FineTuningJob job;
    Call([&](grpc::ClientContext& context) { return jobs->CreateFineTuningJob(&context, request, &job); });
  }
  v1::FineTuningJob Job(const std::string& id) {
    v1::GetFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    v1::FineTuningJob job;
    Call([&](grpc::ClientContext& context) { return jobs->GetFineTuningJob(&context, request, &job); });
    return job;
  }
  std::vector<v1::JobEvent> Events(const std::string& id) {
    std::vector<v1::JobEvent> events;
    v1::ListJobEventsRequest request;
    request.set_parent("jobs/" + id);
    request.set_page_size(1000);
    do {
      v1::ListJobEventsResponse page;
      Call([&](grpc::ClientContext& context) { return jobs->ListJobEvents(&context, request, &page); });
      events.insert(events.end(), page.events().begin(), page.events().end());
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return events;
  }
  void Cancel(const std::string& id) {
    v1::CancelFineTuningJobRequest request;
    request.set_name("jobs/" + id);
    v1::FineTuningJob job;
    Call([&](grpc::ClientContext& context) { return jobs->CancelFineTuningJob(&context, request, &job); });
  }
  int Versions(const std::string& id) {
    v1::ListModelVersionsRequest request;
    request.set_parent("models/" + id);
    v1::ListModelVersionsResponse response;
    Call([&](grpc::ClientContext& context) { return models->ListModelVersions(&context, request, &response); });
    return response.model_versions_size();
  }

  // Ends the test if the call does not succeed within a minute; waits for a server that is just starting.
  template <typename Method>
  void Call(Method&& method) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    const grpc::Status status = method(context);
    if (!status.ok())
      throw std::runtime_error(absl::StrCat("call failed: ", status.error_code(), ": ", status.error_message()));
  }

  // Where they show their metrics: any free port, unless set before they start.
  std::string server_metrics = "127.0.0.1:0", agent_metrics = "127.0.0.1:0";
  BackgroundProgram server, agent;
  std::unique_ptr<v1::FineTuningService::Stub> jobs;
  std::unique_ptr<v1::DatasetService::Stub> datasets;
  std::unique_ptr<v1::ModelService::Stub> models;
  std::unique_ptr<v1::NodeService::Stub> nodes;

 private:
  const std::string bin_, folder_;
  const int port_;
};

}  // namespace luthier
