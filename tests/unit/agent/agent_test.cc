// The agent between orders and reports; the test plays the server.
#include "worker/agent/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>

#include "lib/wire/agent_protocol.h"
#include "prometheus/text_serializer.h"
#include "tests/support/fake_server_files.h"
#include "tests/support/shell_trainer.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

namespace fs = std::filesystem;

class AgentTest : public testing::Test {
 protected:
  void Trainer(const std::string& script) { WriteTrainer(temp_.path() + "/trainer", script); }
  void Open() {
    agent_.reset();
    Agent::Options options;
    options.node_id = "n1";
    options.trainer = temp_.path() + "/trainer";
    options.max_kept_bytes = max_kept_bytes_;
    options.gang_address = gang_address_;
    options.heartbeat_now = [this] { ++heartbeats_wanted_; };
    agent_ = std::make_unique<Agent>(options, folder_, *cache_, server_, metrics_, inventory_);
  }
  void Order(const std::string& attempt) {
    v1::StartAttempt order;
    order.set_attempt(attempt);
    order.set_trainer_spec_json("{}");
    agent_->OnStart(order);
  }
  void Stop(const std::string& attempt) {
    v1::StopAttempt order;
    order.set_attempt(attempt);
    order.mutable_grace()->set_seconds(10);
    agent_->OnStop(order);
  }
  // Takes reports as a session would, until one of `attempt` is its last.
  v1::AttemptEnded WaitForEnd(const std::string& attempt) {
    v1::AttemptEnded ended;
    EXPECT_TRUE(WaitFor([&] {
      while (const std::optional<v1::AttemptReport> report = agent_->NextReport()) {
        last_[report->attempt()] = report->sequence();
        if (report->attempt() != attempt || !report->has_ended()) continue;
        ended = report->ended();
        return true;
      }
      return false;
    })) << attempt;
    return ended;
  }
  void Acknowledge(const std::string& attempt, bool job_over) {
    v1::ReportAck ack;
    ack.set_attempt(attempt);
    ack.set_sequence(last_[attempt]);
    ack.set_job_over(job_over);
    agent_->OnAck(ack);
  }
  std::vector<std::string> Attempts() {
    const v1::Register message = agent_->Registration();
    return {message.attempts().begin(), message.attempts().end()};
  }
  std::vector<std::string> KeptJobs() {
    const v1::Register message = agent_->Registration();
    return {message.kept_jobs().begin(), message.kept_jobs().end()};
  }
  bool WaitForNoAttempts() {
    return WaitFor([&] { return Attempts().empty(); });
  }
  bool WaitForNoFiles(const std::string& job) {
    return WaitFor([&] { return !fs::exists(folder_.JobFolder(job)); });
  }

  TempFolder temp_;
  DataFolder folder_ = *DataFolder::Open(temp_.path() + "/data");
  FakeServerFiles server_;
  std::unique_ptr<InputCache> cache_ = *InputCache::Open({.folder = folder_.CacheFolder()}, server_);
  prometheus::Registry registry_;
  AgentMetrics metrics_{registry_, "test"};
  Inventory inventory_{nullptr};
  int64_t max_kept_bytes_ = 1 << 20;
  GangAddress gang_address_;
  std::atomic<int> heartbeats_wanted_ = 0;
  std::map<std::string, int64_t> last_;
  std::unique_ptr<Agent> agent_;
};

TEST_F(AgentTest, RunsAnOrderOnceAndRemovesEverythingWhenTheJobIsOver) {
  Trainer(kFinish);
  Open();
  Order("jobs/j/attempts/1");
  Order("jobs/j/attempts/1");
  EXPECT_THAT(Attempts(), ElementsAre("jobs/j/attempts/1"));
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::FINISHED);
  Acknowledge("jobs/j/attempts/1", /*job_over=*/true);
  EXPECT_TRUE(WaitForNoAttempts());
  EXPECT_TRUE(WaitForNoFiles("j"));
  EXPECT_EQ(server_.uploads, 1);
}

TEST_F(AgentTest, KeepsTheCheckpointsOfAJobThatIsNotOver) {
  Trainer(kTrainForEver);
  Open();
  Order("jobs/j/attempts/1");
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  Stop("jobs/j/attempts/1");
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::STOPPED);
  Acknowledge("jobs/j/attempts/1", /*job_over=*/false);
  EXPECT_TRUE(WaitForNoAttempts());
  EXPECT_TRUE(WaitFor([&] { return KeptJobs() == std::vector<std::string>{"jobs/j"}; }));
  v1::Registered registered;
  registered.add_jobs_over("jobs/j");
  agent_->OnRegistered(registered);
  EXPECT_TRUE(WaitForNoFiles("j"));
}

// Nobody tells it that the job is over: its checkpoints and its result are with another node.
TEST_F(AgentTest, KeepsNothingOfAJobThatAnotherNodeLeads) {
  Trainer("mkdir -p \"$5/checkpoints/step-1\"");
  Open();
  v1::StartAttempt order;
  order.set_attempt("jobs/j/attempts/1");
  order.set_trainer_spec_json("{}");
  order.mutable_gang()->set_node_rank(1);
  agent_->OnStart(order);
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::STOPPED);
  EXPECT_THAT(KeptJobs(), IsEmpty());
  Acknowledge("jobs/j/attempts/1", /*job_over=*/false);
  EXPECT_TRUE(WaitForNoAttempts());
  EXPECT_TRUE(WaitForNoFiles("j"));
}

TEST_F(AgentTest, SaysWhichVersionsOfTheProtocolItSpeaks) {
  Open();
  EXPECT_EQ(agent_->Registration().protocol(), kAgentProtocol.newest);
  EXPECT_EQ(agent_->Registration().oldest_protocol(), kAgentProtocol.oldest);
}

TEST_F(AgentTest, SaysWhereOtherNodesReachItIfItIsToldTo) {
  Open();
  EXPECT_EQ(agent_->Registration().gang_address(), "");
  gang_address_ = {"10.0.0.2", 29400};
  Open();
  EXPECT_EQ(agent_->Registration().gang_address(), "10.0.0.2");
  EXPECT_EQ(agent_->Registration().gang_port(), 29400);
}

TEST_F(AgentTest, ANewerAttemptOfAJobEndsTheOlderOneFirst) {
  // Says so if the trainer before it still lives.
  Trainer(
      R"sh(if [ -f "$5/pid" ] && kill -0 "$(cat "$5/pid")"; then echo '{"event":"failed","cause":"INTERNAL","message":"two at once"}'; fi
echo $$ > "$5/pid"
)sh" + std::string(kTrainForEver));
  Open();
  Order("jobs/j/attempts/1");
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  fs::remove(folder_.RunFolder("j") + "/checkpoints/step-1");
  Order("jobs/j/attempts/2");
  EXPECT_TRUE(WaitFor([&] { return Attempts() == std::vector<std::string>{"jobs/j/attempts/2"}; }));
  EXPECT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  Stop("jobs/j/attempts/2");
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/2").outcome(), v1::AttemptEnded::STOPPED);
}

TEST_F(AgentTest, ForgetsWhatTheServerCallsStale) {
  Trainer(kTrainForEver);
  Open();
  Order("jobs/j/attempts/1");
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  v1::Registered registered;
  registered.add_stale_attempts("jobs/j/attempts/1");
  agent_->OnRegistered(registered);
  EXPECT_TRUE(WaitForNoAttempts());
  EXPECT_FALSE(agent_->NextReport());
  EXPECT_TRUE(fs::exists(folder_.RunFolder("j"))) << "a newer attempt may come back here";
}

// Whoever places attempts hears of a trainer that still dies, and at once of its end.
TEST_F(AgentTest, NamesAStaleAttemptAndItsGpusUntilNoProcessOfItIsLeft) {
  Trainer(kTrainForEver);
  Open();
  v1::StartAttempt order;
  order.set_attempt("jobs/j/attempts/1");
  order.set_trainer_spec_json("{}");
  order.add_gpus(2);
  agent_->OnStart(order);
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  const v1::Register registration = agent_->Registration();
  ASSERT_EQ(registration.processes_size(), 1);
  EXPECT_EQ(registration.processes(0).attempt(), "jobs/j/attempts/1");
  EXPECT_THAT(registration.processes(0).gpus(), ElementsAre(2));
  EXPECT_EQ(agent_->NextHeartbeat().processes_size(), 1);
  EXPECT_EQ(heartbeats_wanted_, 0);
  v1::Registered registered;
  registered.add_stale_attempts("jobs/j/attempts/1");
  agent_->OnRegistered(registered);
  EXPECT_TRUE(WaitFor([&] { return heartbeats_wanted_ == 1; }));
  EXPECT_EQ(agent_->NextHeartbeat().processes_size(), 0);
}

TEST_F(AgentTest, NamesNoAttemptAnyMoreThatReportsItsEnd) {
  Trainer(kFinish);
  Open();
  Order("jobs/j/attempts/1");
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::FINISHED);
  EXPECT_EQ(agent_->NextHeartbeat().processes_size(), 0);
}

TEST_F(AgentTest, ReportsAnAttemptThatItDoesNotKnowAsEnded) {
  Open();
  Stop("jobs/never/attempts/3");
  const std::optional<v1::AttemptReport> report = agent_->NextReport();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->attempt(), "jobs/never/attempts/3");
  EXPECT_EQ(report->sequence(), 1);
  EXPECT_EQ(report->ended().outcome(), v1::AttemptEnded::STOPPED);
}

TEST_F(AgentTest, IgnoresNamesThatAreNoAttempts) {
  Open();
  Order("jobs/../../etc/attempts/1");
  EXPECT_THAT(Attempts(), IsEmpty());
}

TEST_F(AgentTest, ReportsAttemptsOfAnEarlierAgentOnceTheServerWantsThem) {
  Trainer(kTrainForEver);
  Open();
  Order("jobs/j/attempts/1");
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  Open();  // the first one's end kills the trainer without a word, as a crash does
  EXPECT_THAT(Attempts(), ElementsAre("jobs/j/attempts/1"));
  v1::Registered registered;
  registered.add_acks()->set_attempt("jobs/j/attempts/1");
  agent_->OnRegistered(registered);
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::LOST);
}

TEST_F(AgentTest, RemovesTheRunFoldersLongestUnusedWhenTheyTakeTooMuch) {
  max_kept_bytes_ = 25000;
  const auto now = fs::file_time_type::clock::now();
  for (int age = 1; age <= 4; ++age) {
    const std::string job = "age-" + std::to_string(age);
    fs::create_directories(folder_.RunFolder(job) + "/checkpoints");
    WriteText(folder_.RunFolder(job) + "/checkpoints/weights", std::string(10000, 'w'));
    fs::last_write_time(folder_.RunFolder(job) + "/checkpoints", now - std::chrono::hours(age));
  }
  Open();
  EXPECT_TRUE(WaitForNoFiles("age-4"));
  EXPECT_TRUE(WaitForNoFiles("age-3"));
  EXPECT_TRUE(WaitFor([&] { return KeptJobs() == std::vector<std::string>({"jobs/age-2", "jobs/age-1"}); }));
}

TEST_F(AgentTest, LeavesWithinTheGraceAndStartsNothingAnyMore) {
  Trainer(kTrainForEver);
  Open();
  Session session(DialServer("127.0.0.1:1"));  // nobody is there
  Order("jobs/j/attempts/1");
  ASSERT_TRUE(WaitFor([&] { return fs::exists(folder_.RunFolder("j") + "/checkpoints/step-1"); }));
  agent_->Leave(session, absl::Seconds(10), absl::Seconds(10));
  EXPECT_TRUE(agent_->NextHeartbeat().leaving());
  Order("jobs/other/attempts/1");
  EXPECT_THAT(Attempts(), ElementsAre("jobs/j/attempts/1"));
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::STOPPED);
}

TEST_F(AgentTest, MeasuresWhatItsTrainersDoWithoutNamingJobs) {
  Trainer(std::string(kStarted) + R"(echo '{"event":"progress","tokens":100,"tokens_per_second":50,"step_seconds":0.2}'
echo '{"event":"progress","tokens":180,"tokens_per_second":40,"step_seconds":0.2}'
echo '{"event":"checkpoint","step":2,"bytes":4096,"seconds":0.01}'
)" + kFinish);
  Open();
  Order("jobs/j/attempts/1");
  WaitForEnd("jobs/j/attempts/1");
  const std::string text = prometheus::TextSerializer().Serialize(registry_.Collect());
  EXPECT_THAT(text, HasSubstr("luthier_train_tokens_total 80\n"));
  EXPECT_THAT(text, HasSubstr("luthier_train_step_seconds_count 2\n"));
  EXPECT_THAT(text, HasSubstr("luthier_train_tokens_per_second 0\n"));
  EXPECT_THAT(text, HasSubstr("luthier_attempts_running 0\n"));
  EXPECT_THAT(text, HasSubstr("luthier_attempts_total{outcome=\"finished\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("luthier_attempts_total{outcome=\"lost\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("luthier_checkpoint_bytes_total 4096\n"));
  EXPECT_THAT(text, HasSubstr("luthier_checkpoint_seconds_count{op=\"save\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("jobs/")));
}

// The trainer says which command it read.
TEST_F(AgentTest, PassesAnOrderForACheckpointOn) {
  Trainer(std::string(kStarted) +
          R"(read command; echo "$command" | grep -q checkpoint && echo '{"event":"checkpoint","step":1}'
read command; echo '{"event":"stopped","step":1}'
)");
  Open();
  Order("jobs/j/attempts/1");
  v1::CheckpointAttempt order;
  order.set_attempt("jobs/j/attempts/1");
  agent_->OnCheckpoint(order);
  order.set_attempt("jobs/unknown/attempts/1");
  agent_->OnCheckpoint(order);
  std::string events;
  EXPECT_TRUE(WaitFor([&] {
    while (const std::optional<v1::AttemptReport> report = agent_->NextReport()) {
      if (report->has_trainer_event()) events += report->trainer_event().fields().at("event").string_value() + " ";
    }
    return events.find("checkpoint") != std::string::npos;
  })) << events;
  Stop("jobs/j/attempts/1");
  EXPECT_EQ(WaitForEnd("jobs/j/attempts/1").outcome(), v1::AttemptEnded::STOPPED);
}

}  // namespace
}  // namespace luthier
