// The attempts of a node, and what the server's messages mean for them. Pure: attempts do what they are told where
// their owner has them do it, worker/agent/agent on threads, tests/simulation on virtual time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "luthier/v1/worker.pb.h"
#include "worker/agent/core/attempt_path.h"

namespace luthier {

class Roster {
 public:
  // An attempt, as far as the roster knows it.
  class Entry {
   public:
    virtual ~Entry() = default;
    // The server still wants one that an earlier agent left: publishes what its trainer finished, or reports it as
    // lost. `credential`: as in an order.
    virtual void GoOn(const std::string& credential) = 0;
    // The server wants it to end: checkpoint, kill after `grace`, report STOPPED. `job_goes_on`: the checkpoint is
    // stored before that; else one of several nodes is killed at once.
    virtual void Stop(absl::Duration grace, bool job_goes_on) = 0;
    // A checkpoint after the running step, if its trainer runs.
    virtual void Checkpoint() = 0;
    // The server has forgotten it: kill, report nothing.
    virtual void Abandon() = 0;
    virtual void Rewind(int64_t acknowledged) = 0;
    virtual void Acknowledge(int64_t sequence) = 0;
    // Its trainer runs, or may still be started. False before the report that says so.
    virtual bool uses_devices() const = 0;
    // Nothing of it is of use any more: abandoned and done, or its last report is acknowledged.
    virtual bool settled() const = 0;
    virtual const AttemptPath& name() const = 0;
    // Empty of one that an earlier agent left.
    virtual const v1::StartAttempt& order() const = 0;
  };
  using Entries = std::map<std::string, std::shared_ptr<Entry>>;
  using Begin = std::function<std::shared_ptr<Entry>(AttemptPath, const v1::StartAttempt&)>;

  // `begin`: makes an attempt that was ordered.
  explicit Roster(Begin begin) : begin_(std::move(begin)) {}

  // One that an earlier agent left.
  void TakeOver(const std::shared_ptr<Entry>& entry) { entries_[entry->name().text()] = entry; }
  // The agent is going to end: nothing begins any more.
  void Leave() { leaving_ = true; }
  bool leaving() const { return leaving_; }

  // What is said of them at the beginning of a session, and from then on.
  void Describe(v1::Register& message) const;
  void Describe(v1::Heartbeat& message) const;
  // The end of an attempt that the server wants ended and that never began here; each once.
  std::optional<v1::AttemptReport> NextOfUnknown();

  void OnRegistered(const v1::Registered& registered);
  // Errors: INVALID_ARGUMENT for a name that is none.
  absl::Status OnStart(const v1::StartAttempt& order);
  void OnStop(const v1::StopAttempt& order);
  void OnCheckpoint(const v1::CheckpointAttempt& order);
  void OnAck(const v1::ReportAck& ack);

  const Entries& entries() const { return entries_; }
  // The caller keeps the entry for as long as its own lock: its end may wait for a thread that looks at the roster.
  void Remove(const std::string& name) { entries_.erase(name); }
  bool HasAttemptOf(const std::string& job) const;
  // Ids of jobs that are over, as the server says: what is kept of them can go.
  const std::set<std::string>& jobs_over() const { return jobs_over_; }
  void ForgetJobOver(const std::string& job) { jobs_over_.erase(job); }

 private:
  Entry* Find(const std::string& name) const;  // null if it is not here
  template <typename Message>
  void AddProcesses(Message& message) const;

  const Begin begin_;
  Entries entries_;  // by name
  std::set<std::string> jobs_over_;
  std::vector<std::string> unknown_;  // attempts that the server wants ended and nobody here knows
  bool leaving_ = false;
};

}  // namespace luthier
