#include "worker/agent/core/outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// What a session would send now.
std::vector<int64_t> Sent(Outbox& outbox) {
  std::vector<int64_t> sent;
  while (const std::optional<int64_t> next = outbox.Next()) sent.push_back(*next);
  return sent;
}

// So many reports, all of them kept.
Outbox WithKept(int64_t count) {
  Outbox outbox;
  for (int64_t i = 0; i < count; ++i) outbox.Keep(outbox.Add());
  return outbox;
}

TEST(OutboxTest, NumbersFromOneWithoutGaps) {
  Outbox outbox;
  EXPECT_EQ(outbox.last(), 0);
  EXPECT_EQ(outbox.Add(), 1);
  EXPECT_EQ(outbox.Add(), 2);
  EXPECT_EQ(outbox.last(), 2);
}

TEST(OutboxTest, HandsOutOnlyWhatIsKeptAndEachOnceASession) {
  Outbox outbox;
  EXPECT_THAT(Sent(outbox), IsEmpty());
  for (int i = 0; i < 3; ++i) outbox.Add();
  EXPECT_THAT(Sent(outbox), IsEmpty());
  outbox.Keep(2);
  EXPECT_EQ(outbox.durable(), 2);
  EXPECT_THAT(Sent(outbox), ElementsAre(1, 2));
  EXPECT_THAT(Sent(outbox), IsEmpty());
  outbox.Keep(3);
  EXPECT_THAT(Sent(outbox), ElementsAre(3));
}

// Each row: what the server has when a session opens, and what is sent, of four reports that were all sent before.
TEST(OutboxTest, ASessionBeginsBehindWhatTheServerHasWhateverItSaidBefore) {
  struct Row {
    int64_t acknowledged;
    std::vector<int64_t> sent;
  };
  const Row rows[] = {{0, {1, 2, 3, 4}}, {2, {3, 4}}, {3, {4}}, {4, {}}};
  for (const Row& before : rows) {
    for (const Row& row : rows) {
      Outbox outbox = WithKept(4);
      Sent(outbox);
      outbox.Rewind(before.acknowledged);
      Sent(outbox);
      outbox.Rewind(row.acknowledged);
      EXPECT_EQ(outbox.acknowledged(), row.acknowledged);
      EXPECT_EQ(outbox.backlog(), 4 - row.acknowledged);
      EXPECT_EQ(outbox.last(), 4);
      EXPECT_EQ(Sent(outbox), row.sent) << before.acknowledged << ", then " << row.acknowledged;
    }
  }
}

TEST(OutboxTest, NumbersThatTheServerHasAndADiskLostStayTaken) {
  Outbox outbox(/*base=*/0, /*last=*/1);
  outbox.Rewind(3);
  EXPECT_EQ(outbox.last(), 3);
  EXPECT_EQ(outbox.durable(), 3);
  EXPECT_EQ(outbox.backlog(), 0);
  EXPECT_THAT(Sent(outbox), IsEmpty());
  EXPECT_EQ(outbox.Add(), 4);
  EXPECT_THAT(Sent(outbox), IsEmpty());
  outbox.Keep(4);
  EXPECT_THAT(Sent(outbox), ElementsAre(4));
}

TEST(OutboxTest, WhatTheServerHasAndIsNotKeptYetIsNotHandedOut) {
  Outbox outbox;
  for (int i = 0; i < 3; ++i) outbox.Add();
  outbox.Keep(1);
  outbox.Rewind(2);
  EXPECT_THAT(Sent(outbox), IsEmpty());
  outbox.Keep(3);
  EXPECT_THAT(Sent(outbox), ElementsAre(3));
}

TEST(OutboxTest, WhatAnEarlierAgentLeftIsSentAndNumbersGoOn) {
  Outbox outbox(/*base=*/5, /*last=*/7);
  EXPECT_EQ(outbox.acknowledged(), 5);
  EXPECT_EQ(outbox.backlog(), 2);
  EXPECT_THAT(Sent(outbox), ElementsAre(6, 7));
  EXPECT_EQ(outbox.Add(), 8);
}

// The server lost what it had acknowledged: a gap would keep all that follows from being recorded.
TEST(OutboxTest, AServerThatHasForgottenWhatIsGoneIsSentItsNumbersAllTheSame) {
  Outbox outbox(/*base=*/5, /*last=*/7);
  outbox.Rewind(3);
  EXPECT_EQ(outbox.backlog(), 4);
  EXPECT_THAT(Sent(outbox), ElementsAre(4, 5, 6, 7));
}

TEST(OutboxTest, AnAcknowledgementGoesOnlyForwardAndNeverBeyondTheLast) {
  Outbox outbox = WithKept(3);
  Sent(outbox);
  outbox.Acknowledge(2);
  EXPECT_EQ(outbox.acknowledged(), 2);
  outbox.Acknowledge(1);
  EXPECT_EQ(outbox.acknowledged(), 2);
  outbox.Acknowledge(9);
  EXPECT_EQ(outbox.acknowledged(), 3);
  EXPECT_EQ(outbox.backlog(), 0);
  EXPECT_EQ(outbox.Add(), 4);
  EXPECT_EQ(outbox.backlog(), 1);
}

TEST(OutboxTest, AnAcknowledgementHandsNothingOutAgainAndHoldsNothingBack) {
  Outbox outbox = WithKept(3);
  EXPECT_EQ(outbox.Next(), 1);
  outbox.Acknowledge(1);
  EXPECT_THAT(Sent(outbox), ElementsAre(2, 3));
}

}  // namespace
}  // namespace luthier
