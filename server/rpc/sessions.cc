#include "server/rpc/sessions.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/gang_address.h"
#include "lib/base/status_macros.h"
#include "server/core/reason.h"
#include "server/rpc/backend.h"
#include "server/rpc/convert.h"
#include "server/rpc/status.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// Long enough for a checkpoint of a large model; the agent kills what is left afterwards.
constexpr int kStopGraceSeconds = 30;
// 30 s after a cancellation nothing of the job runs: what hears nothing is killed, which takes a while, too.
constexpr int kCancelGraceSeconds = 20;
// Reports of one agent that wait for their commit. An agent that was alone for an hour sends them by the thousand.
constexpr int kOutstandingReports = 16;
// A failed job may be retried from its checkpoints for this long; then its node forgets them.
constexpr absl::Duration kKeepFailed = absl::Hours(24);

constexpr int kMostGpus = 256;  // of a node
constexpr size_t kMostInstanceBytes = 64;

// What waits for an agent to read it: orders for 512 devices, each with the longest template.
constexpr size_t kMostUnreadBytes = size_t{128} << 20;
// What a message takes beside what it says.
constexpr size_t kBytesOfMessage = 200;

absl::Status ShuttingDown() {
  return WithReason(absl::UnavailableError("the server is shutting down; dial again"), "SHUTTING_DOWN");
}
size_t MemoryOf(const v1::SessionResponse& message) { return kBytesOfMessage + message.ByteSizeLong(); }

// Errors: those of the store, for an order to start.
absl::StatusOr<v1::SessionResponse> MessageOf(Store& store, const Access& access, const Effect& effect) {
  v1::SessionResponse message;
  if (effect.kind == Effect::Kind::kStop) {
    message.mutable_stop_attempt()->set_attempt(effect.attempt);
    message.mutable_stop_attempt()->mutable_grace()->set_seconds(effect.job_goes_on ? kStopGraceSeconds
                                                                                    : kCancelGraceSeconds);
    message.mutable_stop_attempt()->set_job_goes_on(effect.job_goes_on);
    return message;
  }
  if (effect.kind == Effect::Kind::kCheckpoint) {
    message.mutable_checkpoint_attempt()->set_attempt(effect.attempt);
    return message;
  }
  LUTHIER_ASSIGN_OR_RETURN(const SpecBytes spec, store.Spec(effect.job));
  v1::StartAttempt& start = *message.mutable_start_attempt();
  start = ParseStoredSpec(spec).start;
  start.set_attempt(effect.attempt);
  start.set_credential(access.CredentialOf(effect.attempt));
  for (int device : effect.devices) start.add_gpus(device);
  if (effect.gang) {
    start.mutable_gang()->set_node_rank(effect.gang->node_rank);
    start.mutable_gang()->set_meeting(effect.gang->meeting);
    start.mutable_gang()->set_address(effect.gang->address);
  }
  if (start.gang().node_rank() > 0) return message;
  const absl::StatusOr<std::string> checkpoint = store.Checkpoint(effect.job);
  if (checkpoint.ok()) {
    start.mutable_checkpoint()->ParseFromString(*checkpoint);
  } else if (!absl::IsNotFound(checkpoint.status())) {
    return checkpoint.status();  // without it the attempt would do again what another has done
  }
  return message;
}

// Without it the job would be starting for as long as its node is heard of. An agent that dials again is sent the order
// again, which helps where the store only had no room or time; but what cannot be read at all costs its attempt.
void LoseOrder(StateLoop& loop, std::shared_ptr<AgentSession> session, const Effect& order, const absl::Status& why) {
  std::fprintf(stderr, "luthierd: the order to start %s cannot be read: %s\n", order.attempt.c_str(),
               std::string(why.message()).c_str());
  if (absl::IsUnavailable(why)) return session->End(why);
  loop.Post(
      [attempt = *ParseAttemptName(order.attempt), node = order.node,
       text = absl::StrCat("its order could not be read: ", why.message())](State& state, absl::Time now) {
        state.LoseOrder(attempt, node, text, now);
        return absl::OkStatus();
      },
      [session = std::move(session)](const absl::Status& status) {
        if (!status.ok()) session->End(status);
      });
}

// A CPU node has one device, which no index names.
template <typename Message>
Processes ProcessesOf(const Message& message) {
  Processes processes;
  for (const v1::AttemptProcess& process : message.processes()) {
    std::vector<int>& devices = processes[process.attempt()];
    devices.assign(process.gpus().begin(), process.gpus().end());
    if (devices.empty()) devices.push_back(0);
  }
  return processes;
}

// Each device is a place in memory and in the metrics, each share one more: an agent may not have the server make them
// by the billion.
absl::Status CheckInventory(absl::string_view field, const v1::Inventory& inventory) {
  if (inventory.shares() < 0 || inventory.shares() > kMostShares) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shares: ", inventory.shares(),
                                                   " is out of range; give 1 to ", kMostShares, " (--shares)"));
  }
  if (inventory.gpus_size() > kMostGpus) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".gpus: ", inventory.gpus_size(), " given; a node has at most ", kMostGpus));
  }
  for (const v1::Gpu& gpu : inventory.gpus()) {
    if (gpu.index() >= 0 && gpu.index() < kMostGpus) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".gpus.index: ", gpu.index(), " is out of range; give the driver's, 0 to ", kMostGpus - 1));
  }
  return absl::OkStatus();
}

// Requires: CheckInventory() takes it. Devices have the numbers that the driver counts GPUs by: one that does not
// answer leaves a hole.
void SetDevices(const v1::Inventory& inventory, Node& node) {
  node.gpus = inventory.gpus_size() > 0;
  node.shares = std::max(1, inventory.shares());
  node.main_memory = inventory.memory_bytes();
  std::vector<int64_t> memory = {inventory.memory_bytes()};
  if (node.gpus) memory.clear();
  for (const v1::Gpu& gpu : inventory.gpus()) {
    const auto index = static_cast<size_t>(gpu.index());
    if (memory.size() <= index) memory.resize(index + 1, -1);
    memory[index] = gpu.memory_bytes();
  }
  for (const int64_t bytes : memory) {
    for (int share = 0; share < node.shares; ++share) node.memory.push_back(bytes / node.shares);
  }
  node.devices = static_cast<int>(node.memory.size());
  if (!node.gpus && inventory.memory_bytes() == 0) node.memory.clear();
}

Node NodeOf(const v1::Register& request) {
  Node node;
  node.id = request.node_id();
  SetDevices(request.inventory(), node);
  node.agent_version = request.agent_version();
  node.inventory = request.inventory().SerializeAsString();
  node.labels = {request.labels().begin(), request.labels().end()};
  node.gang_address = request.gang_address();
  node.gang_port = request.gang_port();
  node.processes = ProcessesOf(request);
  return node;
}

// An agent of before these fields speaks 1.
ProtocolRange ProtocolOf(const v1::Register& request) {
  return {.oldest = std::max(1, request.oldest_protocol()), .newest = std::max(1, request.protocol())};
}

// Other nodes dial it, and their trainers have it on their command lines.
absl::Status CheckGangAddressOf(const v1::Register& request) {
  if (request.gang_address().empty()) return absl::OkStatus();
  const absl::Status status = CheckGangAddress({request.gang_address(), request.gang_port()});
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("register.gang_address: ", status.message()));
}

// Whether nothing will run the job again, so that its checkpoints can go. False for a job that this server never knew:
// the agent may be talking to the wrong one.
bool IsOver(const State& state, Store& store, const std::string& id, absl::Time now) {
  if (const Job* job = state.Find(id)) return job->state == JobState::kSucceeded || job->state == JobState::kCancelled;
  const absl::StatusOr<std::optional<Job>> job = store.FindJob(id);
  if (!job.ok() || !*job) return false;
  return (*job)->state != JobState::kFailed || (*job)->end_time + kKeepFailed < now;
}

// Reactions and commands of the loop meet here; each holds `mutex_` for a moment. At most one read and one write are
// under way.
class Session final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>,
                      public AgentSession,
                      public std::enable_shared_from_this<Session> {
 public:
  Session(Backend& backend, Sessions& sessions, const grpc::ServerContextBase& context)
      : backend_(backend), sessions_(sessions), context_(context) {}

  void Begin(absl::StatusOr<Call> call) {
    self_ = shared_from_this();
    if (!call.ok()) return End(call.status());
    call_ = *std::move(call);
    StartRead(&request_);
  }

  void Send(v1::SessionResponse message) override {
    const std::lock_guard lock(mutex_);
    if (finished_ || end_) return;
    unread_bytes_ += MemoryOf(message);
    messages_.push_back(std::move(message));
    if (unread_bytes_ > kMostUnreadBytes) Drop();
    Advance();
  }
  void End(absl::Status status) override {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = std::move(status);
    Forget();
    Advance();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      End(absl::OkStatus());
    } else if (node_.empty()) {
      Register();
    } else if (absl::Status admitted = backend_.access.StillAdmits(call_); !admitted.ok()) {
      End(std::move(admitted));
    } else if (request_.has_heartbeat()) {
      Heartbeat();
    } else if (request_.has_report()) {
      Record();
    } else {
      End(absl::InvalidArgumentError("kind: a message after `register` must be a heartbeat or a report"));
    }
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok && !end_) end_ = absl::CancelledError("the agent went away");
    Advance();
  }
  void OnCancel() override { End(absl::CancelledError("the agent went away")); }
  void OnDone() override {
    if (!node_.empty() && sessions_.Remove(node_, self_)) {
      backend_.loop.Post(
          [node = node_](State& state, absl::Time) {
            state.Disconnect(node);
            return absl::OkStatus();
          },
          [](const absl::Status&) {});
    }
    backend_.metrics.ObserveCall("Session", end_->code(), absl::Now() - start_);
    const std::shared_ptr<Session> last = std::move(self_);
  }

 private:
  // Below: `mutex_` is held. The agent does not read. An end waits for what is being written, and that for the agent:
  // so the stream is cut.
  void Drop() {
    Forget();
    end_ = absl::ResourceExhaustedError("the agent does not read what it is sent; dial again");
    std::fprintf(stderr, "luthierd: the session of node %s ends: the agent does not read what it is sent\n",
                 node_.c_str());
    context_.TryCancel();
  }
  // An agent that dials again is sent anew what it has to hear.
  void Forget() {
    messages_.clear();
    unread_bytes_ = 0;
  }
  void Advance() {
    if (writing_ || finished_) return;
    if (end_) {
      if (asking_ > 0) return;  // they post to the loop, which is only sure to be there while this stream is
      finished_ = true;
      Finish(ToGrpcStatus(*end_));
    } else if (registered_ && !messages_.empty()) {
      writing_ = true;
      response_ = std::move(messages_.front());
      messages_.pop_front();
      unread_bytes_ -= MemoryOf(response_);
      StartWrite(&response_);
    }
  }

  void ReadOn() {
    const std::lock_guard lock(mutex_);
    if (!finished_) StartRead(&request_);
  }

  void Register() {
    if (!request_.has_register_())
      return End(absl::InvalidArgumentError("register: the first message of a session must carry it"));
    const auto request = std::make_shared<v1::Register>(std::move(*request_.mutable_register_()));
    if (absl::Status status = CheckId("register.node_id", request->node_id(), /*dots=*/true); !status.ok())
      return End(status);
    if (absl::Status status = CheckGangAddressOf(*request); !status.ok()) return End(status);
    if (absl::Status status = CheckInventory("register.inventory", request->inventory()); !status.ok())
      return End(status);
    const absl::StatusOr<int> protocol = AgreeOnProtocol(ProtocolOf(*request), sessions_.protocol());
    if (!protocol.ok()) return End(WithReason(protocol.status(), "NO_COMMON_PROTOCOL"));
    if (!call_.node.empty() && call_.node != request->node_id()) return RefuseNode(request->node_id());
    node_ = request->node_id();
    if (request->instance().size() > kMostInstanceBytes)
      return End(absl::InvalidArgumentError(absl::StrCat("register.instance: has ", request->instance().size(),
                                                         " bytes; give at most ", kMostInstanceBytes)));
    if (absl::Status added = sessions_.Add(node_, request->instance(), shared_from_this()); !added.ok())
      return End(added);
    ObserveInventory(request->inventory());
    const auto response = std::make_shared<v1::SessionResponse>();
    backend_.loop.Post(
        [this, self = shared_from_this(), request, response, protocol = *protocol](State& state, absl::Time now) {
          *response->mutable_registered() = Registered(state, *request, protocol, now);
          return absl::OkStatus();
        },
        [this, self = shared_from_this(), response](const absl::Status& status) {
          if (!status.ok()) return End(status);
          {
            const std::lock_guard lock(mutex_);
            registered_ = true;
            unread_bytes_ += MemoryOf(*response);
            messages_.push_front(std::move(*response));  // what was sent meanwhile waits behind it
            Advance();
          }
          ReadOn();
        });
  }

  void RefuseNode(const std::string& node) {
    const absl::Status status = WithReason(
        absl::PermissionDeniedError(absl::StrCat("register.node_id: ", node, " is not ", call_.node,
                                                 ", the only node of this token; start the agent with --node-id ",
                                                 call_.node, ", or with a token for ", node)),
        "PERMISSION_DENIED");
    call_.subject = "nodes/" + node;
    backend_.access.Note("Session", call_, status);
    End(status);
  }

  // Loop thread.
  v1::Registered Registered(State& state, const v1::Register& request, int protocol, absl::Time now) {
    v1::Registered registered;
    registered.set_protocol(protocol);
    registered.mutable_heartbeat_interval()->set_seconds(absl::ToInt64Seconds(kHeartbeatInterval));
    registered.mutable_lease()->set_seconds(absl::ToInt64Seconds(kLease));
    const std::vector<std::string> attempts(request.attempts().begin(), request.attempts().end());
    Node node = NodeOf(request);
    node.outdated = protocol < sessions_.protocol().newest;
    const std::vector<std::string> stale = state.Register(std::move(node), attempts, now);
    registered.mutable_stale_attempts()->Add(stale.begin(), stale.end());
    for (const std::string& name : attempts) {
      const std::optional<AttemptId> attempt = ParseAttemptName(name);
      if (!attempt || !state.IsCurrent(*attempt) || absl::c_linear_search(stale, name)) continue;
      const Job& job = *state.Find(attempt->job);
      v1::ReportAck& ack = *registered.add_acks();
      ack.set_attempt(name);
      ack.set_sequence(job.node == node_ ? job.last_report : 0);  // only reports of the leading node are counted
      (*registered.mutable_credentials())[name] = backend_.access.CredentialOf(name);
    }
    for (const std::string& name : request.kept_jobs()) {
      if (IsOver(state, backend_.store, std::string(absl::StripPrefix(name, "jobs/")), now))
        registered.add_jobs_over(name);
    }
    return registered;
  }

  void Heartbeat() {
    const v1::Heartbeat& heartbeat = request_.heartbeat();
    std::string inventory;
    if (heartbeat.has_inventory()) {
      if (absl::Status status = CheckInventory("heartbeat.inventory", heartbeat.inventory()); !status.ok())
        return End(status);
      ObserveInventory(heartbeat.inventory());
      inventory = heartbeat.inventory().SerializeAsString();
    }
    backend_.loop.PostIdly([node = node_, leaving = heartbeat.leaving(), processes = ProcessesOf(heartbeat),
                            inventory = std::move(inventory)](State& state, absl::Time now) {
      state.Heartbeat(node, inventory, processes, leaving, now);
      return absl::OkStatus();
    });
    ReadOn();
  }

  void ObserveInventory(const v1::Inventory& inventory) {
    backend_.planner.SetNode(node_, inventory);
    std::vector<GpuMemory> gpus;
    for (const v1::Gpu& gpu : inventory.gpus())
      gpus.push_back({gpu.index(), gpu.memory_used_bytes(), gpu.memory_bytes()});
    backend_.metrics.ObserveGpus(node_, gpus);
  }

  // `stored`: an ArtifactStored or a CheckpointStored. Errors: UNAVAILABLE if the store cannot say.
  template <typename Stored>
  absl::StatusOr<bool> AllStored(const Stored& stored) {
    for (const v1::ModelFile& file : stored.files()) {
      const absl::StatusOr<int64_t> size = backend_.artifacts.BlobSize(file.sha256());
      if (absl::IsUnavailable(size.status())) return size.status();
      if (!size.ok() || *size != file.size_bytes()) return false;
    }
    return stored.files_size() > 0;
  }

  // A report on its way through the loop, and what became of it.
  struct Recording {
    v1::AttemptReport message;
    absl::StatusOr<AgentReport> read;
    bool current = false;                      // its attempt is the current one
    bool fresh = false;                        // of the leading node, and it had not been recorded before
    bool job_over = false;                     // its job will not run again
    std::unique_ptr<BlobPins> pins = nullptr;  // of a checkpoint, until the record names its files
  };

  void Record() {
    const auto recording =
        std::make_shared<Recording>(Recording{std::move(*request_.mutable_report()), absl::UnknownError("")});
    recording->read = ReadReport(recording->message, node_);
    const bool names_files = recording->message.has_artifact_stored() || recording->message.has_checkpoint_stored();
    if (!names_files || !recording->read.ok()) return Post(recording);
    // The store may be far away, and no reaction waits for it. The next report is not read before, so order is kept.
    {
      const std::lock_guard lock(mutex_);
      ++asking_;
    }
    backend_.storing.Post([this, self = shared_from_this(), recording] {
      const absl::Status checked =
          recording->message.has_artifact_stored() ? CheckArtifact(*recording) : KeepCheckpoint(*recording);
      if (checked.ok()) {
        Post(recording);
      } else {
        End(checked);  // the agent dials again and sends it once more
      }
      const std::lock_guard lock(mutex_);
      --asking_;
      Advance();
    });
  }

  void Post(const std::shared_ptr<Recording>& recording) {
    bool read_on;
    {
      const std::lock_guard lock(mutex_);
      read_on = ++outstanding_ < kOutstandingReports;
    }
    backend_.loop.Post(
        [this, self = shared_from_this(), recording](State& state, absl::Time now) {
          return RecordInState(state, *recording, now);
        },
        [this, self = shared_from_this(), recording](const absl::Status& status) { OnRecorded(*recording, status); });
    if (read_on) ReadOn();
  }

  absl::Status CheckArtifact(Recording& recording) {
    LUTHIER_ASSIGN_OR_RETURN(const bool stored, AllStored(recording.message.artifact_stored()));
    if (stored) return absl::OkStatus();
    recording.read->report.input = JobInput::kAttemptLost;
    recording.read->report.message = "files of its artifact are not in the store";
    return absl::OkStatus();
  }

  // A report that arrives long after its upload may name files that are no longer there; then an older checkpoint has
  // to do.
  absl::Status KeepCheckpoint(Recording& recording) {
    const v1::CheckpointStored& checkpoint = recording.message.checkpoint_stored();
    recording.pins = std::make_unique<BlobPins>(backend_.artifacts);
    for (const v1::ModelFile& file : checkpoint.files()) recording.pins->Add(file.sha256());
    LUTHIER_ASSIGN_OR_RETURN(const bool stored, AllStored(checkpoint));
    if (stored) return absl::OkStatus();
    recording.read->report.checkpoint.reset();
    recording.read->report.events.clear();
    return absl::OkStatus();
  }

  // Loop thread.
  absl::Status RecordInState(State& state, Recording& recording, absl::Time now) {
    if (!recording.read.ok()) return recording.read.status();
    if (refused_) return absl::AbortedError("a report before this one was refused; register again and send both");
    const AttemptId attempt = recording.read->report.attempt;
    const Job* job = state.Find(attempt.job);
    recording.fresh = job != nullptr && job->node == node_ && recording.message.sequence() > job->last_report;
    Report report = CompleteReport(*recording.read, job != nullptr ? job->report : "");
    recording.current = state.Record(std::move(report), now);
    recording.job_over = IsOver(state, backend_.store, attempt.job, now);
    return absl::OkStatus();
  }

  // Loop thread, after the commit.
  void OnRecorded(const Recording& recording, const absl::Status& status) {
    // A report that could not be recorded (the disk was full) ends the session, and what is under way behind it is not
    // taken either, or there would be a gap for ever. The agent dials again and sends them all.
    if (!status.ok() && !absl::IsInvalidArgument(status)) {
      refused_ = true;
      return End(status);
    }
    const v1::AttemptReport& message = recording.message;
    if (recording.current && recording.fresh && recording.read->progress) ObserveProgress(*recording.read);
    v1::SessionResponse ack;
    ack.mutable_report_ack()->set_attempt(message.attempt());
    ack.mutable_report_ack()->set_sequence(message.sequence());
    ack.mutable_report_ack()->set_job_over(recording.job_over);
    Send(std::move(ack));
    // Of one whose attempt has no name nothing follows.
    if (status.ok() && !recording.current && !message.has_ended()) {
      v1::SessionResponse stop;
      stop.mutable_stop_attempt()->set_attempt(message.attempt());
      Send(std::move(stop));
    }
    bool read_on;
    {
      const std::lock_guard lock(mutex_);
      read_on = outstanding_-- == kOutstandingReports;
    }
    if (read_on) ReadOn();
  }

  void ObserveProgress(const AgentReport& read) {
    const v1::JobProgress& progress = *read.progress;
    backend_.metrics.ObserveProgress(read.report.attempt.job, progress.tokens_per_second(),
                                     FromProto(progress.step_duration()), progress.tokens());
  }

  Backend& backend_;
  Sessions& sessions_;
  const grpc::ServerContextBase& context_;  // until the stream is finished
  const absl::Time start_ = absl::Now();
  Call call_;
  std::shared_ptr<Session> self_;  // until gRPC is done with it
  v1::SessionRequest request_;     // of the read under way
  v1::SessionResponse response_;   // of the write under way
  std::string node_;               // set once, before the session is known to others
  bool refused_ = false;           // one of its reports was; loop thread only

  std::mutex mutex_;  // of what follows
  std::deque<v1::SessionResponse> messages_;
  size_t unread_bytes_ = 0;  // of these
  bool registered_ = false, writing_ = false, finished_ = false;
  int asking_ = 0;  // tasks that ask the store for it
  int outstanding_ = 0;
  std::optional<absl::Status> end_;
};

}  // namespace

absl::Status Sessions::Add(const std::string& node, const std::string& instance,
                           std::shared_ptr<AgentSession> session) {
  Connected before;
  bool closed;
  {
    const std::lock_guard lock(mutex_);
    closed = closed_;
    Connected& connected = sessions_[node];
    if (!instance.empty() && !connected.instance.empty() && connected.instance != instance) {
      const std::string what =
          absl::StrCat("register.node_id: ", node,
                       " is connected already, with another data folder; give each agent a --node-id of its own");
      // It dials again every few seconds.
      if (!std::exchange(connected.other_was_told, true)) std::fprintf(stderr, "luthierd: %s\n", what.c_str());
      return WithReason(absl::AlreadyExistsError(what), "NODE_ID_TAKEN");
    }
    before = std::exchange(connected, Connected{.instance = instance, .session = session});
  }
  if (before.session != nullptr)
    before.session->End(absl::AbortedError("a newer session of this node replaced this one"));
  if (closed) session->End(ShuttingDown());
  return absl::OkStatus();
}

bool Sessions::Remove(const std::string& node, const std::shared_ptr<AgentSession>& session) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(node);
  if (found == sessions_.end() || found->second.session != session) return false;
  sessions_.erase(found);
  return true;
}

void Sessions::Close() {
  std::map<std::string, Connected> sessions;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    sessions = sessions_;
  }
  for (const auto& [node, connected] : sessions) {
    connected.session->End(ShuttingDown());
  }
}

void Sessions::Send(StateLoop& loop, Store& store, const Access& access, const std::vector<Effect>& effects) {
  for (const Effect& effect : effects) {
    std::shared_ptr<AgentSession> session;
    {
      const std::lock_guard lock(mutex_);
      const auto found = sessions_.find(effect.node);
      if (found == sessions_.end()) continue;
      session = found->second.session;
    }
    if (effect.kind == Effect::Kind::kReconnect) {
      session->End(absl::AbortedError("the lease of this node ran out; register again"));
    } else if (absl::StatusOr<v1::SessionResponse> message = MessageOf(store, access, effect); message.ok()) {
      session->Send(*std::move(message));
    } else {
      LoseOrder(loop, std::move(session), effect, message.status());
    }
  }
}

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* StartSession(Backend& backend, Sessions& sessions,
                                                                               const grpc::ServerContextBase& context) {
  const auto session = std::make_shared<Session>(backend, sessions, context);
  session->Begin(backend.access.Admit(context, "Session"));
  return session.get();
}

}  // namespace luthier
