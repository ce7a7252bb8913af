#include "worker/agent/core/roster.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace luthier {

template <typename Message>
void Roster::AddProcesses(Message& message) const {
  for (const auto& [name, entry] : entries_) {
    if (!entry->uses_devices()) continue;
    v1::AttemptProcess& process = *message.add_processes();
    process.set_attempt(name);
    *process.mutable_gpus() = entry->order().gpus();
  }
}

void Roster::Describe(v1::Register& message) const {
  for (const auto& [name, entry] : entries_) message.add_attempts(name);
  AddProcesses(message);
}

void Roster::Describe(v1::Heartbeat& message) const {
  message.set_leaving(leaving_);
  AddProcesses(message);
}

std::optional<v1::AttemptReport> Roster::NextOfUnknown() {
  if (unknown_.empty()) return std::nullopt;
  v1::AttemptReport report;
  report.set_attempt(unknown_.back());
  report.set_sequence(1);
  report.mutable_ended()->set_outcome(v1::AttemptEnded::STOPPED);
  report.mutable_ended()->set_message("it never began on this node");
  unknown_.pop_back();
  return report;
}

void Roster::OnRegistered(const v1::Registered& registered) {
  const std::set<std::string> stale(registered.stale_attempts().begin(), registered.stale_attempts().end());
  for (const std::string& name : stale) {
    if (Entry* entry = Find(name)) entry->Abandon();
  }
  for (const v1::ReportAck& ack : registered.acks()) {
    if (Entry* entry = Find(ack.attempt())) entry->Rewind(ack.sequence());
  }
  for (const auto& [name, entry] : entries_) {
    if (leaving_ || stale.count(name) > 0) continue;
    const auto credential = registered.credentials().find(name);
    entry->GoOn(credential == registered.credentials().end() ? "" : credential->second);
  }
  for (const std::string& job : registered.jobs_over()) jobs_over_.insert(std::string(absl::StripPrefix(job, "jobs/")));
}

absl::Status Roster::OnStart(const v1::StartAttempt& order) {
  std::optional<AttemptPath> name = AttemptPath::Parse(order.attempt());
  if (!name) return absl::InvalidArgumentError(absl::StrCat("'", order.attempt(), "' is no name of an attempt"));
  // A leaving agent starts nothing; the server sends the order again when the node registers next.
  if (leaving_ || Find(order.attempt()) != nullptr) return absl::OkStatus();
  for (const auto& [other, entry] : entries_) {
    if (entry->name().job == name->job) entry->Abandon();  // one attempt of a job is current, and it is the new one
  }
  entries_[order.attempt()] = begin_(*std::move(name), order);
  return absl::OkStatus();
}

void Roster::OnStop(const v1::StopAttempt& order) {
  const auto grace = absl::Seconds(order.grace().seconds()) + absl::Nanoseconds(order.grace().nanos());
  if (Entry* entry = Find(order.attempt())) {
    entry->Stop(grace, order.job_goes_on());
  } else {
    unknown_.push_back(order.attempt());
  }
}

void Roster::OnCheckpoint(const v1::CheckpointAttempt& order) {
  if (Entry* entry = Find(order.attempt())) entry->Checkpoint();
}

void Roster::OnAck(const v1::ReportAck& ack) {
  if (Entry* entry = Find(ack.attempt())) entry->Acknowledge(ack.sequence());
  const std::optional<AttemptPath> name = AttemptPath::Parse(ack.attempt());
  if (name && ack.job_over()) jobs_over_.insert(name->job);
}

bool Roster::HasAttemptOf(const std::string& job) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const auto& entry) { return entry.second->name().job == job; });
}

Roster::Entry* Roster::Find(const std::string& name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second.get();
}

}  // namespace luthier
