// Users: what they submit until they are answered, and what they ask of their jobs and of nodes.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/loop/recorded_jobs.h"
#include "tests/simulation/simulation.h"

namespace luthier {
namespace {

constexpr int kRequests = 24;

}  // namespace

void Simulation::SubmitLater() {
  for (int i = 0; i < kRequests; ++i) {
    auto request = std::make_shared<Request>();
    request->id = absl::StrCat("request-", i);
    request->body = absl::StrCat("body-", i);
    request->job.id = absl::StrCat("j", i);
    request->job.base_model = "base";
    // Characters, not literals: GCC 12 sees copies in those that overlap, and there are none.
    request->job.tenant.assign(1, random_.Chance(0.5) ? 'a' : 'b');
    request->job.service_class = kServiceClasses[static_cast<size_t>(random_.Below(3))];
    request->job.devices = 1 + (random_.Chance(0.3) ? random_.Below(4) : 0);
    if (random_.Chance(0.25)) {
      request->job.nodes = kNodesOfAGang;
      request->job.devices = 1 + random_.Below(2);
    }
    if (random_.Chance(0.8)) {
      request->job.tuning = random_.Chance(0.5) ? Tuning::kLora : Tuning::kFull;
      request->job.work_tokens = 1000 * (1 + random_.Below(100));
    }
    if (random_.Chance(0.2)) request->job.model = "shared-model";
    if (random_.Chance(0.1)) request->job.state = JobState::kHeld;
    if (i % 8 == 7) {
      request->sweep = std::exchange(request->job.id, request->job.id + "-1");
      request->job.state = JobState::kQueued;  // nobody would start the others
    }
    for (int k = 1; k <= kJobsOfASweep; ++k) {
      fates_[request->sweep.empty() ? request->job.id : absl::StrCat(request->sweep, "-", k)] = {
          .training = random_.Between(absl::Seconds(1), absl::Minutes(2)),
          .crash = random_.Chance(0.05)  ? 1.0
                   : random_.Chance(0.2) ? 0.3
                                         : 0.0,
          .user_error = random_.Chance(0.1)};
    }
    requests_.push_back(request);
    At(random_.Between(absl::ZeroDuration(), kStorm * 0.8), [this, request] { Submit(request); });
  }
}

// Again and again with the same id until it is answered, now and then twice at once.
void Simulation::Submit(const std::shared_ptr<Request>& request) {
  if (request->acknowledged) return;
  const int copies = ++request->tries > 1 || random_.Chance(0.8) ? 1 : 2;
  for (int copy = 0; copy < copies; ++copy) {
    if (!calm_ && random_.Chance(0.1)) continue;  // lost on the way
    At(random_.Between(absl::Milliseconds(1), absl::Milliseconds(200)), [this, request] {
      if (!state_) return;
      const auto job = std::make_shared<Job>(request->job);
      Post([this, request, job](State& state, absl::Time now) { return Create(state, *request, *job, now); },
           [this, request, job](const absl::Status& status) {
             if (absl::IsAlreadyExists(status)) request->job.model.clear();  // another tenant's: the user takes another
             if (!status.ok()) return;
             if (!calm_ && random_.Chance(0.1)) return;  // the answer is lost
             At(random_.Between(absl::Milliseconds(1), absl::Milliseconds(200)),
                [this, request, job, restorations = counts_.restorations] {
                  if (restorations != counts_.restorations)
                    return;  // the record of it may be lost: the user asks again
                  if (request->acknowledged && *request->acknowledged != job->id)
                    Violate("P2: one request made two jobs");
                  if (!request->acknowledged) ++counts_.jobs;
                  request->acknowledged = job->id;
                });
           });
    });
  }
  At(random_.Between(absl::Seconds(1), absl::Seconds(5)), [this, request] { Submit(request); });
}

absl::Status Simulation::Create(State& state, const Request& request, Job& job, absl::Time now) {
  const JobRequest identity{request.id, request.body};
  if (request.sweep.empty()) return CreateJob(state, *store_, job, identity, {.own = "spec"}, now);
  std::vector<Job> jobs(kJobsOfASweep, job);
  for (Job& of_sweep : jobs) of_sweep.max_parallel = kParallelOfASweep;
  for (int k = 0; k < kJobsOfASweep; ++k) jobs[static_cast<size_t>(k)].id = absl::StrCat(request.sweep, "-", k + 1);
  Sweep sweep{.id = request.sweep, .tenant = job.tenant};
  const absl::Status status =
      CreateSweep(state, *store_, sweep, jobs, identity, std::vector<SpecBytes>(kJobsOfASweep), now);
  job = jobs.front();
  return status;
}

void Simulation::AskSomething() {
  if (!calm_) {
    const std::string job = requests_[static_cast<size_t>(random_.Below(kRequests))]->job.id;
    static constexpr const char* kWishes[] = {"cancel",   "pause", "resume",  "start",     "retry",
                                              "priority", "drain", "undrain", "guarantee", "checkpoint"};
    Ask(job, kWishes[random_.Below(10)]);
    At(random_.Between(absl::Seconds(2), absl::Seconds(20)), [this] { AskSomething(); });
    return;
  }
  // What was left waiting for a user goes on.
  for (const auto& request : requests_) {
    Ask(request->job.id, "resume");
    Ask(request->job.id, "start");
  }
  Ask("", "undrain");
  At(absl::Minutes(2), [this] { AskSomething(); });
}

void Simulation::Ask(const std::string& job, const std::string& what) {
  if (!state_) return;
  const std::string node = absl::StrCat("n", random_.Below(kNodes));
  const bool requeue = random_.Chance(0.5);
  const int priority = random_.Below(5);
  Post(
      [this, job, what, node, requeue, priority](State& state, absl::Time now) -> absl::Status {
        if (what == "drain") return state.Drain(node, requeue, now);
        if (what == "undrain") {
          for (int i = 0; i < kNodes; ++i) (void)state.Undrain(absl::StrCat("n", i));
          return absl::OkStatus();
        }
        if (what == "guarantee") {
          return state.SetTenant({.id = std::string(1, requeue ? 'a' : 'b'), .guaranteed_devices = priority}, now);
        }
        if (absl::Status status = BringIn(state, *store_, job); !status.ok()) return status;
        if (what == "retry") {
          cancelled_.erase(job);
          failed_by_user_.erase(job);
          crashed_on_.erase(job);
          return state.Retry(job, now);
        }
        if (what == "cancel") return state.Cancel(job, now);
        if (what == "pause") return state.Pause(job, now);
        if (what == "resume") return state.Resume(job, now);
        if (what == "start") return state.StartHeld(job, now);
        if (what == "checkpoint") return state.Checkpoint(job);
        return state.Update(job, {.priority = priority}, now);
      },
      [this, job, what](const absl::Status& status) {
        if (!status.ok()) return;
        if (what != "priority" || job.empty()) Say(absl::StrCat("user: ", what, " ", job));
        if (what == "cancel") cancelled_.try_emplace(job, now_);
        if (what == "retry") crashed_on_.erase(job);  // what the same batch said before
      });
}

}  // namespace luthier
