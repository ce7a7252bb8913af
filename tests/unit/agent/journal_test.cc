#include "worker/agent/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "tests/support/file_size_limit.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

constexpr char kAttempt[] = "jobs/j/attempts/1";

class JournalTest : public testing::Test {
 protected:
  void Open() { journal_ = std::make_unique<Journal>(Path(), kAttempt); }
  std::string Path() const { return folder_.path() + "/journal"; }
  void Append(const std::string& line) {
    v1::AttemptReport report;
    report.mutable_log_lines()->add_lines(line);
    journal_->Append(report);
  }
  // What the session would send now, as "1:text 2:text".
  std::string Sent() {
    std::string sent;
    while (const std::optional<v1::AttemptReport> report = journal_->Next()) {
      EXPECT_EQ(report->attempt(), kAttempt);
      sent += std::to_string(report->sequence()) + ":" + report->log_lines().lines(0) + " ";
    }
    return sent;
  }

  // All of them are sent, and the server has all but the last.
  void AppendEightAndCompactSeven() {
    for (int i = 0; i < 8; ++i) Append(large_);
    journal_->Sync();
    Sent();
    journal_->Acknowledge(7);
    journal_->Compact();
  }

  const std::string large_ = std::string(1 << 20, 'x');
  TempFolder folder_;
  std::unique_ptr<Journal> journal_;
};

TEST_F(JournalTest, NumbersReportsFromOneAndSendsOnlyWhatIsDurable) {
  Open();
  Append("a");
  EXPECT_EQ(Sent(), "");
  journal_->Sync();
  Append("b");
  EXPECT_EQ(Sent(), "1:a ");
  journal_->Sync();
  EXPECT_EQ(Sent(), "2:b ");
  EXPECT_EQ(journal_->backlog(), 2);
}

TEST_F(JournalTest, SendsAgainWhatTheServerDoesNotHave) {
  Open();
  for (const char* line : {"a", "b", "c"}) Append(line);
  journal_->Sync();
  Sent();
  journal_->Acknowledge(1);
  journal_->Rewind(2);  // the second was recorded, its acknowledgement got lost
  EXPECT_EQ(Sent(), "3:c ");
  journal_->Acknowledge(3);
  EXPECT_EQ(journal_->backlog(), 0);
}

TEST_F(JournalTest, SurvivesItsProcess) {
  Open();
  Append("a");
  Append("b");
  journal_->Sync();
  Open();
  EXPECT_EQ(Sent(), "1:a 2:b ");
  Append("c");
  journal_->Sync();
  EXPECT_EQ(Sent(), "3:c ");
}

// Every length that a crash can leave: what is whole is read, numbers go on after it.
TEST_F(JournalTest, CutsOffARecordThatACrashTore) {
  Open();
  Append("first");
  Append("second");
  journal_->Sync();
  journal_.reset();
  const auto whole = std::filesystem::file_size(Path());
  const std::string copy = Path() + ".copy";
  std::filesystem::copy_file(Path(), copy);
  for (auto size = whole; size-- > 0;) {
    std::filesystem::copy_file(copy, Path(), std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(Path(), size);
    Open();
    ASSERT_TRUE(journal_->status().ok()) << journal_->status() << " at size " << size;
    const int64_t kept = journal_->last_sequence();
    EXPECT_LE(kept, 1);
    Append("third");
    journal_->Sync();
    EXPECT_EQ(Sent(), kept == 1 ? "1:first 2:third " : "1:third ") << "at size " << size;
    journal_.reset();
  }
}

TEST_F(JournalTest, DropsADamagedRecordAndWhatFollowsIt) {
  Open();
  for (const char* line : {"a", "b", "c"}) Append(line);
  journal_->Sync();
  journal_.reset();
  std::fstream file(Path(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('!');
  file.close();
  Open();
  EXPECT_EQ(Sent(), "1:a 2:b ");
}

TEST_F(JournalTest, GivesBackTheDiskOfAcknowledgedReportsAndKeepsTheirNumbers) {
  Open();
  AppendEightAndCompactSeven();
  EXPECT_LT(std::filesystem::file_size(Path()), 2u << 20);
  Append("next");
  journal_->Sync();
  EXPECT_EQ(Sent(), "9:next ");
  Open();
  EXPECT_EQ(journal_->last_sequence(), 9);
  EXPECT_EQ(journal_->backlog(), 2);
  journal_->Rewind(8);
  EXPECT_EQ(Sent(), "9:next ");
}

TEST_F(JournalTest, KeepsReportingFromMemoryWhenTheDiskIsFull) {
  Open();
  Append("a");
  journal_->Sync();
  {
    const FileSizeLimit limit(std::filesystem::file_size(Path()) + 4);
    Append("b");
    Append("c");
    journal_->Sync();
  }
  EXPECT_FALSE(journal_->status().ok());
  EXPECT_EQ(Sent(), "1:a 2:b 3:c ");
  // The agent died as well: the server has more than the disk, and the next report does not take a number twice.
  Open();
  EXPECT_EQ(journal_->last_sequence(), 1);
  journal_->Rewind(3);
  Append("d");
  journal_->Sync();
  EXPECT_EQ(Sent(), "4:d ");
}

// As after a restoration from a backup.
TEST_F(JournalTest, SendsAServerAgainWhatItAcknowledgedAndHasForgotten) {
  Open();
  for (const char* line : {"a", "b", "c"}) Append(line);
  journal_->Sync();
  Sent();
  journal_->Acknowledge(3);
  journal_->Rewind(1);
  EXPECT_EQ(journal_->backlog(), 2);
  EXPECT_EQ(Sent(), "2:b 3:c ");
  Open();
  journal_->Rewind(0);
  EXPECT_EQ(Sent(), "1:a 2:b 3:c ");
}

// A gap would keep all that follows it from being recorded.
TEST_F(JournalTest, SaysOfReportsThatAServerHasForgottenAndThatAreGoneThatTheyAre) {
  Open();
  AppendEightAndCompactSeven();
  const std::string gone = "a report of the agent is damaged, or gone from its disk: " + Path();
  for (const bool opened_again : {false, true}) {
    if (opened_again) Open();
    journal_->Rewind(5);
    EXPECT_EQ(Sent(), "6:" + gone + " 7:" + gone + " 8:" + large_ + " ");
  }
  journal_->Acknowledge(8);
  EXPECT_EQ(journal_->backlog(), 0);
}

TEST_F(JournalTest, RefusesAFileThatIsNoJournal) {
  std::ofstream(Path()) << "something else, long enough to be a header";
  Open();
  EXPECT_TRUE(absl::IsDataLoss(journal_->status()));
}

}  // namespace
}  // namespace luthier
