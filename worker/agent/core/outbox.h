// Which reports of an attempt are to be sent: numbered from 1 without gaps, handed out in order and only once they are
// on disk, again after a break, and done with when the server has them. Pure: where they are kept is for the journal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

namespace luthier {

class Outbox {
 public:
  Outbox() = default;
  // What an earlier agent left: the reports after number `base` up to `last` are on disk.
  Outbox(int64_t base, int64_t last) : last_(last), durable_(last), acknowledged_(base), handed_out_(base) {}

  // The number of a new report.
  int64_t Add() { return ++last_; }
  // Everything up to `sequence` is on disk.
  void Keep(int64_t sequence) { durable_ = std::max(durable_, sequence); }

  // A session opened and the server has everything up to `acknowledged`, whatever it said before. That may be more than
  // there is, if a disk lost what was sent: such numbers stay taken.
  void Rewind(int64_t acknowledged);
  void Acknowledge(int64_t sequence);
  // The number of the next report to send in this session.
  std::optional<int64_t> Next();

  int64_t last() const { return last_; }
  // Highest number that is on disk.
  int64_t durable() const { return durable_; }
  int64_t acknowledged() const { return acknowledged_; }
  // Reports that are not acknowledged.
  int64_t backlog() const { return last_ - acknowledged_; }

 private:
  int64_t last_ = 0;
  int64_t durable_ = 0;
  int64_t acknowledged_ = 0;
  int64_t handed_out_ = 0;  // in this session
};

}  // namespace luthier
