#include "worker/agent/input_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/support/fake_server_files.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

namespace fs = std::filesystem;

std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class InputCacheTest : public testing::Test {
 protected:
  void Open(int64_t max_bytes = 1 << 20) {
    cache_.reset();
    auto opened = InputCache::Open(
        {.folder = folder_.path() + "/cache", .shared_store = shared_store_, .max_bytes = max_bytes}, server_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    cache_ = *std::move(opened);
  }
  absl::StatusOr<InputCache::Lease> Acquire(const std::vector<std::string>& contents) {
    std::vector<InputCache::Blob> blobs;
    for (const std::string& content : contents)
      blobs.push_back({Sha256Hex(content), static_cast<int64_t>(content.size())});
    return cache_->Acquire({"jobs/j/attempts/1", "secret"}, blobs, cancellation_);
  }
  // The content as a trainer would read it.
  std::string Read(const InputCache::Lease& lease, const std::string& content) {
    return ReadText(lease.Path(Sha256Hex(content)));
  }

  TempFolder folder_;
  std::string shared_store_;
  FakeServerFiles server_;
  Cancellation cancellation_;
  std::unique_ptr<InputCache> cache_;
};

TEST_F(InputCacheTest, FetchesABlobOnceAndKeepsItOverARestart) {
  server_.Add("weights");
  Open();
  for (int use = 0; use < 2; ++use) {
    const auto lease = Acquire({"weights", "weights"});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(Read(*lease, "weights"), "weights");
  }
  Open();
  EXPECT_TRUE(Acquire({"weights"}).ok());
  EXPECT_THAT(server_.offsets, ElementsAre(0));
  EXPECT_EQ(cache_->bytes(), 7);
}

TEST_F(InputCacheTest, GoesOnWhereABrokenFetchStopped) {
  const std::string content(64, 'w');
  server_.Add(content);
  server_.BreakFetches(2);
  Open();
  const auto lease = Acquire({content});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(Read(*lease, content), content);
  EXPECT_THAT(server_.offsets, ElementsAre(0, 32, 48));
}

TEST_F(InputCacheTest, NeverGivesOutWhatDoesNotMatchItsHash) {
  const std::string sha256 = server_.Add("weights");
  Open();
  {
    ASSERT_TRUE(Acquire({"weights"}).ok());
  }
  // On this node's disk: noticed at the next start, fetched again.
  std::ofstream(FileArtifactStore::BlobPathIn(folder_.path() + "/cache", sha256)) << "weighty";
  Open();
  {
    const auto lease = Acquire({"weights"});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(Read(*lease, "weights"), "weights");
  }
  EXPECT_THAT(server_.offsets, SizeIs(2));
  // On the way or on the server's.
  server_.Add("other");
  server_.Damage(Sha256Hex("other"));
  EXPECT_TRUE(absl::IsInvalidArgument(Acquire({"other"}).status()));
}

TEST_F(InputCacheTest, FetchesAgainWhatSomebodyTookAway) {
  const std::string sha256 = server_.Add("weights");
  Open();
  {
    ASSERT_TRUE(Acquire({"weights"}).ok());
  }
  fs::remove(FileArtifactStore::BlobPathIn(folder_.path() + "/cache", sha256));
  const auto lease = Acquire({"weights"});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(Read(*lease, "weights"), "weights");
}

TEST_F(InputCacheTest, SaysThatTheServerLacksABlob) {
  Open();
  const absl::Status status = Acquire({"never stored"}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
}

TEST_F(InputCacheTest, EvictsTheLongestUnusedAndNothingThatIsLeased) {
  for (const char* content : {"aaaa", "bbbb", "cccc", "dddd"}) server_.Add(content);
  Open(/*max_bytes=*/8);
  {
    ASSERT_TRUE(Acquire({"aaaa"}).ok());
  }
  {
    ASSERT_TRUE(Acquire({"bbbb"}).ok());
  }
  {
    ASSERT_TRUE(Acquire({"aaaa"}).ok());
  }  // now "bbbb" is the older one
  {
    ASSERT_TRUE(Acquire({"cccc"}).ok());
  }
  EXPECT_EQ(cache_->bytes(), 8);
  EXPECT_FALSE(fs::exists(FileArtifactStore::BlobPathIn(folder_.path() + "/cache", Sha256Hex("bbbb"))));
  const auto held = Acquire({"aaaa", "cccc"});
  ASSERT_TRUE(held.ok());
  const absl::Status full = Acquire({"dddd"}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()), HasSubstr(" B and --cache-limit is "));
  EXPECT_EQ(Read(*held, "aaaa"), "aaaa");
}

TEST_F(InputCacheTest, LinksWhatASharedStoreHoldsAndCopiesNothing) {
  const auto store = FileArtifactStore::Open(folder_.path() + "/shared");
  ASSERT_TRUE(store.ok());
  auto blob = (*store)->PutBlob(Sha256Hex("weights"), 0);
  ASSERT_TRUE((*blob)->Append("weights").ok());
  ASSERT_TRUE((*blob)->Commit().ok());
  shared_store_ = folder_.path() + "/shared";
  Open();
  const auto lease = Acquire({"weights"});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_THAT(lease->Path(Sha256Hex("weights")), HasSubstr("/shared/"));
  EXPECT_THAT(server_.offsets, IsEmpty());
  EXPECT_EQ(cache_->bytes(), 0);
}

TEST_F(InputCacheTest, WaitsForAServerThatIsAwayUntilNobodyWantsItAnyMore) {
  server_.Add("weights");
  server_.away = true;
  Open();
  absl::Status status;
  std::thread waiting([&] { status = Acquire({"weights"}).status(); });
  EXPECT_TRUE(WaitFor([&] { return server_.fetches() >= 2; }));
  cancellation_.Cancel();
  waiting.join();
  EXPECT_TRUE(absl::IsCancelled(status));
}

TEST_F(InputCacheTest, FetchesForTwoAttemptsAtOnceOnlyOnce) {
  const std::string content(1 << 16, 'w');
  server_.Add(content);
  Open();
  std::vector<std::thread> attempts;
  for (int i = 0; i < 4; ++i) {
    attempts.emplace_back([&] {
      const auto lease = Acquire({content});
      ASSERT_TRUE(lease.ok()) << lease.status();
      EXPECT_EQ(Read(*lease, content), content);
    });
  }
  for (std::thread& attempt : attempts) attempt.join();
  EXPECT_THAT(server_.offsets, SizeIs(1));
}

}  // namespace
}  // namespace luthier
