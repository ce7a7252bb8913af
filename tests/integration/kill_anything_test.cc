// The promise to people who walk away: with a job running, kill -9 of the trainer, the agent, the server, or all of
// them, at a random moment. After a restart the job goes on from its last checkpoint and publishes exactly once; its
// history has no gap, and no process is left over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <thread>

#include "tests/support/service.h"

namespace luthier {
namespace {

using ::testing::IsEmpty;
using State = v1::FineTuningJob;

constexpr int kSteps = 500;
constexpr int kCheckpointEvery = 20;

constexpr int kTrainer = 1, kAgent = 2, kServer = 4;

class KillAnythingTest : public testing::Test {
 protected:
  KillAnythingTest() {
    const char* given = std::getenv("LUTHIER_SEED");
    seed_ = given != nullptr ? static_cast<unsigned>(std::stoul(given)) : std::random_device()();
    random_.seed(seed_);
    std::fprintf(stderr, "seed %u (LUTHIER_SEED repeats it)\n", seed_);
  }

  std::vector<pid_t> Trainers() const { return ProcessesWith(service_.AgentFolder() + "/jobs/"); }

  static nlohmann::json LongJob(int steps = kSteps) {
    return {{"training", {{"max_steps", steps}, {"batch_tokens", 200}, {"epochs", 10000}}},
            {"checkpoint", {{"every", kCheckpointEvery}}},
            {"resources", {{"threads", 1}}}};
  }

  // The steps from which the job's attempts went on.
  std::vector<int64_t> Starts(const std::string& job) {
    std::vector<int64_t> steps;
    for (const v1::JobEvent& event : service_.Events(job)) {
      if (event.type() != "started") continue;
      steps.push_back(static_cast<int64_t>(event.data().fields().at("resumed_step").number_value()));
    }
    return steps;
  }

  // As many events of `type` as the job has recorded.
  int Count(const std::string& job, const std::string& type) {
    int count = 0;
    for (const v1::JobEvent& event : service_.Events(job)) count += event.type() == type ? 1 : 0;
    return count;
  }

  void Kill(int targets) {
    std::vector<int> order = {kTrainer, kAgent, kServer};
    std::shuffle(order.begin(), order.end(), random_);
    for (const int target : order) {
      if ((targets & target) == 0) continue;
      if (target == kServer) service_.server.End(SIGKILL);
      if (target == kAgent) service_.agent.End(SIGKILL);
      if (target == kTrainer) {
        for (const pid_t pid : Trainers()) kill(pid, SIGKILL);
      }
    }
    if (!service_.server.Running()) service_.StartServer();
    if (!service_.agent.Running()) service_.StartAgent();
  }

  // Kills `targets` while `job` trains, somewhere within the half second after its first checkpoint.
  void KillWhileItTrains(const std::string& job, int targets) {
    ASSERT_TRUE(WaitFor([&] { return Count(job, "checkpoint") > 0; }, std::chrono::seconds(120)))
        << service_.Job(job).DebugString();
    const auto moment = std::chrono::milliseconds(std::uniform_int_distribution(0, 500)(random_));
    std::this_thread::sleep_for(moment);  // the moment is the point here; nothing is waited for
    ASSERT_EQ(Count(job, "finished"), 0) << "the job is too short for this machine";
    std::fprintf(stderr, "%s: killing%s%s%s, %d ms after a checkpoint\n", job.c_str(),
                 targets & kTrainer ? " trainer" : "", targets & kAgent ? " agent" : "",
                 targets & kServer ? " server" : "", static_cast<int>(moment.count()));
    Kill(targets);
  }

  void ExpectPublishedOnce(const std::string& id, bool resumed) {
    ASSERT_TRUE(WaitFor([&] { return service_.Job(id).end_time().seconds() > 0; }, std::chrono::seconds(240)))
        << service_.Job(id).DebugString();
    const v1::FineTuningJob job = service_.Job(id);
    EXPECT_EQ(job.state(), State::SUCCEEDED) << job.DebugString();
    EXPECT_EQ(job.progress().step(), kSteps);
    EXPECT_EQ(service_.Versions(id), 1);
    int64_t sequence = 0;
    for (const v1::JobEvent& event : service_.Events(id)) EXPECT_EQ(event.sequence(), ++sequence);
    EXPECT_EQ(sequence, job.last_event_sequence());
    EXPECT_EQ(Count(id, "published"), 1);
    const std::vector<int64_t> starts = Starts(id);
    ASSERT_FALSE(starts.empty());
    EXPECT_EQ(starts.front(), 0);
    if (resumed) {
      EXPECT_GE(starts.size(), 2u) << "the trainer was killed and nobody noticed";
      for (size_t i = 1; i < starts.size(); ++i) EXPECT_GE(starts[i], kCheckpointEvery) << "it began anew";
    } else {
      EXPECT_EQ(starts.size(), 1u) << "a server that restarts must not stop a training";
    }
    EXPECT_THAT(Trainers(), IsEmpty());
    EXPECT_TRUE(WaitFor([&] { return !std::filesystem::exists(service_.AgentFolder() + "/jobs/" + id); }))
        << "files were left over";
  }

  unsigned seed_ = 0;
  std::mt19937 random_;
  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

TEST_F(KillAnythingTest, AJobGoesOnAndPublishesOnceWhateverIsKilled) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  std::vector<int> rounds = {kTrainer, kAgent, kServer, kTrainer | kAgent | kServer, kAgent | kServer};
  std::shuffle(rounds.begin(), rounds.end(), random_);
  for (size_t round = 0; round < rounds.size(); ++round) {
    const std::string job = absl::StrCat("round-", round + 1);
    service_.Submit(job, LongJob());
    KillWhileItTrains(job, rounds[round]);
    if (HasFatalFailure()) return;
    ExpectPublishedOnce(job, /*resumed=*/rounds[round] != kServer);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(service_.agent.End(SIGTERM), 0);
  EXPECT_EQ(service_.server.End(SIGTERM), 0);
  EXPECT_THAT(ProcessesWith(folder_.path()), IsEmpty());
}

// The publication is the moment at which a second copy could appear: kills from the last word of the trainer on.
TEST_F(KillAnythingTest, AJobThatIsBeingPublishedIsPublishedOnce) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  for (const int targets : {kAgent, kServer, kAgent | kServer}) {
    const std::string job = absl::StrCat("publishing-", targets);
    service_.Submit(job, LongJob(kCheckpointEvery + 5));
    const std::string report = service_.AgentFolder() + "/jobs/" + job + "/run/report.json";
    ASSERT_TRUE(WaitFor([&] { return std::filesystem::exists(report) || Count(job, "finished") > 0; },
                        std::chrono::seconds(120)));
    std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution(0, 100)(random_)));
    Kill(targets);
    ASSERT_TRUE(WaitFor([&] { return service_.Job(job).end_time().seconds() > 0; }, std::chrono::seconds(120)))
        << service_.Job(job).DebugString();
    EXPECT_EQ(service_.Job(job).state(), State::SUCCEEDED) << service_.Job(job).DebugString();
    EXPECT_EQ(service_.Versions(job), 1);
    EXPECT_EQ(Count(job, "published"), 1);
  }
}

// One machine, one command: killed and started again like any other program.
TEST_F(KillAnythingTest, ALocalWorkerGoesOnAfterItsServerWasKilled) {
  service_.StartServer({"--with-local-worker"});
  service_.AddInputs();
  service_.Submit("j", LongJob());
  ASSERT_TRUE(WaitFor([&] { return Count("j", "checkpoint") > 0; }, std::chrono::seconds(120)));
  service_.server.End(SIGKILL);
  service_.StartServer({"--with-local-worker"});
  ASSERT_TRUE(WaitFor([&] { return service_.Job("j").end_time().seconds() > 0; }, std::chrono::seconds(240)))
      << service_.Job("j").DebugString();
  EXPECT_EQ(service_.Job("j").state(), State::SUCCEEDED) << service_.Job("j").DebugString();
  EXPECT_EQ(service_.Versions("j"), 1);
  EXPECT_GE(Starts("j").back(), kCheckpointEvery);
  EXPECT_EQ(service_.server.End(SIGTERM), 0);
  EXPECT_THAT(ProcessesWith(folder_.path()), IsEmpty());
}

// Its machine was moved, or a person pressed Ctrl-Z: what agents said meanwhile is heard before any lease ends.
TEST_F(KillAnythingTest, AServerThatWasStoppedForLongerThanALeaseLosesNoAttempt) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("j", LongJob());
  ASSERT_TRUE(WaitFor([&] { return Count("j", "checkpoint") > 0; }, std::chrono::seconds(120)));
  kill(service_.server.pid(), SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(35));  // a lease is 30 s, and nobody can be asked meanwhile
  kill(service_.server.pid(), SIGCONT);
  ExpectPublishedOnce("j", /*resumed=*/false);
  EXPECT_EQ(service_.Job("j").lost_attempts(), 0);
}

// An agent that hangs for longer than the lease, while its trainer trains: the job goes to another node, and when the
// agent wakes up, what it holds is of no use any more.
TEST_F(KillAnythingTest, AnAttemptWhoseAgentHungBeyondTheLeaseIsEndedAndPublishesNothing) {
  service_.StartServer();
  service_.StartAgent();
  service_.AddInputs();
  service_.Submit("j", LongJob());
  ASSERT_TRUE(WaitFor([&] { return Count("j", "checkpoint") > 0; }, std::chrono::seconds(120)));
  const BackgroundProgram other = service_.RunAgent("n2");
  kill(service_.agent.pid(), SIGSTOP);
  ASSERT_TRUE(WaitFor([&] { return service_.Job("j").node() == "nodes/n2"; }, std::chrono::seconds(90)))
      << service_.Job("j").DebugString();
  kill(service_.agent.pid(), SIGCONT);
  EXPECT_TRUE(WaitFor([&] { return Trainers().empty(); })) << "the first attempt's trainer still runs";
  // Its agent may first have to find out, by pings, that its connection is dead.
  EXPECT_TRUE(WaitFor([&] { return !std::filesystem::exists(service_.AgentFolder() + "/jobs/j/attempt-1"); },
                      std::chrono::seconds(90)));
  ASSERT_TRUE(WaitFor([&] { return service_.Job("j").end_time().seconds() > 0; }, std::chrono::seconds(240)));
  EXPECT_EQ(service_.Job("j").state(), State::SUCCEEDED) << service_.Job("j").DebugString();
  EXPECT_EQ(service_.Job("j").attempt(), 2);
  EXPECT_EQ(service_.Versions("j"), 1);
  // Both nodes are of use again.
  service_.Submit("one", LongJob());
  service_.Submit("two", LongJob());
  EXPECT_TRUE(
      WaitFor([&] { return Count("one", "started") > 0 && Count("two", "started") > 0; }, std::chrono::seconds(60)));
  EXPECT_NE(service_.Job("one").node(), service_.Job("two").node());
}

}  // namespace
}  // namespace luthier
