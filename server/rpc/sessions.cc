#include "server/rpc/sessions.h"

#include <utility>

#include "server/rpc/convert.h"

namespace luthier {
namespace {

// Long enough for a checkpoint of a large model; the agent kills what is left afterwards.
constexpr int kStopGraceSeconds = 30;

std::optional<v1::SessionResponse> MessageOf(Store& store, const Effect& effect) {
  v1::SessionResponse message;
  if (effect.kind == Effect::Kind::kStop) {
    message.mutable_stop_attempt()->set_attempt(effect.attempt);
    message.mutable_stop_attempt()->mutable_grace()->set_seconds(kStopGraceSeconds);
    return message;
  }
  const std::optional<AttemptId> attempt = ParseAttemptName(effect.attempt);
  const absl::StatusOr<std::string> spec = store.Spec(attempt->job);
  if (!spec.ok()) return std::nullopt;
  v1::StartAttempt& start = *message.mutable_start_attempt();
  start = ParseStoredSpec(*spec).start;
  start.set_attempt(effect.attempt);
  for (int device : effect.devices) start.add_gpus(device);
  return message;
}

}  // namespace

void Outbox::Put(v1::SessionResponse message) {
  const std::lock_guard lock(mutex_);
  messages_.push_back(std::move(message));
  changed_.notify_all();
}

void Outbox::Open(v1::SessionResponse registered) {
  const std::lock_guard lock(mutex_);
  messages_.push_front(std::move(registered));
  open_ = true;
  changed_.notify_all();
}

std::optional<v1::SessionResponse> Outbox::Take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return closed_ || (open_ && !messages_.empty()); });
  if (closed_) return std::nullopt;
  v1::SessionResponse message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

void Outbox::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::shared_ptr<Outbox> Sessions::Add(const std::string& node) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Outbox>& outbox = outboxes_[node];
  if (outbox != nullptr) outbox->Close();
  outbox = std::make_shared<Outbox>();
  return outbox;
}

bool Sessions::Remove(const std::string& node, const std::shared_ptr<Outbox>& outbox) {
  const std::lock_guard lock(mutex_);
  const auto found = outboxes_.find(node);
  if (found == outboxes_.end() || found->second != outbox) return false;
  outboxes_.erase(found);
  return true;
}

void Sessions::CloseAll() {
  const std::lock_guard lock(mutex_);
  for (auto& [node, outbox] : outboxes_) outbox->Close();
}

void Sessions::Send(Store& store, const std::vector<Effect>& effects) {
  for (const Effect& effect : effects) {
    const std::lock_guard lock(mutex_);
    const auto found = outboxes_.find(effect.node);
    if (found == outboxes_.end()) continue;
    if (std::optional<v1::SessionResponse> message = MessageOf(store, effect)) found->second->Put(*std::move(message));
  }
}

}  // namespace luthier
