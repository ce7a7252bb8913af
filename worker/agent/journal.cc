#include "worker/agent/journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// The file: a header, then records of size, CRC32C and that many bytes of an AttemptReport. Numbers follow from the
// header.
struct Header {
  char magic[8] = {'l', 'u', 't', 'h', 'j', 'r', 'n', '1'};
  int64_t base = 0;
};
struct RecordHeader {
  uint32_t size;
  uint32_t crc32c;
};

// A larger record is no record but garbage of a torn write; events are limited to 1 MiB of JSON.
constexpr uint32_t kMaxRecordBytes = 16 << 20;
// Rewriting costs as much as it frees, so it waits until a few megabytes are worth it.
constexpr int64_t kCompactBytes = 4 << 20;

template <typename T>
absl::string_view Bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// Short at the end of the file.
std::string ReadAt(int file, int64_t offset, size_t size) {
  std::string bytes(size, '\0');
  size_t have = 0;
  while (have < size) {
    const ssize_t count = pread(file, bytes.data() + have, size - have, offset + static_cast<int64_t>(have));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    have += static_cast<size_t>(count);
  }
  bytes.resize(have);
  return bytes;
}

std::string Encode(const std::string& payload) {
  const RecordHeader header{static_cast<uint32_t>(payload.size()), Crc32c(payload)};
  return absl::StrCat(Bytes(header), payload);
}

}  // namespace

Journal::Journal(std::string path, std::string attempt) : path_(std::move(path)), attempt_(std::move(attempt)) {
  status_ = Load();
}

absl::Status Journal::Load() {
  Descriptor opened(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!opened.is_open()) return FileError(path_, "open", errno);
  file_ = std::make_shared<const Descriptor>(std::move(opened));
  const int file = file_->get();
  const std::string header = ReadAt(file, 0, sizeof(Header));
  if (header.size() < sizeof(Header)) {
    if (ftruncate(file, 0) != 0) return FileError(path_, "truncate", errno);
    LUTHIER_RETURN_IF_ERROR(WriteAll(std::string(Bytes(Header{}))));
    return SyncFolder(path_.substr(0, path_.rfind('/')));
  }
  Header read;
  std::memcpy(&read, header.data(), sizeof read);
  if (std::memcmp(read.magic, Header{}.magic, sizeof read.magic) != 0) {
    return absl::DataLossError(absl::StrCat(path_, ": is no journal"));
  }
  base_ = read.base;
  for (end_ = sizeof(Header);;) {
    RecordHeader record;
    const std::string bytes = ReadAt(file, end_, sizeof record);
    if (bytes.size() < sizeof record) break;
    std::memcpy(&record, bytes.data(), sizeof record);
    if (record.size > kMaxRecordBytes) break;
    const std::string payload = ReadAt(file, end_ + static_cast<int64_t>(sizeof record), record.size);
    if (payload.size() < record.size || Crc32c(payload) != record.crc32c) break;
    records_.push_back({end_ + static_cast<int64_t>(sizeof record), record.size, std::nullopt});
    end_ += static_cast<int64_t>(sizeof record) + record.size;
  }
  outbox_ = Outbox(base_, base_ + static_cast<int64_t>(records_.size()));
  if (ftruncate(file, end_) != 0) return FileError(path_, "truncate", errno);
  return absl::OkStatus();
}

absl::Status Journal::WriteAll(const std::string& bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count =
        pwrite(file_->get(), bytes.data() + done, bytes.size() - done, end_ + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(path_, "write", errno);
    done += static_cast<size_t>(count);
  }
  const std::lock_guard lock(mutex_);
  end_ += static_cast<int64_t>(bytes.size());
  return absl::OkStatus();
}

void Journal::Append(v1::AttemptReport report) {
  std::string payload;
  int64_t sequence = 0;
  {
    const std::lock_guard lock(mutex_);
    sequence = outbox_.Add();
    report.set_attempt(attempt_);
    report.set_sequence(sequence);
    payload = report.SerializeAsString();
    records_.push_back({0, static_cast<uint32_t>(payload.size()), payload});
    if (!status_.ok()) return;
  }
  const int64_t offset = end_ + static_cast<int64_t>(sizeof(RecordHeader));
  const absl::Status written = WriteAll(Encode(payload));
  const std::lock_guard lock(mutex_);
  if (!written.ok()) {
    status_ = written;
    return;
  }
  Record& record = At(sequence);
  record.offset = offset;
  record.in_memory.reset();
}

void Journal::Sync() {
  std::shared_ptr<const Descriptor> file;
  int64_t last = 0;
  {
    const std::lock_guard lock(mutex_);
    last = outbox_.last();
    if (outbox_.durable() == last) return;
    if (status_.ok()) file = file_;
  }
  // Without the lock: the session must not wait for the disk.
  const absl::Status synced =
      file == nullptr || fdatasync(file->get()) == 0 ? absl::OkStatus() : FileError(path_, "fdatasync", errno);
  const std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = synced;
  outbox_.Keep(last);
}

int64_t Journal::AcknowledgedEnd() const {
  if (outbox_.acknowledged() <= base_ || records_.empty()) return sizeof(Header);
  const Record& last = At(outbox_.acknowledged());
  return last.offset + last.size;
}

void Journal::Compact() {
  int64_t acknowledged = 0, from = 0;
  {
    const std::lock_guard lock(mutex_);
    acknowledged = outbox_.acknowledged();
    from = AcknowledgedEnd();
    const int64_t freed = from - static_cast<int64_t>(sizeof(Header));
    if (!status_.ok() || outbox_.durable() != outbox_.last() || freed < kCompactBytes || freed < end_ / 2) return;
  }
  const absl::Status rewritten = RewriteFrom(acknowledged, from);
  const std::lock_guard lock(mutex_);
  if (!rewritten.ok()) status_ = rewritten;
}

// The records after number `base`, which begin at `from`, move to a new file that takes the old one's name.
absl::Status Journal::RewriteFrom(int64_t base, int64_t from) {
  Header header;
  header.base = base;
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(
      path_, absl::StrCat(Bytes(header), ReadAt(file_->get(), from, static_cast<size_t>(end_ - from)))));
  Descriptor rewritten(open(path_.c_str(), O_RDWR | O_CLOEXEC));
  if (!rewritten.is_open()) return FileError(path_, "open", errno);
  const std::lock_guard lock(mutex_);
  const int64_t shift = from - static_cast<int64_t>(sizeof(Header));
  file_ = std::make_shared<const Descriptor>(std::move(rewritten));
  records_.erase(records_.begin(), records_.begin() + (base - base_));
  for (Record& record : records_) record.offset -= shift;
  end_ -= shift;
  base_ = base;
  return absl::OkStatus();
}

void Journal::Rewind(int64_t acknowledged) {
  const std::lock_guard lock(mutex_);
  // More than there is: reports of a disk that failed were sent from memory, and are gone.
  if (acknowledged > outbox_.last() && status_.ok())
    status_ = absl::DataLossError(absl::StrCat(path_, ": lacks reports that the server has"));
  for (int64_t missing = outbox_.last(); missing < acknowledged; ++missing)
    records_.push_back({end_, 0, std::string()});
  outbox_.Rewind(acknowledged);
}

void Journal::Acknowledge(int64_t sequence) {
  const std::lock_guard lock(mutex_);
  outbox_.Acknowledge(sequence);
}

std::optional<v1::AttemptReport> Journal::Next() {
  Record record{.in_memory = ""};
  std::shared_ptr<const Descriptor> file;
  std::optional<int64_t> sequence;
  {
    const std::lock_guard lock(mutex_);
    sequence = outbox_.Next();
    if (!sequence) return std::nullopt;
    if (*sequence > base_) record = At(*sequence);
    file = file_;
  }
  const std::string payload = record.in_memory ? *record.in_memory : ReadAt(file->get(), record.offset, record.size);
  v1::AttemptReport report;
  if (!report.ParseFromString(payload) || report.sequence() != *sequence) {
    // The disk lost it after it was synced, or the server after it had acknowledged it. Its number must not be missing,
    // else nothing after it would be recorded.
    report.Clear();
    report.set_attempt(attempt_);
    report.set_sequence(*sequence);
    report.mutable_log_lines()->add_lines("a report of the agent is damaged, or gone from its disk: " + path_);
  }
  return report;
}

void Journal::ForEach(const std::function<void(const v1::AttemptReport&)>& visit) const {
  std::deque<Record> records;
  std::shared_ptr<const Descriptor> file;
  {
    const std::lock_guard lock(mutex_);
    records = records_;
    file = file_;
  }
  for (const Record& record : records) {
    v1::AttemptReport report;
    const std::string payload = record.in_memory ? *record.in_memory : ReadAt(file->get(), record.offset, record.size);
    if (report.ParseFromString(payload)) visit(report);
  }
}

int64_t Journal::last_sequence() const {
  const std::lock_guard lock(mutex_);
  return outbox_.last();
}

int64_t Journal::durable() const {
  const std::lock_guard lock(mutex_);
  return outbox_.durable();
}

int64_t Journal::backlog() const {
  const std::lock_guard lock(mutex_);
  return outbox_.backlog();
}

int64_t Journal::backlog_bytes() const {
  const std::lock_guard lock(mutex_);
  return end_ - AcknowledgedEnd();
}

absl::Status Journal::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

}  // namespace luthier
