// What every artifact store promises, in a folder and in buckets of servers of S3's, Azure's and Google's protocols.
#include "lib/artifact/artifact_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <latch>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/bucket_artifact_store.h"
#include "lib/artifact/file_artifact_store.h"
#include "tests/support/cloud_server.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Where the store under test lies, and how its content is changed behind its back.
class Place {
 public:
  virtual ~Place() = default;
  virtual absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() = 0;
  virtual void Overwrite(const std::string& path, const std::string& content) = 0;
  // Whether something lies there that no store will ever name.
  virtual bool HasUnfinished() = 0;
  // How often a test repeats what a race could break.
  virtual int Rounds() const = 0;
};

class Folder : public Place {
 public:
  absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() override { return FileArtifactStore::Open(root()); }
  void Overwrite(const std::string& path, const std::string& content) override {
    std::ofstream(root() + "/" + path) << content;
  }
  bool HasUnfinished() override { return !fs::is_empty(root() + "/incoming"); }
  int Rounds() const override { return 200; }
  std::string root() const { return folder_.path() + "/store"; }

 private:
  TempFolder folder_;
};

template <typename Server>
class BucketPrefix : public Place {
 public:
  absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() override {
    const Server& server = Started<Server>();
    server.UseFromHere(server.port());
    return BucketArtifactStore::Open({.address = server.Address(prefix_), .cache = folder_.path()}, "owner");
  }
  void Overwrite(const std::string& path, const std::string& content) override {
    Started<Server>().Put(prefix_ + "/" + path, content);
  }
  bool HasUnfinished() override { return Started<Server>().UnfinishedUploads() > 0; }
  int Rounds() const override { return 50; }

 private:
  static std::string NewPrefix() {
    static int number = 0;
    return absl::StrCat("tests/prefix-", ++number);
  }

  TempFolder folder_;
  const std::string prefix_ = NewPrefix();
};

using MakePlace = std::unique_ptr<Place> (*)();

class ArtifactStoreTest : public ::testing::TestWithParam<std::pair<const char*, MakePlace>> {
 protected:
  void SetUp() override {
    const std::string_view place = GetParam().first;
    if (place == "S3" && S3Server::Program() == nullptr)
      GTEST_SKIP() << "SKIPPED: LUTHIER_S3_SERVER is not set (scripts/s3-server); buckets of S3 were not tested";
    if (place == "Azure" && AzureServer::Program() == nullptr)
      GTEST_SKIP() << "SKIPPED: LUTHIER_AZURE_SERVER is not set (scripts/azure-server); those of Azure were not tested";
    if (place == "Google" && GoogleServer::Program() == nullptr)
      GTEST_SKIP() << "SKIPPED: LUTHIER_GCS_SERVER is not set (scripts/test); those of Google were not tested";
    place_ = GetParam().second();
    OpenAgain();
  }

  void OpenAgain() {
    pins_.reset();  // they belong to the store that goes
    auto store = place_->Open();
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    pins_.emplace(*store_);
  }

  std::string Put(const std::string& content) {
    auto writer = store_->PutBlob(Sha256Hex(content), static_cast<int64_t>(content.size()), &*pins_);
    EXPECT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE((*writer)->Append(content).ok());
    const absl::Status stored = (*writer)->Commit();
    EXPECT_TRUE(stored.ok()) << stored;
    return Sha256Hex(content);
  }

  absl::StatusOr<std::string> Get(const std::string& sha256, int64_t offset = 0) {
    auto reader = store_->OpenBlob(sha256, offset);
    if (!reader.ok()) return reader.status();
    std::string content;
    char buffer[7];
    while (true) {
      const auto count = (*reader)->Read(buffer);
      if (!count.ok()) return count.status();
      if (*count == 0) return content;
      content.append(buffer, *count);
    }
  }

  void Damage(const std::string& sha256, const std::string& content) {
    place_->Overwrite("blobs/sha256/" + sha256.substr(0, 2) + "/" + sha256, content);
  }

  // Everything that was put by this test is no longer being uploaded.
  void EndUploads() { pins_.emplace(*store_); }
  Garbage Collect(ArtifactStore::References used = {}, absl::Duration keep = absl::ZeroDuration()) {
    const absl::StatusOr<Garbage> garbage = store_->CollectGarbage([&] { return used; }, keep);
    EXPECT_TRUE(garbage.ok()) << garbage.status();
    return garbage.ok() ? *garbage : Garbage{};
  }

  std::unique_ptr<Place> place_;
  std::unique_ptr<ArtifactStore> store_;
  std::optional<BlobPins> pins_;
};

INSTANTIATE_TEST_SUITE_P(
    Places, ArtifactStoreTest,
    ::testing::Values(
        std::pair<const char*, MakePlace>("Folder", [] { return std::unique_ptr<Place>(new Folder); }),
        std::pair<const char*, MakePlace>("S3", [] { return std::unique_ptr<Place>(new BucketPrefix<S3Server>); }),
        std::pair<const char*, MakePlace>("Azure",
                                          [] { return std::unique_ptr<Place>(new BucketPrefix<AzureServer>); }),
        std::pair<const char*, MakePlace>("Google",
                                          [] { return std::unique_ptr<Place>(new BucketPrefix<GoogleServer>); })),
    [](const auto& param_info) { return param_info.param.first; });

TEST_P(ArtifactStoreTest, ReadsBackWhatWasStoredAlsoFromTheMiddle) {
  const std::string sha256 = Put("weights of an adapter");
  EXPECT_EQ(*Get(sha256), "weights of an adapter");
  EXPECT_EQ(*Get(sha256, 11), "an adapter");
  EXPECT_EQ(*Get(sha256, 21), "");
  EXPECT_EQ(*store_->BlobSize(sha256), 21);
  EXPECT_EQ(Get(sha256, 22).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_FALSE(place_->HasUnfinished());
}

TEST_P(ArtifactStoreTest, AnEmptyBlobIsABlob) { EXPECT_EQ(*Get(Put("")), ""); }

TEST_P(ArtifactStoreTest, SameContentIsStoredOnce) {
  EXPECT_EQ(Put("same"), Put("same"));
  EXPECT_EQ(*Get(Sha256Hex("same")), "same");
}

TEST_P(ArtifactStoreTest, BytesThatDifferFromTheExpectedHashAreNotStored) {
  auto writer = store_->PutBlob(Sha256Hex("as it was sent"), 0, &*pins_);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Append("corrupted on the way").ok());
  EXPECT_EQ((*writer)->Commit().code(), absl::StatusCode::kInvalidArgument) << "told from a disk that fails";
  writer->reset();
  EXPECT_FALSE(store_->HasBlob(Sha256Hex("corrupted on the way")));
  EXPECT_FALSE(store_->HasBlob(Sha256Hex("as it was sent")));
  EXPECT_FALSE(place_->HasUnfinished());
}

TEST_P(ArtifactStoreTest, AFlippedByteIsDetectedAndNeverServedAsComplete) {
  const std::string sha256 = Put("weights of an adapter");
  Damage(sha256, "weiXhts of an adapter");
  EXPECT_EQ(Get(sha256).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Get(sha256, 10).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(ArtifactStoreTest, ATruncatedBlobIsDetected) {
  const std::string sha256 = Put("weights of an adapter");
  Damage(sha256, "weigh");
  EXPECT_EQ(Get(sha256).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(ArtifactStoreTest, AnUploadThatIsGivenUpLeavesNothing) {
  const std::string content(20 << 20, 'x');  // several parts
  {
    auto writer = store_->PutBlob(Sha256Hex(content), 0, &*pins_);
    ASSERT_TRUE(writer.ok());
    for (size_t at = 0; at < content.size(); at += 1 << 20)
      ASSERT_TRUE((*writer)->Append(absl::string_view(content).substr(at, 1 << 20)).ok());
    EXPECT_FALSE(store_->HasBlob(Sha256Hex(content)));
  }
  EXPECT_FALSE(store_->HasBlob(Sha256Hex(content)));
  EXPECT_FALSE(place_->HasUnfinished());
}

TEST_P(ArtifactStoreTest, ABlobOfManyPiecesComesBackAsItWas) {
  std::string content;
  while (content.size() < (20 << 20) + 12345) absl::StrAppend(&content, content.size(), " ");
  {
    auto writer = store_->PutBlob(Sha256Hex(content), static_cast<int64_t>(content.size()), &*pins_);
    ASSERT_TRUE(writer.ok());
    for (size_t at = 0; at < content.size(); at += 1 << 20)
      ASSERT_TRUE((*writer)->Append(absl::string_view(content).substr(at, 1 << 20)).ok());
    ASSERT_TRUE((*writer)->Commit().ok());
  }
  auto reader = store_->OpenBlob(Sha256Hex(content), 0);
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::string found;
  std::vector<char> buffer(1 << 20);
  absl::StatusOr<size_t> count = 1;
  while (count.ok() && *count > 0) {
    count = (*reader)->Read(std::span<char>(buffer));
    if (count.ok()) found.append(buffer.data(), *count);
  }
  EXPECT_TRUE(count.ok()) << count.status();
  EXPECT_TRUE(found == content);
  EXPECT_FALSE(place_->HasUnfinished());
}

TEST_P(ArtifactStoreTest, WhatCanBeNoBlobIsPinnedWithoutWaiting) {
  pins_->Add("");
  EXPECT_EQ(Collect().blobs, 0);
  pins_->Add("");
}

TEST_P(ArtifactStoreTest, ABlobBecomesAFileForWhoNeedsOne) {
  const std::string sha256 = Put("rows");
  for (int again = 0; again < 2; ++again) {
    const absl::StatusOr<LocalBlob> blob = store_->MakeLocal(sha256);
    ASSERT_TRUE(blob.ok()) << blob.status();
    EXPECT_EQ(*Sha256OfFile(blob->path), sha256);
  }
  EXPECT_TRUE(absl::IsNotFound(store_->MakeLocal(Sha256Hex("never stored")).status()));
}

TEST(FileArtifactStoreTest, ThereAreNoUrlsIntoAFolder) {
  Folder folder;
  const absl::Status url = (*folder.Open())->SignBlob(Sha256Hex("weights"), absl::Hours(1)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(url)) << url;
  EXPECT_THAT(std::string(url.message()), HasSubstr("--artifact-store"));
}

TEST(FileArtifactStoreTest, MoreThanTheDiskHoldsIsRefusedBeforeWriting) {
  Folder folder;
  const auto store = folder.Open();
  const auto writer = (*store)->PutBlob(Sha256Hex(""), int64_t{5} << 60);
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(writer.status().message()),
              HasSubstr(" are free, 5764607.5 TB and a reserve of 67.1 MB are needed; free space"));
}

// Else one that announces much and sends little would keep others out for as long as it likes.
TEST(FileArtifactStoreTest, WhatABlobAnnouncesIsNotKeptFromOthers) {
  const TempFolder folder;
  const auto store = *FileArtifactStore::Open(folder.path());
  const int64_t most = *FreeBytes(folder.path()) / 10 * 6;
  const std::string sha256(64, 'a');
  const auto first = store->PutBlob(sha256, most);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE((*first)->Append("a").ok());
  const auto second = store->PutBlob(sha256, most);
  EXPECT_TRUE(second.ok()) << second.status();
}

// More than announced, or the disk filled up since.
TEST(FileArtifactStoreTest, APieceForWhichThereIsNoRoomBesideTheReserveIsRefusedAndNothingStays) {
  Folder folder;
  const auto store = *folder.Open();
  const auto size = static_cast<size_t>(*FreeBytes(folder.root())) * 2;  // others may free some meanwhile
  // Addresses without memory: whoever looked at the bytes would crash.
  void* const bytes = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (bytes == MAP_FAILED) GTEST_SKIP() << "SKIPPED: no address space for twice what is free on the disk";
  {
    const auto writer = *store->PutBlob(std::string(64, 'a'), 1);
    ASSERT_TRUE(writer->Append("a").ok());
    const absl::Status refused = writer->Append({static_cast<const char*>(bytes), size});
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(" and a reserve of 67.1 MB are needed; free space"));
    EXPECT_TRUE(writer->Append("b").ok()) << "what fits";
  }
  munmap(bytes, size);
  EXPECT_FALSE(folder.HasUnfinished());
}

// Each alone would fit, and together they would take what is kept free for the record.
TEST(FileArtifactStoreTest, PiecesThatComeAtOnceLeaveTheReserve) {
  const TempFolder folder;
  if (mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=97m") != 0)
    GTEST_SKIP() << "SKIPPED: mounting a tmpfs needs root; pieces that fill a disk together were not tested";
  {
    const auto store = *FileArtifactStore::Open(folder.path());
    const std::string piece(16 << 20, 'x');
    std::vector<std::unique_ptr<BlobWriter>> writers;
    for (int i = 0; i < 16; ++i) writers.push_back(*store->PutBlob(std::string(64, 'a'), 0));
    std::atomic<int> written = 0;
    std::latch all_there(16);
    std::vector<std::thread> threads;
    for (const auto& writer : writers) {
      threads.emplace_back([&] {
        all_there.arrive_and_wait();
        if (writer->Append(piece).ok()) ++written;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GE(written, 1);
    EXPECT_GE(*FreeBytes(folder.path()), int64_t{64} << 20);
  }
  EXPECT_EQ(umount2(folder.path().c_str(), MNT_DETACH), 0);
}

TEST(FileArtifactStoreTest, UnfinishedFilesOfADeadProcessAreRemovedAtOpen) {
  Folder folder;
  ASSERT_TRUE(folder.Open().ok());
  std::ofstream(folder.root() + "/incoming/blob.tmp-abcdef") << "half";
  ASSERT_TRUE(folder.HasUnfinished());
  ASSERT_TRUE(folder.Open().ok());
  EXPECT_FALSE(folder.HasUnfinished());
}

// An agent of another user than the server's goes on without it.
TEST(FileArtifactStoreTest, AFolderThatCannotBeLookedIntoIsNoStoreToShare) {
  const TempFolder folder;
  const std::string nowhere = folder.path() + "/link";
  fs::create_symlink(nowhere, nowhere);
  const absl::Status status = FileArtifactStore::OpenShared(nowhere).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
}

TEST_P(ArtifactStoreTest, BlobNamesThatAreNoHashAreRefused) {
  for (const char* name : {"", "../../../etc/passwd", "abc"}) {
    EXPECT_EQ(store_->OpenBlob(name, 0).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(store_->OpenBlob(Sha256Hex("absent"), 0).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(ArtifactStoreTest, PublishesAnArtifactOnce) {
  const ArtifactKey key = {"j1", 2, "adapter"};
  const Manifest manifest = {{{"adapter_model.safetensors", Put("weights"), 7}}};
  EXPECT_EQ(store_->GetManifest(key).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store_->PutManifest(key, manifest).ok());
  EXPECT_EQ(*store_->GetManifest(key), manifest);
  EXPECT_TRUE(store_->PutManifest(key, manifest).ok());  // a retry
  const Manifest other = {{{"adapter_model.safetensors", Put("others!"), 7}}};
  EXPECT_EQ(store_->PutManifest(key, other).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*store_->GetManifest(key), manifest);
}

TEST_P(ArtifactStoreTest, OfTwoManifestsThatComeAtOnceOneIsPublishedAndNotReplaced) {
  const Manifest manifests[] = {{{{"a", Put("weights"), 7}}}, {{{"a", Put("others!"), 7}}}};
  for (int attempt = 1; attempt <= place_->Rounds() / 10; ++attempt) {
    const ArtifactKey key = {"j1", attempt, "adapter"};
    absl::Status published[2];
    std::latch both_there(2);
    const auto publish = [&](int which) {
      both_there.arrive_and_wait();
      published[which] = store_->PutManifest(key, manifests[which]);
    };
    std::thread other(publish, 1);
    publish(0);
    other.join();
    const int winner = published[0].ok() ? 0 : 1;
    EXPECT_TRUE(published[winner].ok()) << published[winner];
    EXPECT_TRUE(absl::IsAlreadyExists(published[1 - winner])) << published[1 - winner];
    EXPECT_EQ(*store_->GetManifest(key), manifests[winner]);
  }
}

TEST_P(ArtifactStoreTest, AManifestNeedsItsBlobs) {
  const Manifest missing = {{{"a", Sha256Hex("never stored"), 3}}};
  EXPECT_EQ(store_->PutManifest({"j1", 1, "adapter"}, missing).code(), absl::StatusCode::kFailedPrecondition);
  const Manifest wrong_size = {{{"a", Put("stored"), 99}}};
  EXPECT_EQ(store_->PutManifest({"j1", 1, "adapter"}, wrong_size).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(ArtifactStoreTest, ADamagedManifestIsNoManifest) {
  const ArtifactKey key = {"j1", 1, "adapter"};
  ASSERT_TRUE(store_->PutManifest(key, {{{"a", Put("x"), 1}}}).ok());
  place_->Overwrite("jobs/j1/attempt-1/adapter/manifest.json", "{\"files\": [");
  EXPECT_EQ(store_->GetManifest(key).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(ArtifactStoreTest, KeysCannotLeaveTheRoot) {
  for (const ArtifactKey& key : {ArtifactKey{"..", 1, "a"}, ArtifactKey{"j/../..", 1, "a"}, ArtifactKey{"j", 0, "a"},
                                 ArtifactKey{"j", 1, ""}, ArtifactKey{"j", 1, "../x"}}) {
    EXPECT_EQ(store_->PutManifest(key, {}).code(), absl::StatusCode::kInvalidArgument) << key.job << " " << key.name;
  }
}

TEST_P(ArtifactStoreTest, ABlobCanBeDeletedTwice) {
  const std::string sha256 = Put("old checkpoint");
  EXPECT_TRUE(store_->DeleteBlob(sha256).ok());
  EXPECT_TRUE(store_->DeleteBlob(sha256).ok());
  EXPECT_FALSE(store_->HasBlob(sha256));
}

TEST_P(ArtifactStoreTest, RemovesBlobsAndManifestsThatNothingRefersTo) {
  const std::string used = Put("dataset"), published = Put("weights"), replaced = Put("lost attempt"),
                    unused = Put("deleted");
  ASSERT_TRUE(store_->PutManifest({"j1", 1, "artifact"}, {{{"a", replaced, 12}}}).ok());
  ASSERT_TRUE(store_->PutManifest({"j1", 2, "artifact"}, {{{"a", published, 7}}}).ok());
  EndUploads();
  const Garbage garbage = Collect({.blobs = {used}, .attempts = {{"j1", 2}}});
  EXPECT_EQ(garbage.blobs, 2);
  EXPECT_EQ(garbage.bytes, 12 + 7);
  EXPECT_EQ(garbage.manifests, 1);
  EXPECT_TRUE(store_->HasBlob(used));
  EXPECT_TRUE(store_->HasBlob(published));
  EXPECT_FALSE(store_->HasBlob(replaced));
  EXPECT_FALSE(store_->HasBlob(unused));
  EXPECT_TRUE(absl::IsNotFound(store_->GetManifest({"j1", 1, "artifact"}).status()));
  EXPECT_EQ(Collect({.blobs = {used}, .attempts = {{"j1", 2}}}).blobs, 0);
}

TEST_P(ArtifactStoreTest, KeepsWhatIsBeingUploadedAndWhatIsYoung) {
  const std::string sha256 = Put("uploading");
  EXPECT_EQ(Collect().blobs, 0);
  EndUploads();
  EXPECT_EQ(Collect({}, absl::Hours(1)).blobs, 0);
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_FALSE(store_->HasBlob(sha256));
}

// An upload of content that lies there unused begins and ends while a collection asks what is referred to.
TEST_P(ArtifactStoreTest, KeepsABlobThatWasUploadedAgainDuringACollection) {
  const std::string sha256 = Put("again");
  EndUploads();
  const auto garbage = store_->CollectGarbage(
      [&]() -> absl::StatusOr<ArtifactStore::References> {
        Put("again");
        EndUploads();
        return ArtifactStore::References{};  // asked a moment before the upload's row was written
      },
      absl::ZeroDuration());
  ASSERT_TRUE(garbage.ok());
  EXPECT_EQ(garbage->blobs, 0);
  EXPECT_TRUE(store_->HasBlob(sha256));
}

TEST_P(ArtifactStoreTest, RemovesNothingIfItIsNotKnownWhatIsReferredTo) {
  const std::string sha256 = Put("x");
  EndUploads();
  const auto garbage =
      store_->CollectGarbage([] { return absl::UnavailableError("no database"); }, absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(garbage.status()));
  EXPECT_TRUE(store_->HasBlob(sha256));
}

// Uploads and collections beside each other: what an upload holds is there for as long as it holds it.
TEST_P(ArtifactStoreTest, AnUploadNeverLosesItsBlobToACollection) {
  std::atomic<bool> done = false;
  std::thread collector([&] {
    while (!done) Collect();
  });
  const std::string content = "the same content every time";
  for (int round = 0; round < place_->Rounds(); ++round) {
    BlobPins pins(*store_);
    auto writer = store_->PutBlob(Sha256Hex(content), 0, &pins);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append(content).ok());
    const absl::Status stored = (*writer)->Commit();
    ASSERT_TRUE(stored.ok()) << stored;
    ASSERT_TRUE(store_->HasBlob(Sha256Hex(content))) << "round " << round;
  }
  done = true;
  collector.join();
}

TEST(RelativePathTest, RefusesWhateverCouldLeaveAFolder) {
  for (const std::string& path :
       {std::string(""), std::string("/etc/passwd"), std::string(".."), std::string("a/../b"), std::string("a//b"),
        std::string("a/"), std::string("./a"), std::string("a\0b", 3), std::string("a\nb"), std::string("a\\b"),
        std::string(256, 'n'), std::string(10'000, 'n')}) {
    EXPECT_EQ(CheckRelativePath(path).code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_TRUE(CheckRelativePath("model-00001-of-00002.safetensors").ok());
  EXPECT_TRUE(CheckRelativePath("checkpoints/step-10/..weights").ok());
  EXPECT_TRUE(CheckRelativePath(std::string(255, 'n')).ok());
}

TEST(ManifestTest, RefusesBadEntries) {
  const std::string hash = Sha256Hex("");
  const auto with = [&](const std::string& path, const std::string& sha256, int64_t bytes) {
    return ParseManifest(ToJson(Manifest{{{"first", hash, 0}, {path, sha256, bytes}}})).status();
  };
  EXPECT_TRUE(with("second", hash, 1).ok());
  EXPECT_FALSE(with("first", hash, 1).ok());
  EXPECT_FALSE(with("../second", hash, 1).ok());
  EXPECT_FALSE(with("second", "123", 1).ok());
  EXPECT_FALSE(with("second", hash, -1).ok());
  EXPECT_FALSE(ParseManifest({{"files", "x"}}).ok());
}

TEST(ManifestTest, ListsAFolderSortedAndRefusesLinks) {
  TempFolder folder;
  fs::create_directory(folder.path() + "/sub");
  std::ofstream(folder.path() + "/sub/b") << "bb";
  std::ofstream(folder.path() + "/a") << "a";
  const auto manifest = ManifestOfFolder(folder.path());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(*manifest, (Manifest{{{"a", Sha256Hex("a"), 1}, {"sub/b", Sha256Hex("bb"), 2}}}));
  fs::create_symlink("/etc/passwd", folder.path() + "/link");
  EXPECT_EQ(ManifestOfFolder(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FileArtifactStoreTest, TakesABlobFromAnotherStoreAndReplacesADamagedOne) {
  TempFolder folder;
  const auto store = *FileArtifactStore::Open(folder.path() + "/store");
  const auto other = *FileArtifactStore::Open(folder.path() + "/other");
  const std::string sha256 = Sha256Hex("content");
  {
    const auto writer = *store->PutBlob(sha256, 7);
    ASSERT_TRUE(writer->Append("content").ok());
    ASSERT_TRUE(writer->Commit().ok());
  }
  ASSERT_TRUE(other->AddFrom(*store, sha256).ok());
  EXPECT_EQ(*other->BlobSize(sha256), 7);
  const std::string path = *other->BlobPath(sha256);
  fs::remove(path);
  std::ofstream(path) << "damaged";
  ASSERT_TRUE(other->AddFrom(*store, sha256).ok());
  EXPECT_EQ(*Sha256OfFile(path), sha256);
  EXPECT_TRUE(absl::IsNotFound(other->AddFrom(*store, Sha256Hex("never stored"))));
  fs::remove(path);
  std::ofstream(*store->BlobPath(sha256)) << "rotten";
  EXPECT_TRUE(absl::IsDataLoss(other->AddFrom(*store, sha256)));
  EXPECT_FALSE(other->HasBlob(sha256));
}

}  // namespace
}  // namespace luthier
