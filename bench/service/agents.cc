#include "bench/service/agents.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/service/installation.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

constexpr int kAgentsAConnection = 100;

}  // namespace

SimulatedAgent::SimulatedAgent(v1::WorkerService::Stub& stub, const std::string& node, OnMessage on_message)
    : on_message_(std::move(on_message)) {
  stub.async()->Session(&context_, this);
  AddHold();  // for writes that come from elsewhere
  StartRead(&response_);
  StartCall();
  v1::SessionRequest request;
  request.mutable_register_()->set_node_id(node);
  request.mutable_register_()->mutable_inventory()->set_cpus(1);
  Send(std::move(request));
}

void SimulatedAgent::Send(v1::SessionRequest request) {
  const std::lock_guard lock(mutex_);
  requests_.push_back(std::move(request));
  Advance();
}

void SimulatedAgent::Advance() {
  if (writing_ || broken_ || requests_.empty()) return;
  writing_ = true;
  StartWrite(&requests_.front());
}

void SimulatedAgent::OnReadDone(bool ok) {
  if (!ok) return;
  if (response_.has_registered()) {
    registered_ = true;
  } else {
    on_message_(*this, response_);
  }
  StartRead(&response_);
}

void SimulatedAgent::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  broken_ |= !ok;
  requests_.pop_front();
  Advance();
}

void SimulatedAgent::OnDone(const grpc::Status&) {
  const std::lock_guard lock(mutex_);
  done_ = true;
  changed_.notify_all();
}

void SimulatedAgent::Close() {
  context_.TryCancel();
  std::unique_lock lock(mutex_);
  broken_ = true;
  lock.unlock();
  RemoveHold();
  lock.lock();
  changed_.wait(lock, [this] { return done_; });
}

std::vector<std::unique_ptr<SimulatedAgent>> StartAgents(const std::function<std::shared_ptr<grpc::Channel>()>& connect,
                                                         int count, SimulatedAgent::OnMessage on_message) {
  std::vector<std::unique_ptr<SimulatedAgent>> agents;
  std::unique_ptr<v1::WorkerService::Stub> stub;
  for (int i = 0; i < count; ++i) {
    if (i % kAgentsAConnection == 0) stub = v1::WorkerService::NewStub(connect());
    agents.push_back(std::make_unique<SimulatedAgent>(*stub, absl::StrCat("node-", i), on_message));
  }
  for (const auto& agent : agents) {
    Require(WaitFor([&] { return agent->registered(); }, std::chrono::minutes(2)), "an agent was not registered");
  }
  return agents;
}

}  // namespace luthier
