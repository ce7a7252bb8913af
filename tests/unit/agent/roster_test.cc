// What the server's messages mean for the attempts of a node. An attempt of these tests only notes what it is told.
#include "worker/agent/core/roster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

constexpr char kOne[] = "jobs/a/attempts/1", kTwo[] = "jobs/a/attempts/2", kOther[] = "jobs/b/attempts/1";

class NotedEntry final : public Roster::Entry {
 public:
  explicit NotedEntry(AttemptPath name, v1::StartAttempt order = {})
      : name_(std::move(name)), order_(std::move(order)) {}

  void GoOn(const std::string& credential) override { told.push_back(absl::StrCat("go on with '", credential, "'")); }
  void Stop(absl::Duration grace, bool job_goes_on) override {
    told.push_back(absl::StrCat("stop within ", absl::FormatDuration(grace), job_goes_on ? ", job goes on" : ""));
  }
  void Checkpoint() override { told.push_back("checkpoint"); }
  void Abandon() override { told.push_back("abandon"); }
  void Rewind(int64_t acknowledged) override { told.push_back(absl::StrCat("rewind to ", acknowledged)); }
  void Acknowledge(int64_t sequence) override { told.push_back(absl::StrCat("acknowledged ", sequence)); }
  bool uses_devices() const override { return uses; }
  bool settled() const override { return false; }
  const AttemptPath& name() const override { return name_; }
  const v1::StartAttempt& order() const override { return order_; }

  std::vector<std::string> told;
  bool uses = true;

 private:
  const AttemptPath name_;
  const v1::StartAttempt order_;
};

class RosterTest : public testing::Test {
 protected:
  absl::Status Start(const std::string& attempt, const std::vector<int>& gpus = {}) {
    v1::StartAttempt order;
    order.set_attempt(attempt);
    for (const int gpu : gpus) order.add_gpus(gpu);
    return roster_.OnStart(order);
  }
  void TakeOver(const std::string& attempt) {
    entries_[attempt] = std::make_shared<NotedEntry>(*AttemptPath::Parse(attempt));
    entries_[attempt]->uses = false;
    roster_.TakeOver(entries_[attempt]);
  }
  void Stop(const std::string& attempt, int seconds = 0, bool job_goes_on = false) {
    v1::StopAttempt order;
    order.set_attempt(attempt);
    order.mutable_grace()->set_seconds(seconds);
    order.mutable_grace()->set_nanos(500'000'000);
    order.set_job_goes_on(job_goes_on);
    roster_.OnStop(order);
  }
  void Acknowledge(const std::string& attempt, int64_t sequence, bool job_over = false) {
    v1::ReportAck ack;
    ack.set_attempt(attempt);
    ack.set_sequence(sequence);
    ack.set_job_over(job_over);
    roster_.OnAck(ack);
  }
  NotedEntry& entry(const std::string& attempt) { return *entries_.at(attempt); }
  // As "NAME:SEQUENCE", the ends of attempts that nobody knows.
  std::vector<std::string> Sent() {
    std::vector<std::string> sent;
    while (const std::optional<v1::AttemptReport> report = roster_.NextOfUnknown())
      sent.push_back(absl::StrCat(report->attempt(), ":", report->sequence()));
    return sent;
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : roster_.entries()) names.push_back(name);
    return names;
  }
  // Name of an attempt and its devices.
  template <typename Message>
  static std::map<std::string, std::vector<int>> ProcessesOf(const Message& message) {
    std::map<std::string, std::vector<int>> processes;
    for (const v1::AttemptProcess& process : message.processes())
      processes[process.attempt()] = {process.gpus().begin(), process.gpus().end()};
    return processes;
  }

  std::map<std::string, std::shared_ptr<NotedEntry>> entries_;
  int begun_ = 0;
  Roster roster_{[this](AttemptPath name, const v1::StartAttempt& order) {
    ++begun_;
    return entries_[order.attempt()] = std::make_shared<NotedEntry>(std::move(name), order);
  }};
};

// --- Orders.

TEST_F(RosterTest, AnOrderBeginsAnAttemptAndASecondOneOfItNothing) {
  ASSERT_TRUE(Start(kOne, {1}).ok());
  ASSERT_TRUE(Start(kOne, {1}).ok());
  EXPECT_EQ(begun_, 1);
  EXPECT_THAT(Names(), ElementsAre(kOne));
  EXPECT_EQ(entry(kOne).name().text(), kOne);
  EXPECT_THAT(entry(kOne).told, IsEmpty());
}

TEST_F(RosterTest, AnOrderOfOneThatAnEarlierAgentLeftBeginsNothing) {
  TakeOver(kOne);
  ASSERT_TRUE(Start(kOne).ok());
  EXPECT_EQ(begun_, 0);
  EXPECT_THAT(entry(kOne).told, IsEmpty());
}

TEST_F(RosterTest, ANewerAttemptOfAJobAbandonsTheOlderOnesAndNoOthers) {
  TakeOver(kOne);
  ASSERT_TRUE(Start(kOther).ok());
  ASSERT_TRUE(Start(kTwo).ok());
  EXPECT_THAT(entry(kOne).told, ElementsAre("abandon"));
  EXPECT_THAT(entry(kOther).told, IsEmpty());
  EXPECT_THAT(entry(kTwo).told, IsEmpty());
  EXPECT_THAT(Names(), ElementsAre(kOne, kTwo, kOther)) << "its end may take a while";
}

TEST_F(RosterTest, RefusesANameThatIsNone) {
  for (const char* name : {"", "jobs/a", "jobs/a/attempts/0", "jobs/../attempts/1", "jobs/A/attempts/1",
                           "jobs/a/attempts/1/x", "jobs//attempts/1"}) {
    const absl::Status status = Start(name);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name;
    EXPECT_EQ(status.message(), absl::StrCat("'", name, "' is no name of an attempt"));
  }
  EXPECT_EQ(begun_, 0);
}

TEST_F(RosterTest, AStopReachesItsAttemptWithAllThatIsSaidOfIt) {
  ASSERT_TRUE(Start(kOne).ok());
  ASSERT_TRUE(Start(kOther).ok());
  Stop(kOne, 60, /*job_goes_on=*/true);
  Stop(kOne, 2);
  EXPECT_THAT(entry(kOne).told, ElementsAre("stop within 1m0.5s, job goes on", "stop within 2.5s"));
  EXPECT_THAT(entry(kOther).told, IsEmpty());
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RosterTest, AStopOfOneThatNobodyKnowsIsReportedOnceAsItsEnd) {
  Stop(kOne);
  const std::optional<v1::AttemptReport> report = roster_.NextOfUnknown();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->attempt(), kOne);
  EXPECT_EQ(report->sequence(), 1);
  EXPECT_EQ(report->ended().outcome(), v1::AttemptEnded::STOPPED);
  EXPECT_EQ(report->ended().message(), "it never began on this node");
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_THAT(Names(), IsEmpty());
  Acknowledge(kOne, 1);
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RosterTest, EachStopOfOneThatNobodyKnowsIsAnswered) {
  Stop(kOne);
  Stop(kOther);
  EXPECT_THAT(Sent(), UnorderedElementsAre(absl::StrCat(kOne, ":1"), absl::StrCat(kOther, ":1")));
  Stop(kOne);  // its answer got lost with the session
  EXPECT_THAT(Sent(), ElementsAre(absl::StrCat(kOne, ":1")));
}

TEST_F(RosterTest, ARequestForACheckpointReachesItsAttemptAndNoOther) {
  ASSERT_TRUE(Start(kOne).ok());
  ASSERT_TRUE(Start(kOther).ok());
  v1::CheckpointAttempt order;
  order.set_attempt(kOne);
  roster_.OnCheckpoint(order);
  order.set_attempt("jobs/c/attempts/1");
  roster_.OnCheckpoint(order);
  EXPECT_THAT(entry(kOne).told, ElementsAre("checkpoint"));
  EXPECT_THAT(entry(kOther).told, IsEmpty());
  EXPECT_THAT(Sent(), IsEmpty());
}

// --- Reports.

TEST_F(RosterTest, AnAcknowledgementReachesItsAttemptAndOneOfAnotherNobody) {
  ASSERT_TRUE(Start(kOne).ok());
  Acknowledge(kOne, 7);
  Acknowledge(kOther, 3);
  Acknowledge("no name", 3, /*job_over=*/true);
  EXPECT_THAT(entry(kOne).told, ElementsAre("acknowledged 7"));
  EXPECT_THAT(roster_.jobs_over(), IsEmpty());
}

// --- The beginning of a session.

TEST_F(RosterTest, CurrentOnesAreRewoundAndGoOnWithTheirCredentials) {
  TakeOver(kOne);
  TakeOver(kOther);
  v1::Registered registered;
  v1::ReportAck& ack = *registered.add_acks();
  ack.set_attempt(kOne);
  ack.set_sequence(4);
  registered.add_acks()->set_attempt("jobs/c/attempts/1");
  (*registered.mutable_credentials())[kOne] = "secret";
  roster_.OnRegistered(registered);
  EXPECT_THAT(entry(kOne).told, ElementsAre("rewind to 4", "go on with 'secret'"));
  EXPECT_THAT(entry(kOther).told, ElementsAre("go on with ''"));
}

TEST_F(RosterTest, StaleOnesAreAbandonedAndDoNotGoOn) {
  TakeOver(kOne);
  TakeOver(kOther);
  v1::Registered registered;
  registered.add_stale_attempts(kOne);
  registered.add_stale_attempts("jobs/c/attempts/1");
  (*registered.mutable_credentials())[kOne] = "secret";
  roster_.OnRegistered(registered);
  EXPECT_THAT(entry(kOne).told, ElementsAre("abandon"));
  EXPECT_THAT(entry(kOther).told, ElementsAre("go on with ''"));
}

TEST_F(RosterTest, DescribesEveryAttemptAndProcessesOfThoseOnly) {
  ASSERT_TRUE(Start(kOne, {1, 3}).ok());
  ASSERT_TRUE(Start(kOther).ok());
  TakeOver("jobs/c/attempts/2");
  v1::Register message;
  roster_.Describe(message);
  EXPECT_THAT(message.attempts(), ElementsAre(kOne, kOther, "jobs/c/attempts/2"));
  EXPECT_THAT(ProcessesOf(message), ElementsAre(Pair(kOne, ElementsAre(1, 3)), Pair(kOther, IsEmpty())));
  v1::Heartbeat heartbeat;
  roster_.Describe(heartbeat);
  EXPECT_EQ(ProcessesOf(heartbeat), ProcessesOf(message));

  entry(kOne).uses = false;
  v1::Heartbeat later;
  roster_.Describe(later);
  EXPECT_THAT(ProcessesOf(later), ElementsAre(Pair(kOther, IsEmpty())));
}

// --- The end of the agent.

TEST_F(RosterTest, AnAgentThatLeavesStartsNothingAndLetsNothingGoOn) {
  TakeOver(kOne);
  v1::Heartbeat before;
  roster_.Describe(before);
  EXPECT_FALSE(before.leaving());
  roster_.Leave();
  EXPECT_TRUE(roster_.leaving());
  ASSERT_TRUE(Start(kTwo).ok());
  ASSERT_TRUE(Start(kOther).ok());
  EXPECT_EQ(begun_, 0);
  EXPECT_THAT(entry(kOne).told, IsEmpty()) << "the newer attempt does not begin here";
  v1::Registered registered;
  registered.add_acks()->set_attempt(kOne);
  roster_.OnRegistered(registered);
  EXPECT_THAT(entry(kOne).told, ElementsAre("rewind to 0"));
  EXPECT_TRUE(absl::IsInvalidArgument(Start("no name")));
  v1::Heartbeat heartbeat;
  roster_.Describe(heartbeat);
  EXPECT_TRUE(heartbeat.leaving());
}

TEST_F(RosterTest, AnAgentThatLeavesStillAbandonsAndStops) {
  TakeOver(kOne);
  ASSERT_TRUE(Start(kOther).ok());
  roster_.Leave();
  v1::Registered registered;
  registered.add_stale_attempts(kOne);
  roster_.OnRegistered(registered);
  Stop(kOther, 1);
  EXPECT_THAT(entry(kOne).told, ElementsAre("abandon"));
  EXPECT_THAT(entry(kOther).told, ElementsAre("stop within 1.5s"));
}

// --- What is kept.

TEST_F(RosterTest, JobsAreOverAsTheServerSaysUntilTheirFoldersAreGone) {
  ASSERT_TRUE(Start(kOther).ok());
  v1::Registered registered;
  registered.add_jobs_over("jobs/a");
  roster_.OnRegistered(registered);
  Acknowledge(kOther, 2, /*job_over=*/true);
  Acknowledge("jobs/c/attempts/1", 1, /*job_over=*/true);  // nobody here knows it, and its folder may be here
  Acknowledge("jobs/d/attempts/1", 1);
  EXPECT_THAT(roster_.jobs_over(), ElementsAre("a", "b", "c"));
  EXPECT_THAT(entry(kOther).told, ElementsAre("go on with ''", "acknowledged 2"));
  roster_.ForgetJobOver("b");
  EXPECT_THAT(roster_.jobs_over(), ElementsAre("a", "c"));
}

TEST_F(RosterTest, AnAttemptIsOfItsJobUntilItIsRemoved) {
  TakeOver(kOne);
  ASSERT_TRUE(Start(kTwo).ok());
  roster_.Remove(kOne);
  EXPECT_TRUE(roster_.HasAttemptOf("a"));
  EXPECT_FALSE(roster_.HasAttemptOf("b"));
  roster_.Remove(kTwo);
  EXPECT_FALSE(roster_.HasAttemptOf("a"));
  Stop(kTwo);
  EXPECT_THAT(Sent(), ElementsAre(absl::StrCat(kTwo, ":1")));
}

}  // namespace
}  // namespace luthier
