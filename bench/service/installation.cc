#include "bench/service/installation.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "server/store/store.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

// More connections than this only add sockets: calls of several callers share one well.
constexpr int kConnections = 8;

}  // namespace

void Require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "bench-service: %s\n", what.c_str());
  std::exit(1);
}

void Require(const grpc::Status& status, const std::string& what) {
  Require(status.ok(), absl::StrCat(what, ": ", status.error_message()));
}

Installation::Installation(const BenchOptions& options)
    : program_(options.program), data_dir_(options.folder + "/data") {
  Start();
  const std::string model = options.folder + "/model";
  Require(WriteTinyModel(model).ok(), "the base model could not be written");
  grpc::ClientContext register_context, upload_context;
  v1::RegisterBaseModelRequest registration;
  registration.set_base_model_id("base");
  registration.set_source_path(model);
  v1::BaseModel base;
  Require(v1::ModelService::NewStub(server_->channel())->RegisterBaseModel(&register_context, registration, &base),
          "RegisterBaseModel");
  std::string rows;
  for (int i = 0; i < 24; ++i) rows += ChatLine(absl::StrCat("row ", i), i % 2 == 0 ? "even" : "odd");
  v1::Dataset dataset;
  Require(UploadRows(*v1::DatasetService::NewStub(server_->channel()), upload_context, "rows", rows, dataset),
          "UploadDataset");
  v1::FineTuningSpec& spec = *request_.mutable_job()->mutable_spec();
  spec.set_base_model("base");
  spec.mutable_dataset()->set_dataset("rows");
  spec.set_task(v1::TASK_CLASSIFICATION);
}

void Installation::Start() {
  server_.reset();
  server_ = std::make_unique<Luthierd>(program_, std::vector<std::string>{"--listen", "127.0.0.1:0", "--metrics-listen",
                                                                          "127.0.0.1:0", "--data-dir", data_dir_});
  Require(server_->Serves(), "the server does not start: " + server_->log());
}

std::shared_ptr<grpc::Channel> Installation::Connect() {
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), own);
}

double Installation::CpuSeconds() const {
  std::ifstream stream(absl::StrCat("/proc/", server_->pid(), "/stat"));
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  const std::vector<std::string> fields = absl::StrSplit(text.substr(text.rfind(')') + 2), ' ');
  return (std::stod(fields.at(11)) + std::stod(fields.at(12))) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

int64_t Installation::ResidentBytes() const {
  std::ifstream stream(absl::StrCat("/proc/", server_->pid(), "/statm"));
  int64_t pages = 0;
  stream >> pages >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

Submitted SubmitForAWhile(Installation& installation, int callers, absl::Duration time) {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < std::min(callers, kConnections); ++i) channels.push_back(installation.Connect());
  std::vector<Submitted> parts(static_cast<size_t>(callers));
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      const auto stub = v1::FineTuningService::NewStub(channels[static_cast<size_t>(caller) % channels.size()]);
      Submitted& part = parts[static_cast<size_t>(caller)];
      v1::CreateFineTuningJobRequest request = installation.Request();
      for (int call = 0; !done; ++call) {
        request.set_request_id(absl::StrFormat("%08x-%04x-4000-8000-%012x", caller, getpid() & 0xffff,
                                               absl::ToUnixNanos(absl::Now()) & 0xffffffffffff));
        grpc::ClientContext context;
        context.set_wait_for_ready(true);
        v1::FineTuningJob job;
        const absl::Time begin = absl::Now();
        Require(stub->CreateFineTuningJob(&context, request, &job), "CreateFineTuningJob");
        part.latencies.Add(absl::Now() - begin);
        part.ids.push_back(job.name().substr(5));  // after "jobs/"
      }
    });
  }
  absl::SleepFor(time);
  done = true;
  for (std::thread& thread : threads) thread.join();
  Submitted all;
  all.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (const Submitted& part : parts) {
    all.latencies.Merge(part.latencies);
    all.ids.insert(all.ids.end(), part.ids.begin(), part.ids.end());
  }
  return all;
}

int64_t CountLost(const std::string& data_dir, const std::vector<std::string>& ids) {
  const absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(data_dir);
  Require(store.ok(), "the record cannot be opened");
  return std::count_if(ids.begin(), ids.end(), [&](const std::string& id) { return !(*store)->GetJob(id).ok(); });
}

}  // namespace luthier
