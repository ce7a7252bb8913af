#include "worker/agent/attempt.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/json_text.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/base/utf8.h"
#include "lib/wire/json_wire.h"
#include "worker/agent/backoff.h"
#include "worker/agent/run_checkpoints.h"
#include "worker/agent/shared_store.h"
#include "worker/agent/trainer_start.h"

namespace luthier {
namespace {

using nlohmann::json;

// How often a running trainer's attempt looks for wishes of the server.
constexpr absl::Duration kPoll = absl::Milliseconds(100);
// What the server may have to take in at once after a long absence. Beyond it, progress and log lines are left out.
constexpr int64_t kMaxBacklogBytes = int64_t{256} << 20;

// The operator of a node reads its log, and not those of the jobs: a full disk is theirs to mend.
void LogEnd(const AttemptPath& name, const v1::AttemptEnded& ended) {
  if (ended.outcome() != v1::AttemptEnded::LOST && ended.outcome() != v1::AttemptEnded::FAILED) return;
  const std::string first_line = ended.message().substr(0, ended.message().find('\n'));
  const std::string cause = ended.cause().empty() ? "" : absl::StrCat(" (", ended.cause(), ")");
  std::fprintf(stderr, "luthier-worker: %s ended %s%s: %s\n", name.text().c_str(),
               v1::AttemptEnded::Outcome_Name(ended.outcome()).c_str(), LogLine(cause).c_str(),
               LogLine(first_line).c_str());
}

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

}  // namespace

Attempt::Attempt(Node& node, AttemptPath name, v1::StartAttempt order)
    : node_(node),
      name_(std::move(name)),
      order_(std::move(order)),
      course_(order_),
      pass_{name_.text(), order_.credential()},
      upload_(UploadOptions(), node.artifacts),
      full_model_(TrainsWholeModel(order_)) {
  Begin();
}

Attempt::Attempt(Node& node, AttemptPath name)
    : node_(node), name_(std::move(name)), upload_(UploadOptions(), node.artifacts), full_model_(false) {
  OpenJournal();
}

Attempt::~Attempt() {
  Abandon();
  if (thread_.joinable()) thread_.join();
}

void Attempt::Begin() {
  done_ = false;
  thread_ = std::thread([this] {
    Live();
    done_ = true;
    node_.on_end();
  });
}

void Attempt::OpenJournal() {
  auto journal = std::make_shared<Journal>(Folder() + "/journal", name_.text());
  journal->ForEach([&](const v1::AttemptReport& report) {
    Tell(&AttemptCourse::Recall, report);
    if (report.has_trainer_event() && TellsOfCheckpoint(WordOf(report.trainer_event()).event))
      last_checkpoint_ = CheckpointOf(StructToJson(report.trainer_event()));
  });
  const std::lock_guard lock(mutex_);
  journal_ = std::move(journal);
}

// --- The attempt's thread.

void Attempt::Live() {
  if (journal_ == nullptr) {
    (void)CreateFolders(Folder());  // the journal tells if that failed, and goes on without a disk
    OpenJournal();
  }
  Holdings holdings;
  while (GoThrough(Ask(&AttemptCourse::stage), holdings)) {
  }
}

bool Attempt::GoThrough(AttemptCourse::Stage stage, Holdings& holdings) {
  switch (stage) {
    case AttemptCourse::Stage::kPrepare: Tell(&AttemptCourse::OnPrepared, Prepare(holdings)); return true;
    case AttemptCourse::Stage::kTrain: Tell(&AttemptCourse::OnTrained, Train()); return true;
    case AttemptCourse::Stage::kAwaitServer:
      cancellation_.WaitFor(node_.peer_patience);
      Tell(&AttemptCourse::OnAwaited);
      return true;
    case AttemptCourse::Stage::kPublish: Publish(); return true;
    case AttemptCourse::Stage::kStoreCheckpoint: StoreLastCheckpoint(); return true;
    case AttemptCourse::Stage::kReportEnd:
      // The next attempt of the job may be ordered as soon as the server hears of it.
      holdings.inputs.reset();
      holdings.run_folder.reset();
      ReportEnd();
      return true;
    case AttemptCourse::Stage::kLeft:
    case AttemptCourse::Stage::kOver: return false;
  }
  return false;
}

absl::Status Attempt::Prepare(Holdings& holdings) {
  LUTHIER_ASSIGN_OR_RETURN(holdings.run_folder, WaitForRunFolder());
  if (course_.left()) return absl::OkStatus();
  LUTHIER_RETURN_IF_ERROR(CreateFolders(RunFolder()));
  LUTHIER_ASSIGN_OR_RETURN(InputCache::Lease inputs, MakeInputsLocal());
  holdings.inputs.emplace(std::move(inputs));
  LUTHIER_RETURN_IF_ERROR(FetchCheckpoint());
  return WriteSpec(*holdings.inputs);
}

void Attempt::ReportEnd() {
  const v1::AttemptEnded ended = Ask(&AttemptCourse::ended);
  if (ended.outcome() != v1::AttemptEnded::OUTCOME_UNSPECIFIED) {
    node_.metrics.ObserveEnd(ended.outcome());
    LogEnd(name_, ended);
    v1::AttemptReport report;
    *report.mutable_ended() = ended;
    Report(std::move(report));
  }
  Tell(&AttemptCourse::OnEndReported);
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

TrainerEnd Attempt::Train() {
  const MemoryKills kills(node_.memory_kill_counters);
  AttemptLog log(Folder() + "/trainer.log", {}, node_.steady_now());
  AgentMetrics::Training training(node_.metrics);
  TrainerProcess::Output output;
  // Where another node leads, the trainer has nothing to say; that node's hears of one that hangs.
  StallWatch watch(leads() ? node_.stall_after : absl::InfiniteDuration(), node_.steady_now());
  output.on_event_line = [&](const std::string& line) { OnEventLine(line, log, training, watch); };
  output.on_log_line = [&](const std::string& line) { log.Add(line, node_.steady_now()); };
  const absl::StatusOr<std::unique_ptr<TrainerProcess>> trainer = TrainerProcess::Start(
      {TrainerCommand(node_.trainer, order_, SpecFile(), RunFolder()), TrainerEnvironment(order_, node_.inventory),
       absl::StrCat(node_.folder.root(), ":", name_.text())},
      std::move(output));
  if (!trainer.ok()) return {.failure = std::string(trainer.status().message())};

  TrainerEnd end;
  for (bool listening = true; listening;) {
    listening = (*trainer)->Listen(kPoll);
    const bool may_stall = Ask(&AttemptCourse::IsUndisturbed);
    if (listening && may_stall && watch.HasStalled(node_.steady_now())) {
      end.stalled = watch.Text() + " and was ended";
      (*trainer)->Kill();  // what hangs hears nothing
    }
    WriteDown(log);
    ReportStoredCheckpoint();
    Follow(**trainer);
  }
  const absl::StatusOr<TrainerProcess::Exit> exit = (*trainer)->End();
  if (!exit.ok()) return {.failure = std::string(exit.status().message())};
  end.code = exit->code;
  end.signal = exit->signal;
  end.killed = exit->killed;
  end.out_of_memory = kills.Happened();
  end.log_tail = log.Tail();
  return end;
}

void Attempt::Follow(TrainerProcess& trainer) {
  switch (Tell(&AttemptCourse::CommandFor, node_.steady_now())) {
    case AttemptCourse::Command::kNone: return;
    case AttemptCourse::Command::kCheckpoint: return trainer.AskForCheckpoint();
    case AttemptCourse::Command::kStop: return trainer.AskToStop();
    case AttemptCourse::Command::kKill: return trainer.Kill();
  }
}

void Attempt::OnEventLine(const std::string& line, AttemptLog& log, AgentMetrics::Training& training,
                          StallWatch& watch) {
  const json event = json::parse(line, nullptr, /*allow_exceptions=*/false);
  const std::string type = TextOf(event, "event");
  absl::StatusOr<google::protobuf::Struct> message = JsonToStruct(event);
  if (type.empty() || !message.ok()) return log.Add(line, node_.steady_now());
  if (leads()) watch.Observe(event, node_.steady_now());
  if (!Tell(&AttemptCourse::Hear, WordOf(*message))) return;
  training.Observe(event);
  if (type == "progress" && journal_->backlog_bytes() >= kMaxBacklogBytes) return;
  v1::AttemptReport report;
  *report.mutable_trainer_event() = *std::move(message);
  journal_->Append(std::move(report));
  if (TellsOfCheckpoint(type)) OnCheckpoint(event);
}

// What the trainer said and wrote since the last time.
void Attempt::WriteDown(AttemptLog& log) {
  std::optional<v1::LogLines> lines = log.Take();
  if (lines && leads() && journal_->backlog_bytes() < kMaxBacklogBytes) {
    v1::AttemptReport report;
    *report.mutable_log_lines() = *std::move(lines);
    journal_->Append(std::move(report));
  }
  const int64_t before = journal_->durable();
  journal_->Sync();
  if (journal_->durable() > before) node_.on_report();
  if (!Ask(&AttemptCourse::HasLastWord)) journal_->Compact();
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

void Attempt::StoreLastCheckpoint() {
  if (last_checkpoint_ && Ask(&AttemptCourse::OffersLastCheckpoint)) upload_.Offer(*last_checkpoint_);
  upload_.Finish(Ask(&AttemptCourse::StorePatience, node_.steady_now()));
  if (Ask(&AttemptCourse::wish) != Wish::kAbandon) ReportStoredCheckpoint();
  Tell(&AttemptCourse::OnCheckpointStored);
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

// Until the server has it all, refuses it for good, or the attempt is not wanted any more.
void Attempt::Publish() {
  upload_.GiveUp();
  const ArtifactForm form = FormOfArtifact(Ask(&AttemptCourse::artifact));
  const std::string folder = absl::StrCat(RunFolder(), "/", form.folder);
  const absl::StatusOr<Manifest> manifest = ManifestOfFolder(folder);
  if (!manifest.ok()) {
    return Tell(&AttemptCourse::OnUnreadableArtifact, manifest.status());
  }
  std::set<std::string> stored = CopyIntoSharedStore(node_.shared_store, folder, *manifest);
  absl::Status said;  // once for each reason
  Backoff backoff;
  while (true) {
    const ArtifactUpload upload{.pass = pass_, .folder = folder, .manifest = *manifest, .stored = stored};
    const absl::Status uploaded = node_.artifacts.Upload(upload, cancellation_);
    switch (Tell(&AttemptCourse::OnPublished, uploaded, stored.empty())) {
      case AttemptCourse::Publication::kStored: return ReportArtifact(form.kind, *manifest);
      case AttemptCourse::Publication::kOver: return;
      case AttemptCourse::Publication::kAgainWithAll: stored.clear(); continue;
      case AttemptCourse::Publication::kAgain: break;
    }
    if (!absl::IsUnavailable(uploaded) && uploaded != said)
      ReportLine(absl::StrCat("the result cannot be stored yet: ", uploaded.message()));
    said = uploaded;
    cancellation_.WaitFor(backoff.Next());
  }
}

void Attempt::ReportArtifact(v1::ModelVersion::Kind kind, const Manifest& manifest) {
  v1::AttemptReport report;
  v1::ArtifactStored& message = *report.mutable_artifact_stored();
  message.set_kind(kind);
  for (const ManifestFile& file : manifest.files) {
    *message.add_files() = ToProto(file);
    node_.metrics.ObserveUploaded(file.bytes);
  }
  Report(std::move(report));
}

void Attempt::Report(v1::AttemptReport report) {
  const bool last = report.has_ended();
  journal_->Append(std::move(report));
  journal_->Sync();
  node_.on_report();
  if (const absl::Status disk = journal_->status(); last && !disk.ok()) {
    std::fprintf(stderr, "luthier-worker: %s: reports were kept in memory: %s\n", name_.text().c_str(),
                 std::string(disk.message()).c_str());
  }
}

void Attempt::ReportLine(const std::string& line) {
  v1::AttemptReport report;
  report.mutable_log_lines()->add_lines(LogLine(line));
  Report(std::move(report));
}

// --- Any thread.

void Attempt::GoOn(const std::string& credential) {
  if (!Tell(&AttemptCourse::GoOn)) return;
  pass_ = {name_.text(), credential};
  Begin();
}

void Attempt::Stop(absl::Duration grace, bool job_goes_on) {
  Tell(&AttemptCourse::Stop, grace, job_goes_on, node_.steady_now());
  if (!job_goes_on) upload_.GiveUp();
  cancellation_.Cancel();
}

void Attempt::Suspend(absl::Duration grace) {
  Tell(&AttemptCourse::MakeWish, Wish::kSuspend, node_.steady_now() + grace);
  cancellation_.Cancel();
}

void Attempt::Abandon() {
  // Before the upload is given up: whoever waits for that must not report an end any more.
  Tell(&AttemptCourse::MakeWish, Wish::kAbandon, node_.steady_now());
  upload_.GiveUp();
  cancellation_.Cancel();
}

void Attempt::Checkpoint() { Tell(&AttemptCourse::AskForCheckpoint); }

bool Attempt::uses_devices() const { return Ask(&AttemptCourse::uses_devices); }

std::optional<v1::AttemptReport> Attempt::NextReport() {
  std::shared_ptr<Journal> journal;
  {
    const std::lock_guard lock(mutex_);
    if (course_.wish() == Wish::kAbandon) return std::nullopt;
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
  return course_.wish() == Wish::kAbandon || (course_.has_reported_end() && journal_->backlog() == 0);
}

}  // namespace luthier
