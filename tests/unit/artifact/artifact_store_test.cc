#include "lib/artifact/artifact_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <thread>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ArtifactStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { OpenAgain(); }

  void OpenAgain() {
    auto store = FileArtifactStore::Open(folder_.path() + "/store");
    ASSERT_TRUE(store.ok()) << store.status();
    pins_.reset();  // they belong to the store that goes
    store_ = *std::move(store);
    pins_.emplace(*store_);
  }

  std::string Put(const std::string& content) {
    auto writer = store_->PutBlob(static_cast<int64_t>(content.size()), &*pins_);
    EXPECT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE((*writer)->Append(content).ok());
    const auto sha256 = (*writer)->Commit(Sha256Hex(content));
    EXPECT_TRUE(sha256.ok()) << sha256.status();
    return *sha256;
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

  std::vector<std::string> Incoming() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path() + "/store/incoming")) names.push_back(entry.path());
    return names;
  }

  // Everything that was put by this test is no longer being uploaded.
  void EndUploads() { pins_.emplace(*store_); }
  Garbage Collect(FileArtifactStore::References used = {}, absl::Duration keep = absl::ZeroDuration()) {
    const absl::StatusOr<Garbage> garbage = store_->CollectGarbage([&] { return used; }, keep);
    EXPECT_TRUE(garbage.ok()) << garbage.status();
    return *garbage;
  }

  TempFolder folder_;
  std::unique_ptr<FileArtifactStore> store_;
  std::optional<BlobPins> pins_;
};

TEST_F(ArtifactStoreTest, ReadsBackWhatWasStoredAlsoFromTheMiddle) {
  const std::string sha256 = Put("weights of an adapter");
  EXPECT_EQ(*Get(sha256), "weights of an adapter");
  EXPECT_EQ(*Get(sha256, 11), "an adapter");
  EXPECT_EQ(*Get(sha256, 21), "");
  EXPECT_EQ(*store_->BlobSize(sha256), 21);
  EXPECT_EQ(Get(sha256, 22).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(ArtifactStoreTest, AnEmptyBlobIsABlob) { EXPECT_EQ(*Get(Put("")), ""); }

TEST_F(ArtifactStoreTest, SameContentIsStoredOnce) {
  EXPECT_EQ(Put("same"), Put("same"));
  EXPECT_EQ(*Get(Sha256Hex("same")), "same");
}

TEST_F(ArtifactStoreTest, BytesThatDifferFromTheExpectedHashAreNotStored) {
  auto writer = store_->PutBlob(0, &*pins_);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Append("corrupted on the way").ok());
  EXPECT_EQ((*writer)->Commit(Sha256Hex("as it was sent")).status().code(), absl::StatusCode::kDataLoss);
  writer->reset();
  EXPECT_FALSE(store_->HasBlob(Sha256Hex("corrupted on the way")));
  EXPECT_FALSE(store_->HasBlob(Sha256Hex("as it was sent")));
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(ArtifactStoreTest, AFlippedByteOnDiskIsDetectedAndNeverServedAsComplete) {
  const std::string sha256 = Put("weights of an adapter");
  std::fstream file(*store_->BlobPath(sha256), std::ios::in | std::ios::out);
  file.seekp(3);
  file.put('X');
  file.close();
  EXPECT_EQ(Get(sha256).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Get(sha256, 10).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ArtifactStoreTest, ATruncatedBlobIsDetected) {
  const std::string sha256 = Put("weights of an adapter");
  fs::resize_file(*store_->BlobPath(sha256), 5);
  EXPECT_EQ(Get(sha256).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ArtifactStoreTest, MoreThanTheDiskHoldsIsRefusedBeforeWriting) {
  const auto writer = store_->PutBlob(std::numeric_limits<int64_t>::max(), &*pins_);
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("free space"));
}

TEST_F(ArtifactStoreTest, UnfinishedFilesOfADeadProcessAreRemovedAtOpen) {
  const std::string kept = Put("finished");
  std::ofstream(folder_.path() + "/store/incoming/blob.tmp-abcdef") << "half";
  OpenAgain();
  EXPECT_THAT(Incoming(), IsEmpty());
  EXPECT_TRUE(store_->HasBlob(kept));
}

TEST_F(ArtifactStoreTest, BlobNamesThatAreNoHashAreRefused) {
  for (const char* name : {"", "../../../etc/passwd", "abc"}) {
    EXPECT_EQ(store_->OpenBlob(name, 0).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(store_->OpenBlob(Sha256Hex("absent"), 0).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ArtifactStoreTest, PublishesAnArtifactOnce) {
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

TEST_F(ArtifactStoreTest, AManifestNeedsItsBlobs) {
  const Manifest missing = {{{"a", Sha256Hex("never stored"), 3}}};
  EXPECT_EQ(store_->PutManifest({"j1", 1, "adapter"}, missing).code(), absl::StatusCode::kFailedPrecondition);
  const Manifest wrong_size = {{{"a", Put("stored"), 99}}};
  EXPECT_EQ(store_->PutManifest({"j1", 1, "adapter"}, wrong_size).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ArtifactStoreTest, ADamagedManifestIsNoManifest) {
  const ArtifactKey key = {"j1", 1, "adapter"};
  ASSERT_TRUE(store_->PutManifest(key, {{{"a", Put("x"), 1}}}).ok());
  std::ofstream(folder_.path() + "/store/jobs/j1/attempt-1/adapter/manifest.json") << "{\"files\": [";
  EXPECT_EQ(store_->GetManifest(key).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ArtifactStoreTest, KeysCannotLeaveTheRoot) {
  for (const ArtifactKey& key : {ArtifactKey{"..", 1, "a"}, ArtifactKey{"j/../..", 1, "a"}, ArtifactKey{"j", 0, "a"},
                                 ArtifactKey{"j", 1, ""}, ArtifactKey{"j", 1, "../x"}}) {
    EXPECT_EQ(store_->PutManifest(key, {}).code(), absl::StatusCode::kInvalidArgument) << key.job << " " << key.name;
  }
}

TEST_F(ArtifactStoreTest, ABlobCanBeDeletedTwice) {
  const std::string sha256 = Put("old checkpoint");
  EXPECT_TRUE(store_->DeleteBlob(sha256).ok());
  EXPECT_TRUE(store_->DeleteBlob(sha256).ok());
  EXPECT_FALSE(store_->HasBlob(sha256));
}

TEST_F(ArtifactStoreTest, RemovesBlobsAndManifestsThatNothingRefersTo) {
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

TEST_F(ArtifactStoreTest, KeepsWhatIsBeingUploadedAndWhatIsYoung) {
  const std::string sha256 = Put("uploading");
  EXPECT_EQ(Collect().blobs, 0);
  EndUploads();
  EXPECT_EQ(Collect({}, absl::Hours(1)).blobs, 0);
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_FALSE(store_->HasBlob(sha256));
}

// An upload of content that lies there unused begins and ends while a collection asks what is referred to.
TEST_F(ArtifactStoreTest, KeepsABlobThatWasUploadedAgainDuringACollection) {
  const std::string sha256 = Put("again");
  EndUploads();
  const auto garbage = store_->CollectGarbage(
      [&]() -> absl::StatusOr<FileArtifactStore::References> {
        Put("again");
        EndUploads();
        return FileArtifactStore::References{};  // asked a moment before the upload's row was written
      },
      absl::ZeroDuration());
  ASSERT_TRUE(garbage.ok());
  EXPECT_EQ(garbage->blobs, 0);
  EXPECT_TRUE(store_->HasBlob(sha256));
}

TEST_F(ArtifactStoreTest, RemovesNothingIfItIsNotKnownWhatIsReferredTo) {
  const std::string sha256 = Put("x");
  EndUploads();
  const auto garbage =
      store_->CollectGarbage([] { return absl::UnavailableError("no database"); }, absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(garbage.status()));
  EXPECT_TRUE(store_->HasBlob(sha256));
}

// Uploads and collections beside each other: what an upload holds is there for as long as it holds it.
TEST_F(ArtifactStoreTest, AnUploadNeverLosesItsBlobToACollection) {
  std::atomic<bool> done = false;
  std::thread collector([&] {
    while (!done) Collect();
  });
  for (int round = 0; round < 200; ++round) {
    BlobPins pins(*store_);
    auto writer = store_->PutBlob(0, &pins);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append("the same content every time").ok());
    const auto sha256 = (*writer)->Commit("");
    ASSERT_TRUE(sha256.ok()) << sha256.status();
    ASSERT_TRUE(store_->HasBlob(*sha256)) << "round " << round;
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

TEST(OpenBeneathTest, FollowsNoLinkOnTheWay) {
  TempFolder folder;
  fs::create_directories(folder.path() + "/root/sub");
  std::ofstream(folder.path() + "/secret") << "secret";
  std::ofstream(folder.path() + "/root/sub/file") << "mine";
  fs::create_symlink("../secret", folder.path() + "/root/link");
  fs::create_directory_symlink("..", folder.path() + "/root/up");
  mkfifo((folder.path() + "/root/pipe").c_str(), 0600);
  const std::string root = folder.path() + "/root";

  const auto file = OpenBeneath(root, "sub/file");
  ASSERT_TRUE(file.ok()) << file.status();
  close(*file);
  for (const char* path : {"link", "up/secret", "../secret", "pipe", "sub"}) {
    EXPECT_EQ(OpenBeneath(root, path).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_EQ(OpenBeneath(root, "absent").status().code(), absl::StatusCode::kNotFound);
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

TEST_F(ArtifactStoreTest, TakesABlobFromAnotherStoreAndReplacesADamagedOne) {
  const std::string sha256 = Put("content");
  const auto other = *FileArtifactStore::Open(folder_.path() + "/other");
  ASSERT_TRUE(other->AddFrom(*store_, sha256).ok());
  EXPECT_EQ(*other->BlobSize(sha256), 7);
  const std::string path = *other->BlobPath(sha256);
  fs::remove(path);
  std::ofstream(path) << "damaged";
  ASSERT_TRUE(other->AddFrom(*store_, sha256).ok());
  EXPECT_EQ(*Sha256OfFile(path), sha256);
  EXPECT_TRUE(absl::IsNotFound(other->AddFrom(*store_, Sha256Hex("never stored"))));
  fs::remove(path);
  std::ofstream(*store_->BlobPath(sha256)) << "rotten";
  EXPECT_TRUE(absl::IsDataLoss(other->AddFrom(*store_, sha256)));
  EXPECT_FALSE(other->HasBlob(sha256));
}

}  // namespace
}  // namespace luthier
