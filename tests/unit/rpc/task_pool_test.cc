#include "server/rpc/task_pool.h"

#include <gmock/gmock.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"

namespace luthier {
namespace {

// Items are named after their tenant and a number: `a1`.
struct Row {
  const char* waiting;  // in the order in which they came
  const char* taken;
};
constexpr Row kRows[] = {
    {"a1 a2 a3", "a1 a2 a3"},
    {"a1 a2 a3 a4 b1", "a1 b1 a2 a3 a4"},
    {"b1 a1 a2 c1 c2 a3 b2", "b1 a1 c1 b2 a2 c2 a3"},
};

TEST(FairQueueTest, TakesOneOfEachTenantInTurnAndTheOldestOfEach) {
  for (const Row& row : kRows) {
    FairQueue<std::string> queue;
    const std::vector<std::string> waiting = absl::StrSplit(row.waiting, ' '), taken = absl::StrSplit(row.taken, ' ');
    for (const std::string& item : waiting) EXPECT_TRUE(queue.Push(item.substr(0, 1), item));
    for (const std::string& item : taken) EXPECT_EQ(queue.Pop().second, item) << row.waiting;
    EXPECT_TRUE(queue.empty());
  }
}

TEST(FairQueueTest, WhoComesWhileManyOfOneTenantWaitIsNext) {
  FairQueue<std::string> queue;
  for (const char* item : {"a1", "a2", "a3"}) EXPECT_TRUE(queue.Push("a", item));
  EXPECT_EQ(queue.Pop().second, "a1");
  EXPECT_TRUE(queue.Push("b", "b1"));
  EXPECT_EQ(queue.Pop().second, "a2");
  EXPECT_EQ(queue.Pop().second, "b1");
  EXPECT_EQ(queue.Pop().second, "a3");
}

TEST(FairQueueTest, KeepsSoManyOfATenantAndNoMore) {
  FairQueue<std::string> queue({.waiting = 2});
  EXPECT_TRUE(queue.Push("a", "a1"));
  EXPECT_TRUE(queue.Push("a", "a2"));
  EXPECT_FALSE(queue.Push("a", "a3"));
  EXPECT_TRUE(queue.Push("b", "b1"));
  EXPECT_EQ(queue.Pop().second, "a1");
  EXPECT_TRUE(queue.Push("a", "a4"));
  for (const char* item : {"b1", "a2", "a4"}) EXPECT_EQ(queue.Pop().second, item);
}

TEST(FairQueueTest, OfATenantNoMoreAreTakenThanMayBeAtOnce) {
  FairQueue<std::string> queue({.at_once = 2});
  for (const char* item : {"a1", "a2", "a3"}) EXPECT_TRUE(queue.Push("a", item));
  EXPECT_EQ(queue.Pop().second, "a1");
  EXPECT_EQ(queue.Pop().second, "a2");
  EXPECT_TRUE(queue.empty()) << "a3 has to wait";
  EXPECT_TRUE(queue.Push("a", "a4"));
  EXPECT_TRUE(queue.Push("b", "b1"));
  EXPECT_EQ(queue.Pop().second, "b1");
  EXPECT_TRUE(queue.empty());
  queue.Done("a");
  EXPECT_EQ(queue.Pop().second, "a3");
  EXPECT_TRUE(queue.empty());
  queue.Done("a");
  EXPECT_EQ(queue.Pop().second, "a4");
}

TEST(TaskPoolTest, OneTenantsTasksLeaveAThreadToTheOthers) {
  absl::BlockingCounter busy(2);
  absl::Notification end;
  TaskPool pool(3, {.at_once = 2});
  for (int task = 0; task < 4; ++task) {
    EXPECT_TRUE(pool.Post("a", [&, task] {
      if (task < 2) busy.DecrementCount();
      end.WaitForNotification();
    }));
  }
  busy.Wait();
  bool ran = false;
  EXPECT_TRUE(pool.Run("b", [&] { ran = true; }));
  EXPECT_TRUE(ran);
  end.Notify();  // the pool ends with what it accepted
}

TEST(TaskPoolTest, TakesFromEachTenantInTurn) {
  std::vector<std::string> done;
  {
    absl::Notification started, posted;
    TaskPool pool(1);
    pool.Post([&] {
      started.Notify();
      posted.WaitForNotification();
    });
    started.WaitForNotification();
    for (const char* task : {"a1", "a2", "a3", "b1"}) {
      EXPECT_TRUE(pool.Post(std::string(task, 1), [&done, task] { done.emplace_back(task); }));
    }
    posted.Notify();
  }
  EXPECT_THAT(done, testing::ElementsAre("a1", "b1", "a2", "a3"));
}

TEST(TaskPoolTest, RefusesATaskOfATenantWithAsManyAsMayWait) {
  absl::Notification started, end;
  TaskPool pool(1, {.waiting = 1});
  EXPECT_TRUE(pool.Post("a", [&] {
    started.Notify();
    end.WaitForNotification();
  }));
  started.WaitForNotification();
  EXPECT_TRUE(pool.Post("a", [] {}));
  EXPECT_FALSE(pool.Run("a", [] { ADD_FAILURE() << "it was refused"; }));
  end.Notify();
  EXPECT_TRUE(pool.Run("b", [] {}));
}

// Two threads that each waited for a task of their own would wait for ever.
TEST(TaskPoolTest, ATaskWithinATaskRunsAtOnce) {
  TaskPool pool(1);
  bool ran = false, inner = false;
  const bool outer = pool.Run("a", [&] { inner = pool.Run("b", [&] { ran = true; }); });
  EXPECT_TRUE(outer && inner && ran);
}

TEST(TaskPoolTest, WhoWaitsForATaskGetsWhatItThrows) {
  TaskPool pool(1);
  EXPECT_THROW((void)pool.Run("a", [] { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_TRUE(pool.Run("a", [] {}));
}

}  // namespace
}  // namespace luthier
