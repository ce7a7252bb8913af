#include "worker/agent/attempt.h"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/json_text.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/wire/json_wire.h"
#include "worker/agent/backoff.h"
#include "worker/agent/lines.h"
#include "worker/agent/run_checkpoints.h"
#include "worker/agent/shared_store.h"
#include "worker/agent/trainer_start.h"

namespace luthier {
namespace {

using nlohmann::json;

// How often a running trainer's attempt looks for wishes of the server.
constexpr absl::Duration kPoll = absl::Milliseconds(100);
// From a trainer's last word to its end: it only frees its memory.
constexpr absl::Duration kExitPatience = absl::Seconds(10);
// What the server may have to take in at once after a long absence. Beyond it, progress and log lines are left out.
constexpr int64_t kMaxBacklogBytes = int64_t{256} << 20;
// A file of the artifact that changes under the upload is a defect of the disk, and not worth more tries.
constexpr int kMaxRefusedUploads = 3;
// Devices are given back only after the checkpoint of a stopped attempt is stored. Beyond this, what is lost by going
// on from an older one is worth less than they are.
constexpr absl::Duration kStorePatience = absl::Minutes(5);
// After a crash the job mostly goes on where its checkpoint lies.
constexpr absl::Duration kStorePatienceAfterLoss = absl::Seconds(10);
// The cause of a loss with kLostRankExitCode.
constexpr char kPeer[] = "PEER";
// Said by a trainer of its node's disk; of a failure, that the server cannot give an input.
constexpr char kStorage[] = "STORAGE";

bool TellsOfCheckpoint(const std::string& event) { return event == "checkpoint" || event == "stopped"; }

// What a trainer left, by the word in its `finished` event.
struct ArtifactForm {
  const char* folder;  // of the run
  v1::ModelVersion::Kind kind;
};
ArtifactForm FormOfArtifact(const std::string& word) {
  if (word == "model") return {"model", v1::ModelVersion::FULL_MODEL};
  if (word == "gguf_adapter") return {"gguf_adapter", v1::ModelVersion::GGUF_ADAPTER};
  return {"adapter", v1::ModelVersion::ADAPTER};
}

v1::AttemptEnded Ended(v1::AttemptEnded::Outcome outcome, std::string message, std::string cause = "") {
  v1::AttemptEnded ended;
  ended.set_outcome(outcome);
  ended.set_message(std::move(message));
  ended.set_cause(std::move(cause));
  return ended;
}

}  // namespace

Attempt::Attempt(Node& node, AttemptName name, v1::StartAttempt order)
    : node_(node),
      name_(std::move(name)),
      order_(std::move(order)),
      pass_{name_.text(), order_.credential()},
      upload_(UploadOptions(), node.artifacts),
      full_model_(TrainsWholeModel(order_)) {
  uses_devices_ = true;
  Begin(&Attempt::Live);
}

Attempt::Attempt(Node& node, AttemptName name)
    : node_(node), name_(std::move(name)), upload_(UploadOptions(), node.artifacts), full_model_(false) {
  OpenJournal();
}

Attempt::~Attempt() {
  Abandon();
  if (thread_.joinable()) thread_.join();
}

void Attempt::Begin(void (Attempt::*life)()) {
  done_ = false;
  thread_ = std::thread([this, life] {
    (this->*life)();
    done_ = true;
    node_.on_end();
  });
}

void Attempt::OpenJournal() {
  auto journal = std::make_shared<Journal>(Folder() + "/journal", name_.text());
  int64_t last_report = 0;
  journal->ForEach([&](const v1::AttemptReport& report) {
    if (report.has_trainer_event()) {
      json event = StructToJson(report.trainer_event());
      if (TellsOfCheckpoint(TextOf(event, "event"))) last_checkpoint_ = CheckpointOf(event);
      if (IsLastWord(TextOf(event, "event"))) last_event_ = std::move(event);
    }
    stored_ |= report.has_artifact_stored();
    if (report.has_ended()) last_report = report.sequence();
  });
  const std::lock_guard lock(mutex_);
  journal_ = std::move(journal);
  last_report_ = last_report;
}

// --- The attempt's thread.

void Attempt::Live() {
  (void)CreateFolders(Folder());  // the journal tells if that failed, and goes on without a disk
  OpenJournal();
  v1::AttemptEnded ended = Work();
  uses_devices_ = false;
  ReportEnd(std::move(ended));
}

v1::AttemptEnded Attempt::Work() {
  const absl::StatusOr<FileLock> run_folder = WaitForRunFolder();
  if (!run_folder.ok()) return EndAfterError(run_folder.status());
  if (const absl::Status made = CreateFolders(RunFolder()); !made.ok()) return EndAfterError(made);
  const absl::StatusOr<InputCache::Lease> inputs = MakeInputsLocal();
  if (!inputs.ok()) return EndAfterError(inputs.status());
  if (const absl::Status fetched = FetchCheckpoint(); !fetched.ok()) return EndAfterError(fetched);
  if (const absl::Status written = WriteSpec(*inputs); !written.ok()) return EndAfterError(written);
  v1::AttemptEnded ended = Train();
  uses_devices_ = false;
  if (ended.cause() == kPeer && cancellation_.WaitFor(node_.peer_patience)) ended = EndAfterError(NotWanted());
  return ended.outcome() == v1::AttemptEnded::FINISHED ? Publish() : StoreLastCheckpoint(std::move(ended));
}

void Attempt::GoOn(const std::string& credential) {
  {
    const std::lock_guard lock(mutex_);
    if (thread_.joinable() || last_report_ > 0) return;
  }
  pass_ = {name_.text(), credential};
  Begin(&Attempt::LiveAgain);
}

void Attempt::LiveAgain() { ReportEnd(WorkAgain()); }

v1::AttemptEnded Attempt::WorkAgain() {
  const absl::StatusOr<FileLock> run_folder = WaitForRunFolder();
  if (!run_folder.ok()) return EndAfterError(run_folder.status());
  const std::string last_word = TextOf(last_event_, "event");
  if (last_word == "finished") return Publish();
  if (last_word == "failed") return FailureOfTrainer();
  if (last_word == "stopped") return StoreLastCheckpoint(Ended(v1::AttemptEnded::STOPPED, "stopped"));
  return Ended(v1::AttemptEnded::LOST, "the agent of the node died, and the trainer with it");
}

void Attempt::ReportEnd(v1::AttemptEnded ended) {
  if (ended.outcome() == v1::AttemptEnded::OUTCOME_UNSPECIFIED) return;
  node_.metrics.ObserveEnd(ended.outcome());
  v1::AttemptReport report;
  *report.mutable_ended() = std::move(ended);
  Report(std::move(report));
}

// An earlier attempt of the job may still be dying.
absl::StatusOr<FileLock> Attempt::WaitForRunFolder() {
  LUTHIER_RETURN_IF_ERROR(CreateFolders(node_.folder.JobFolder(name_.job)));
  while (true) {
    absl::StatusOr<FileLock> lock = FileLock::TryAcquire(node_.folder.JobFolder(name_.job) + "/run.lock");
    if (!absl::IsUnavailable(lock.status())) return lock;
    if (cancellation_.WaitFor(kPoll)) return NotWanted();
  }
}

absl::StatusOr<InputCache::Lease> Attempt::MakeInputsLocal() {
  LUTHIER_ASSIGN_OR_RETURN(InputCache::Lease lease, node_.cache.Acquire(pass_, InputBlobs(order_), cancellation_));
  node_.metrics.ObserveCache(node_.cache.bytes());
  LUTHIER_RETURN_IF_ERROR(LinkInputs(order_, lease, Folder()));
  return lease;
}

absl::Status Attempt::WriteSpec(const InputCache::Lease& inputs) {
  LUTHIER_ASSIGN_OR_RETURN(const json spec, LocalSpec(order_, name_, inputs, Folder()));
  return WriteFileDurably(SpecFile(), spec.dump(2) + "\n");
}

v1::AttemptEnded Attempt::Train() {
  const MemoryKills kills(node_.memory_kill_counters);
  AttemptLog log(Folder() + "/trainer.log", {}, node_.steady_now());
  AgentMetrics::Training training(node_.metrics);
  TrainerProcess::Output output;
  // Where another node leads, the trainer has nothing to say; that node's hears of one that hangs.
  StallWatch watch(leads() ? node_.stall_after : absl::InfiniteDuration(), node_.steady_now());
  output.on_event_line = [&](const std::string& line) { OnEventLine(line, log, training, watch); };
  output.on_log_line = [&](const std::string& line) { log.Add(line, node_.steady_now()); };
  absl::StatusOr<std::unique_ptr<TrainerProcess>> trainer = TrainerProcess::Start(
      {TrainerCommand(node_.trainer, order_, SpecFile(), RunFolder()), TrainerEnvironment(order_, node_.inventory),
       absl::StrCat(node_.folder.root(), ":", name_.text())},
      std::move(output));
  if (!trainer.ok()) return Ended(v1::AttemptEnded::LOST, std::string(trainer.status().message()));

  std::optional<absl::Time> kill_at;
  bool listening = true, stalled = false;
  while (listening) {
    listening = (*trainer)->Listen(kPoll);
    // After its last word, or once it was told to stop, it has its time anyway.
    if (listening && wish() == Wish::kNone && last_event_.is_null() && watch.HasStalled(node_.steady_now())) {
      stalled = true;
      (*trainer)->Kill();  // what hangs hears nothing
    }
    std::optional<v1::LogLines> lines = log.Take();
    if (lines && leads() && journal_->backlog_bytes() < kMaxBacklogBytes) {
      v1::AttemptReport report;
      *report.mutable_log_lines() = *std::move(lines);
      journal_->Append(std::move(report));
    }
    const int64_t before = journal_->durable();
    journal_->Sync();
    if (journal_->durable() > before) node_.on_report();
    ReportStoredCheckpoint();
    if (last_event_.is_null()) journal_->Compact();
    FollowWish(**trainer, kill_at);
  }
  const absl::StatusOr<TrainerProcess::Exit> exit = (*trainer)->End();
  if (!exit.ok()) return Ended(v1::AttemptEnded::LOST, std::string(exit.status().message()));
  if (stalled && wish() == Wish::kNone && last_event_.is_null())
    return Crashed(watch.Text() + " and was ended", "STALLED", log);
  return EndOf(*exit, kills.Happened(), log);
}

// Asks once, and kills when the time is over. A trainer that has said its last word is expected to end by itself.
void Attempt::FollowWish(TrainerProcess& trainer, std::optional<absl::Time>& kill_at) {
  const Wish wish = this->wish();
  if (wish == Wish::kNone && last_event_.is_null()) {
    if (checkpoint_asked_.exchange(false)) trainer.AskForCheckpoint();
    return;
  }
  if (wish == Wish::kAbandon) return trainer.Kill();
  if (!kill_at) {
    if (last_event_.is_null()) trainer.AskToStop();
    kill_at = wish == Wish::kNone ? node_.steady_now() + kExitPatience : absl::InfiniteFuture();
  }
  if (wish != Wish::kNone) {
    const std::lock_guard lock(mutex_);
    kill_at = std::min(*kill_at, wish_end_);
  }
  if (node_.steady_now() >= *kill_at) trainer.Kill();
}

void Attempt::OnEventLine(const std::string& line, AttemptLog& log, AgentMetrics::Training& training,
                          StallWatch& watch) {
  json event = json::parse(line, nullptr, /*allow_exceptions=*/false);
  const std::string type = TextOf(event, "event");
  absl::StatusOr<google::protobuf::Struct> message = JsonToStruct(event);
  if (type.empty() || !message.ok()) return log.Add(line, node_.steady_now());
  if (!last_event_.is_null()) return;  // nothing follows a last word
  if (!leads()) {                      // it speaks of its own ranks only, and `ended` passes that on
    if (type == "failed") last_event_ = std::move(event);
    return;
  }
  watch.Observe(event, node_.steady_now());
  if (type == "busy") return;  // it is said for the watch alone
  training.Observe(event);
  if (type == "progress" && journal_->backlog_bytes() >= kMaxBacklogBytes) return;
  v1::AttemptReport report;
  *report.mutable_trainer_event() = *std::move(message);
  journal_->Append(std::move(report));
  if (TellsOfCheckpoint(type)) OnCheckpoint(event);
  if (IsLastWord(type)) last_event_ = std::move(event);
}

v1::AttemptEnded Attempt::EndOf(const TrainerProcess::Exit& exit, bool out_of_memory, const AttemptLog& log) const {
  const Wish wish = this->wish();
  const std::string last_word = TextOf(last_event_, "event");
  if (wish == Wish::kAbandon) return {};
  if (last_word == "finished" && wish == Wish::kSuspend) return {};
  if (last_word == "finished" && wish == Wish::kNone) return Ended(v1::AttemptEnded::FINISHED, "");
  if (last_word == "failed") return FailureOfTrainer();
  if (last_word == "stopped")
    return Ended(v1::AttemptEnded::STOPPED, wish == Wish::kSuspend ? "the agent was stopped" : "stopped");
  if (!leads() && exit.code == 0) return Ended(v1::AttemptEnded::STOPPED, "the leading node ended the run");
  if (wish != Wish::kNone) return Ended(v1::AttemptEnded::STOPPED, exit.killed ? "its trainer was killed" : "stopped");
  if (order_.has_gang() && exit.code == kLostRankExitCode)
    return Crashed("ranks of another node are gone or did not come", kPeer, log);
  if (exit.signal == SIGKILL && out_of_memory) {
    return Ended(v1::AttemptEnded::FAILED,
                 "the node's memory ran out and its kernel killed the trainer; lower "
                 "training.micro_batch_tokens or training.max_length, or use a node with more memory",
                 "OOM");
  }
  return Crashed(exit.signal != 0
                     ? absl::StrCat("the trainer was ended by signal ", exit.signal, " (", strsignal(exit.signal), ")")
                     : absl::StrCat("the trainer ended with code ", exit.code, " and no last word"),
                 "CRASHED", log);
}

// A disk of the node that is full or broken is no fault of the job's: it is tried again, elsewhere if it has to be.
v1::AttemptEnded Attempt::FailureOfTrainer() const {
  const std::string cause = TextOf(last_event_, "cause");
  return Ended(cause == kStorage ? v1::AttemptEnded::LOST : v1::AttemptEnded::FAILED, TextOf(last_event_, "message"),
               cause);
}

// It said nothing of a reason, so what it wrote last may.
v1::AttemptEnded Attempt::Crashed(std::string message, const std::string& cause, const AttemptLog& log) const {
  if (const std::string tail = log.Tail(); !tail.empty()) absl::StrAppend(&message, "; it said last:\n", tail);
  return Ended(v1::AttemptEnded::LOST, std::move(message), cause);
}

CheckpointUpload::Options Attempt::UploadOptions() const {
  CheckpointUpload::Options options;
  options.pass = &pass_;
  options.checkpoints = CheckpointsFolder();
  options.links = Folder() + "/upload";
  options.shared_store = node_.shared_store;
  options.bytes_per_second = node_.checkpoint_bytes_per_second;
  for (const v1::ModelFile& file : order_.checkpoint().files()) options.stored.insert(file.sha256());
  return options;
}

// A large one may take longer than the time to the next: it waits until the job has to move.
void Attempt::OnCheckpoint(const json& event) {
  last_checkpoint_ = CheckpointOf(event);
  const auto bytes = event.find("bytes");
  if (bytes == event.end() || !bytes->is_number()) return;
  if (!full_model_ || bytes->get<double>() <= static_cast<double>(node_.max_checkpoint_bytes))
    upload_.Offer(*last_checkpoint_);
}

// Before the end is reported, since the job may be on another node a moment later.
v1::AttemptEnded Attempt::StoreLastCheckpoint(v1::AttemptEnded ended) {
  const bool stopped = ended.outcome() == v1::AttemptEnded::STOPPED;
  if (!stopped && ended.outcome() != v1::AttemptEnded::LOST) return ended;
  if (stopped && last_checkpoint_) upload_.Offer(*last_checkpoint_);
  absl::Duration patience = stopped ? kStorePatience : kStorePatienceAfterLoss;
  if (wish() == Wish::kSuspend) {
    const std::lock_guard lock(mutex_);
    patience = std::max(absl::ZeroDuration(), wish_end_ - node_.steady_now());
  }
  upload_.Finish(patience);
  if (wish() == Wish::kAbandon) return {};
  ReportStoredCheckpoint();
  return ended;
}

void Attempt::ReportStoredCheckpoint() {
  std::optional<absl::StatusOr<v1::CheckpointStored>> outcome = upload_.TakeOutcome();
  if (!outcome) return;
  if (outcome->ok()) {
    for (const v1::ModelFile& file : (*outcome)->files()) node_.metrics.ObserveUploaded(file.size_bytes());
    v1::AttemptReport report;
    *report.mutable_checkpoint_stored() = *std::move(*outcome);
    return Report(std::move(report));
  }
  const std::string why(outcome->status().message());
  if (absl::IsCancelled(outcome->status()) || std::exchange(said_of_upload_, why) == why) return;
  ReportLine(
      absl::StrCat("a checkpoint could not be stored on the server, so that no other node can go on from it: ", why));
}

// The job's newest stored checkpoint, unless this node has a newer one. Without it the job goes on from what is here: a
// reason to say so, and none to fail.
absl::Status Attempt::FetchCheckpoint() {
  if (!leads()) return absl::OkStatus();  // the leading node's trainer hands it on
  const v1::CheckpointStored& checkpoint = order_.checkpoint();
  const std::string checkpoints = CheckpointsFolder();
  if (checkpoint.step() <= NewestStep(checkpoints)) return absl::OkStatus();
  const auto install = [&]() -> absl::Status {
    std::vector<InputCache::Blob> blobs;
    for (const v1::ModelFile& file : checkpoint.files()) blobs.push_back({file.sha256(), file.size_bytes()});
    LUTHIER_ASSIGN_OR_RETURN(const InputCache::Lease lease, node_.cache.Acquire(pass_, blobs, cancellation_));
    std::map<std::string, std::string> files;
    for (const v1::ModelFile& file : checkpoint.files()) files[file.path()] = lease.Path(file.sha256());
    return InstallCheckpoint(files, checkpoints);
  };
  absl::Status installed = install();
  node_.metrics.ObserveCache(node_.cache.bytes());
  if (installed.ok() || absl::IsCancelled(installed)) return installed;
  ReportLine(absl::StrCat("the stored checkpoint of step ", checkpoint.step(),
                          " cannot be used, and the job goes on from what this node has: ", installed.message()));
  return absl::OkStatus();
}

v1::AttemptEnded Attempt::Publish() {
  if (stored_) return Ended(v1::AttemptEnded::FINISHED, "");
  upload_.GiveUp();
  const ArtifactForm form = FormOfArtifact(TextOf(last_event_.value("artifact", json::object()), "kind"));
  const std::string folder = absl::StrCat(RunFolder(), "/", form.folder);
  const absl::StatusOr<Manifest> manifest = ManifestOfFolder(folder);
  if (!manifest.ok()) return EndAfterError(manifest.status());
  if (const absl::Status stored = StoreArtifact(folder, *manifest); !stored.ok()) return EndAfterError(stored);
  v1::AttemptReport report;
  v1::ArtifactStored& message = *report.mutable_artifact_stored();
  message.set_kind(form.kind);
  for (const ManifestFile& file : manifest->files) {
    *message.add_files() = ToProto(file);
    node_.metrics.ObserveUploaded(file.bytes);
  }
  Report(std::move(report));
  return Ended(v1::AttemptEnded::FINISHED, "");
}

// Until the server has it all, refuses it for good, or the attempt is not wanted any more.
absl::Status Attempt::StoreArtifact(const std::string& folder, const Manifest& manifest) {
  std::set<std::string> stored = CopyIntoSharedStore(node_.shared_store, folder, manifest);
  absl::Status said;  // once for each reason
  Backoff backoff;
  for (int refused = 0;;) {
    const ArtifactUpload upload{.pass = pass_, .folder = folder, .manifest = manifest, .stored = stored};
    const absl::Status uploaded = node_.artifacts.Upload(upload, cancellation_);
    if (uploaded.ok() || cancellation_.cancelled()) return uploaded;
    if (absl::IsFailedPrecondition(uploaded)) {
      if (stored.empty()) {  // a newer attempt took its place
        Abandon();
        return uploaded;
      }
      stored.clear();  // or the shared folder is not the server's: send everything
      continue;
    }
    // The server is away or full: that passes. Anything else is refused for good.
    if (!absl::IsUnavailable(uploaded) && !absl::IsResourceExhausted(uploaded) && ++refused == kMaxRefusedUploads)
      return uploaded;
    if (!absl::IsUnavailable(uploaded) && uploaded != said)
      ReportLine(absl::StrCat("the result cannot be stored yet: ", uploaded.message()));
    said = uploaded;
    cancellation_.WaitFor(backoff.Next());
  }
}

// How the attempt ends after something on the way to or from the trainer failed.
v1::AttemptEnded Attempt::EndAfterError(const absl::Status& status) const {
  const Wish wish = this->wish();
  const bool finished = TextOf(last_event_, "event") == "finished";
  if (wish == Wish::kAbandon || (wish == Wish::kSuspend && finished)) return {};
  if (wish != Wish::kNone) return Ended(v1::AttemptEnded::STOPPED, "stopped");
  if (absl::IsFailedPrecondition(status)) {  // the server cannot give an input: no node can do better
    return Ended(v1::AttemptEnded::FAILED, std::string(status.message()), kStorage);
  }
  return Ended(v1::AttemptEnded::LOST, std::string(status.message()));
}

void Attempt::Report(v1::AttemptReport report) {
  const bool last = report.has_ended();
  stored_ |= report.has_artifact_stored();
  journal_->Append(std::move(report));
  if (last) {
    const std::lock_guard lock(mutex_);
    last_report_ = journal_->last_sequence();
  }
  journal_->Sync();
  node_.on_report();
  if (const absl::Status disk = journal_->status(); last && !disk.ok()) {
    std::fprintf(stderr, "luthier-worker: %s: reports were kept in memory: %s\n", name_.text().c_str(),
                 std::string(disk.message()).c_str());
  }
}

void Attempt::ReportLine(const std::string& line) {
  v1::AttemptReport report;
  report.mutable_log_lines()->add_lines(Sanitize(line));
  Report(std::move(report));
}

// --- Any thread.

void Attempt::MakeWish(Wish wish, absl::Duration grace) {
  {
    const std::lock_guard lock(mutex_);
    if (wish < wish_) return;  // the stronger one counts
    const absl::Time end = node_.steady_now() + grace;
    // A job that is cancelled while it is being paused has the patience of the cancellation.
    wish_end_ = wish == wish_ ? std::min(wish_end_, end) : end;
    wish_ = wish;
  }
  cancellation_.Cancel();
}

void Attempt::Stop(absl::Duration grace, bool job_goes_on) {
  if (!job_goes_on) upload_.GiveUp();
  // Nothing of it is of use any more, and ranks that wait for those of other nodes hear nothing.
  const bool at_once = !job_goes_on && order_.has_gang();
  MakeWish(Wish::kStop, at_once ? absl::ZeroDuration() : grace);
}
void Attempt::Suspend(absl::Duration grace) { MakeWish(Wish::kSuspend, grace); }
void Attempt::Abandon() {
  upload_.GiveUp();
  MakeWish(Wish::kAbandon, absl::ZeroDuration());
}

Attempt::Wish Attempt::wish() const {
  const std::lock_guard lock(mutex_);
  return wish_;
}

std::optional<v1::AttemptReport> Attempt::NextReport() {
  std::shared_ptr<Journal> journal;
  {
    const std::lock_guard lock(mutex_);
    if (wish_ == Wish::kAbandon) return std::nullopt;
    journal = journal_;
  }
  return journal == nullptr ? std::nullopt : journal->Next();
}

void Attempt::Rewind(int64_t acknowledged) {
  const std::lock_guard lock(mutex_);
  if (journal_ != nullptr) journal_->Rewind(acknowledged);
}

void Attempt::Acknowledge(int64_t sequence) {
  const std::lock_guard lock(mutex_);
  if (journal_ != nullptr) journal_->Acknowledge(sequence);
}

int64_t Attempt::backlog() const {
  const std::lock_guard lock(mutex_);
  return journal_ == nullptr ? 0 : journal_->backlog();
}

bool Attempt::settled() const {
  if (!done_) return false;
  const std::lock_guard lock(mutex_);
  return wish_ == Wish::kAbandon || (last_report_ > 0 && journal_->backlog() == 0);
}

}  // namespace luthier
