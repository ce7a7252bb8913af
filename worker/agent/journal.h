// What an attempt has to report, numbered from 1 without gaps, kept on disk until the server has it: training goes on
// while the server is away, and everything arrives afterwards, in order, exactly once.
//
// The attempt's thread appends, syncs and compacts; the session's threads read and acknowledge. A report is handed out
// only after it is durable: otherwise a power loss could give its number to another report, which the server would take
// for a repetition.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "lib/base/descriptor.h"
#include "luthier/v1/worker.pb.h"
#include "worker/agent/core/outbox.h"

namespace luthier {

class Journal {
 public:
  // Opens or creates the file at `path`. A record that a crash tore is cut off. If the disk does not work, reports are
  // kept in memory and still sent: they are lost only if the agent dies as well. `status()` tells.
  Journal(std::string path, std::string attempt);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Gives `report` its attempt and the next number. Durable, and visible to Next(), after Sync().
  void Append(v1::AttemptReport report);
  void Sync();
  // Drops what is acknowledged from the file, if that is worth it. Not called any more once the trainer has finished:
  // how the attempt goes on after a crash of the agent is read from these records.
  void Compact();

  // A session opened and the server has everything up to `acknowledged`.
  void Rewind(int64_t acknowledged);
  void Acknowledge(int64_t sequence);
  // The next report to send in this session.
  std::optional<v1::AttemptReport> Next();

  // Every report that is still in the file, oldest first.
  void ForEach(const std::function<void(const v1::AttemptReport&)>& visit) const;

  int64_t last_sequence() const;
  // Highest number that is on disk and can be sent.
  int64_t durable() const;
  // Reports that are not acknowledged.
  int64_t backlog() const;
  // Bytes that are not acknowledged.
  int64_t backlog_bytes() const;
  // How the disk does.
  absl::Status status() const;

 private:
  // A report in the file, or in memory if it could not be written.
  struct Record {
    int64_t offset = 0;
    uint32_t size = 0;
    std::optional<std::string> in_memory;
  };
  absl::Status Load();
  absl::Status WriteAll(const std::string& bytes);
  absl::Status RewriteFrom(int64_t base, int64_t from);
  Record& At(int64_t sequence) { return records_[static_cast<size_t>(sequence - base_ - 1)]; }
  const Record& At(int64_t sequence) const { return records_[static_cast<size_t>(sequence - base_ - 1)]; }
  int64_t AcknowledgedEnd() const;

  const std::string path_;
  const std::string attempt_;
  // Protects all below. `file_`, `base_` and `end_` are changed by the attempt's thread only, which therefore reads
  // them without it; nobody holds it while the disk works.
  mutable std::mutex mutex_;
  std::shared_ptr<const Descriptor> file_;  // shared with a reader that must not be cut off by Compact()
  absl::Status status_;                     // once not OK, nothing is written any more
  int64_t base_ = 0;                        // number before the first record
  std::deque<Record> records_;              // numbers after `base_` up to the outbox's last
  Outbox outbox_;
  int64_t end_ = 0;  // of the file
};

}  // namespace luthier
