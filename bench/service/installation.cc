#include "bench/service/installation.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "google/protobuf/arena.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "server/store/store.h"
#include "tests/support/tiny_model.h"
#include "tests/support/upload_rows.h"

namespace luthier {
namespace {

// More connections than this only add sockets: calls of several callers share one well.
constexpr int kConnections = 8;

// Somebody who submits again as soon as his last call is answered; on gRPC's threads, so that many of them cost the
// machine no threads of their own.
class Caller {
 public:
  Caller(const std::shared_ptr<grpc::Channel>& channel, const v1::CreateFineTuningJobRequest& request, int number,
         const std::atomic<bool>& done, absl::BlockingCounter& calling)
      : stub_(v1::FineTuningService::NewStub(channel)),
        request_(request),
        number_(number),
        done_(done),
        calling_(calling) {}

  void Call() {
    start_ = absl::Now();
    request_.set_request_id(RequestId());
    context_.emplace();
    context_->set_wait_for_ready(true);
    arena_.Reset();
    response_ = google::protobuf::Arena::CreateMessage<v1::FineTuningJob>(&arena_);
    stub_->async()->CreateFineTuningJob(&*context_, &request_, response_,
                                        [this](const grpc::Status& status) { Answered(status); });
  }

  const Latencies& latencies() const { return latencies_; }
  const std::vector<std::string>& ids() const { return ids_; }

 private:
  void Answered(const grpc::Status& status) {
    Require(status, "CreateFineTuningJob");
    latencies_.Add(absl::Now() - start_);
    ids_.emplace_back(absl::StripPrefix(response_->name(), "jobs/"));
    if (done_) {
      calling_.DecrementCount();
    } else {
      Call();
    }
  }

  // As our clients make them: of version 7, the time first.
  std::string RequestId() const {
    const int64_t nanos = absl::ToUnixNanos(start_), millis = nanos / 1000000;
    return absl::StrFormat("%08x-%04x-7%03x-8000-%08x%04x", millis >> 16, millis & 0xffff, number_ & 0xfff,
                           nanos & 0xffffffff, getpid() & 0xffff);
  }

  const std::unique_ptr<v1::FineTuningService::Stub> stub_;
  v1::CreateFineTuningJobRequest request_;
  const int number_;
  const std::atomic<bool>& done_;
  absl::BlockingCounter& calling_;
  absl::Time start_;
  std::optional<grpc::ClientContext> context_;
  google::protobuf::Arena arena_;
  v1::FineTuningJob* response_ = nullptr;
  Latencies latencies_;
  std::vector<std::string> ids_;
};

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

std::vector<std::shared_ptr<grpc::Channel>> ConnectTo(const std::string& address, int callers) {
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < std::min(callers, kConnections); ++i) {
    channels.push_back(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), own));
  }
  return channels;
}

Submitted CallForAWhile(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                        const v1::CreateFineTuningJobRequest& request, int callers, absl::Duration time) {
  std::atomic<bool> done = false;
  absl::BlockingCounter calling(callers);
  std::deque<Caller> all;
  const absl::Time start = absl::Now();
  for (int i = 0; i < callers; ++i) {
    all.emplace_back(channels[static_cast<size_t>(i) % channels.size()], request, i, done, calling).Call();
  }
  absl::SleepFor(time);
  done = true;
  calling.Wait();
  Submitted submitted;
  submitted.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (const Caller& caller : all) {
    submitted.latencies.Merge(caller.latencies());
    submitted.ids.insert(submitted.ids.end(), caller.ids().begin(), caller.ids().end());
  }
  return submitted;
}

Submitted SubmitForAWhile(Installation& installation, int callers, absl::Duration time) {
  return CallForAWhile(ConnectTo(installation.server().address(), callers), installation.Request(), callers, time);
}

int64_t CountLost(const std::string& data_dir, const std::vector<std::string>& ids) {
  const absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(data_dir);
  Require(store.ok(), "the record cannot be opened");
  return std::count_if(ids.begin(), ids.end(), [&](const std::string& id) { return !(*store)->GetJob(id).ok(); });
}

}  // namespace luthier
