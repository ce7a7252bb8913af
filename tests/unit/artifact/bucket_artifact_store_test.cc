// A bucket whose server fails, is slow or answers half: what is tried again, what is given up, and what is never seen.
#include "lib/artifact/bucket_artifact_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/support/cloud_server.h"
#include "tests/support/faulty_proxy.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using Fault = FaultyProxy::Fault;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr size_t kMega = size_t{1} << 20;

class BucketArtifactStoreTest : public ::testing::Test {
 protected:
  // The store as it is seen through a proxy with that rule.
  void OpenThrough(FaultyProxy::Rule rule, Bucket::Options options = Quick()) {
    store_.reset();
    proxy_.emplace(Cloud().port(), std::move(rule));
    Cloud().UseFromHere(proxy_->port());
    auto store = BucketArtifactStore::Open(Options(options), "owner");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  void OpenDirectly() {
    Cloud().UseFromHere(Cloud().port());
    auto store = BucketArtifactStore::Open(Options(), "owner");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  BucketArtifactStore::Options Options(Bucket::Options options = Quick()) const {
    return {
        .address = Cloud().Address(prefix_), .cache = folder_.path() + "/cache", .cache_bytes = 10, .bucket = options};
  }
  static Bucket::Options Quick() {
    return {.max_retries = 4, .retry_timeout = absl::Seconds(30), .request_timeout = absl::Seconds(20)};
  }

  absl::Status Put(const std::string& content, std::string sha256 = "") {
    if (sha256.empty()) sha256 = Sha256Hex(content);
    auto writer = store_->PutBlob(sha256, static_cast<int64_t>(content.size()));
    if (!writer.ok()) return writer.status();
    for (size_t at = 0; at < content.size(); at += kMega) {
      const absl::Status status = (*writer)->Append(absl::string_view(content).substr(at, kMega));
      if (!status.ok()) return status;
    }
    return (*writer)->Commit();
  }
  absl::StatusOr<std::string> Get(const std::string& sha256) {
    auto reader = store_->OpenBlob(sha256, 0);
    if (!reader.ok()) return reader.status();
    std::string content;
    std::vector<char> buffer(kMega);
    while (true) {
      const auto count = (*reader)->Read(std::span<char>(buffer));
      if (!count.ok()) return count.status();
      if (*count == 0) return content;
      content.append(buffer.data(), *count);
    }
  }
  static std::string Content(size_t size) {
    std::string content;
    while (content.size() < size) absl::StrAppend(&content, content.size(), " ");
    content.resize(size);
    return content;
  }

  static std::string NewPrefix() {
    static int number = 0;
    return absl::StrCat("faults-", ++number);
  }

  TempFolder folder_;
  const std::string prefix_ = NewPrefix();
  std::optional<FaultyProxy> proxy_;
  std::unique_ptr<BucketArtifactStore> store_;
};

// Every request fails once.
TEST_F(BucketArtifactStoreTest, TriesAgainWhatFailedOnTheServersSide) {
  std::mutex mutex;
  std::set<std::string> failed;
  OpenThrough([&](const std::string& request) {
    const std::lock_guard lock(mutex);
    if (!failed.insert(request).second) return Fault::kNone;
    return failed.size() % 2 == 0 ? Fault::kUnavailable : Fault::kInternal;
  });
  const std::string content = Content(18 * kMega);
  ASSERT_TRUE(Put(content).ok());
  const absl::StatusOr<std::string> found = Get(Sha256Hex(content));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(*found == content);
  const Manifest manifest = {{{"weights", Sha256Hex(content), static_cast<int64_t>(content.size())}}};
  ASSERT_TRUE(store_->PutManifest({"j", 1, "artifact"}, manifest).ok());
  EXPECT_EQ(*store_->GetManifest({"j", 1, "artifact"}), manifest);
  int parts = 0;
  for (const std::string& request : proxy_->requests()) parts += Cloud().PartOf(request).empty() ? 0 : 1;
  EXPECT_EQ(parts, 6) << "three of 8 MB at most, each of them twice";
  EXPECT_EQ(Cloud().UnfinishedUploads(), 0);
}

TEST_F(BucketArtifactStoreTest, GoesOnWhereAnAnswerWasCut) {
  std::atomic<int> cuts = 3;
  OpenThrough([&](const std::string& request) {
    const bool blob = absl::StartsWith(request, "GET ") && absl::StrContains(request, "/blobs/");
    return blob && cuts-- > 0 ? Fault::kCutAnswer : Fault::kNone;
  });
  const std::string content = Content(5 * kMega);
  ASSERT_TRUE(Put(content).ok());
  const absl::StatusOr<std::string> found = Get(Sha256Hex(content));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(*found == content);
  EXPECT_LE(cuts, 0);
}

TEST_F(BucketArtifactStoreTest, TriesAgainWhatIsNotAnsweredInTime) {
  std::atomic<int> silent = 2;
  OpenThrough(
      [&](const std::string& request) {
        return absl::StrContains(request, "/blobs/") && silent-- > 0 ? Fault::kSilence : Fault::kNone;
      },
      {.max_retries = 4, .retry_timeout = absl::Seconds(30), .request_timeout = absl::Milliseconds(700)});
  ASSERT_TRUE(Put("rows").ok());
  EXPECT_EQ(*Get(Sha256Hex("rows")), "rows");
  EXPECT_LE(silent, 0);
}

// Only the first part that comes gets through: nothing of the blob is seen, and that part does not stay either.
TEST_F(BucketArtifactStoreTest, AnUploadThatCannotBeFinishedIsAborted) {
  std::mutex mutex;
  std::string first;
  OpenThrough(
      [&](const std::string& request) {
        const std::string part = Cloud().PartOf(request);
        const std::lock_guard lock(mutex);
        if (first.empty()) first = part;
        return part.empty() || part == first ? Fault::kNone : Fault::kUnavailable;
      },
      {.max_retries = 2, .retry_timeout = absl::Seconds(10), .request_timeout = absl::Seconds(10)});
  const std::string content = Content(18 * kMega);
  const absl::Status put = Put(content);
  EXPECT_TRUE(absl::IsUnavailable(put)) << put;
  EXPECT_THAT(std::string(put.message()),
              AllOf(HasSubstr(Cloud().Address(prefix_)), HasSubstr(Sha256Hex(content)), HasSubstr("503"),
                    HasSubstr(Cloud().EndpointVariable()), Not(HasSubstr(Cloud().Secret()))));
  EXPECT_EQ(proxy_->Count("DELETE", "uploadId"), Cloud().scheme() == "az" ? 0 : 1) << "Azure has nothing to abort";
  EXPECT_EQ(Cloud().UnfinishedUploads(), 0);
  EXPECT_FALSE(store_->HasBlob(Sha256Hex(content)));
  const Manifest manifest = {{{"weights", Sha256Hex(content), static_cast<int64_t>(content.size())}}};
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->PutManifest({"j", 1, "artifact"}, manifest)));
}

TEST_F(BucketArtifactStoreTest, AManifestWhoseAnswerWasLostIsPublishedOnce) {
  std::atomic<int> lost = 1;
  OpenThrough([&](const std::string& request) {
    const bool put = absl::StartsWith(request, "PUT ") && absl::StrContains(request, "manifest.json");
    return put && lost-- > 0 ? Fault::kLoseAnswer : Fault::kNone;
  });
  ASSERT_TRUE(Put("weights").ok());
  ASSERT_TRUE(Put("others!").ok());
  const ArtifactKey key = {"j", 1, "artifact"};
  const Manifest manifest = {{{"a", Sha256Hex("weights"), 7}}}, other = {{{"a", Sha256Hex("others!"), 7}}};
  const absl::Status first = store_->PutManifest(key, manifest);
  EXPECT_TRUE(first.ok() || absl::IsUnavailable(first)) << first;
  const absl::Status second = store_->PutManifest(key, other), again = store_->PutManifest(key, manifest);
  EXPECT_TRUE(absl::IsAlreadyExists(second)) << second;
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(*store_->GetManifest(key), manifest);
}

// Whatever happens on the way: a manifest that is there is whole, and so is everything that it names.
TEST_F(BucketArtifactStoreTest, NoHalfArtifactIsEverSeen) {
  const unsigned seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  std::mutex mutex;
  std::minstd_rand random(seed);
  std::atomic<bool> faulty = false;
  OpenThrough(
      [&](const std::string&) {
        const std::lock_guard lock(mutex);
        constexpr Fault kFaults[] = {Fault::kUnavailable, Fault::kInternal, Fault::kLoseAnswer, Fault::kCutAnswer};
        return faulty && random() % 2 == 0 ? kFaults[random() % 4] : Fault::kNone;
      },
      {.max_retries = 1, .retry_timeout = absl::Seconds(10), .request_timeout = absl::Seconds(10)});
  int published = 0;
  for (int round = 1; round <= 20; ++round) {
    const ArtifactKey key = {"j", round, "artifact"};
    Manifest manifest;
    faulty = true;
    for (int file = 0; file < 2; ++file) {
      const std::string content = absl::StrCat("round ", round, " file ", file);
      (void)Put(content);
      manifest.files.push_back({absl::StrCat("file-", file), Sha256Hex(content), static_cast<int64_t>(content.size())});
    }
    (void)store_->PutManifest(key, manifest);
    faulty = false;
    const absl::StatusOr<Manifest> found = store_->GetManifest(key);
    if (absl::IsNotFound(found.status())) continue;
    ++published;
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, manifest);
    for (const ManifestFile& file : found->files) EXPECT_TRUE(Get(file.sha256).ok()) << file.path;
  }
  EXPECT_GT(published, 0);
  EXPECT_LT(published, 20);
}

TEST_F(BucketArtifactStoreTest, ADeniedRequestIsNotRepeatedAndSaysWhatIsMissing) {
  std::atomic<bool> denied = false;
  OpenThrough([&](const std::string&) { return denied ? Fault::kDenied : Fault::kNone; });
  denied = true;
  const size_t before = proxy_->requests().size();
  const absl::Status put = Put("rows");
  EXPECT_TRUE(absl::IsUnavailable(put)) << put;
  EXPECT_THAT(std::string(put.message()),
              AllOf(HasSubstr("access is denied"), HasSubstr(Cloud().KeyVariable()), Not(HasSubstr(Cloud().Secret()))));
  EXPECT_EQ(proxy_->requests().size(), before + 1);
}

TEST_F(BucketArtifactStoreTest, ABucketThatDoesNotExistIsSaidToBeMissing) {
  Cloud().UseFromHere(Cloud().port());
  BucketArtifactStore::Options options = Options();
  options.address = Cloud().scheme() + "://another-bucket/prefix";
  const auto store = BucketArtifactStore::Open(options, "owner");
  EXPECT_TRUE(absl::IsUnavailable(store.status()));
  EXPECT_THAT(std::string(store.status().message()), AllOf(HasSubstr(options.address), HasSubstr("does not exist")));
}

TEST_F(BucketArtifactStoreTest, TwoServersNeverShareAPrefix) {
  OpenThrough([](const std::string&) { return Fault::kNone; });
  EXPECT_EQ(*BucketArtifactStore::OwnerOf(Options()), "owner");
  EXPECT_TRUE(BucketArtifactStore::Open(Options(), "owner").ok());
  const auto other = BucketArtifactStore::Open(Options(), "another");
  EXPECT_TRUE(absl::IsFailedPrecondition(other.status()));
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("prefix of its own"));
}

TEST_F(BucketArtifactStoreTest, AnAddressWithASecretIsRefusedWithoutRepeatingIt) {
  const std::string scheme = Cloud().scheme();
  Cloud().UseFromHere(Cloud().port());
  for (const std::string& address :
       {scheme + "://", scheme + ":///prefix", std::string("/folder"), std::string("https://host/bucket"),
        std::string("gcs://bucket"), scheme + "://bucket/../other",
        absl::StrCat(scheme, "://key:", Cloud().Secret(), "@bucket")}) {
    const auto bucket = Bucket::Open(address, {});
    EXPECT_TRUE(absl::IsInvalidArgument(bucket.status())) << address;
    EXPECT_THAT(std::string(bucket.status().message()), Not(HasSubstr(Cloud().Secret())));
  }
  EXPECT_EQ((*Bucket::Open(scheme + "://bucket/prefix/", {}))->address(), scheme + "://bucket/prefix");
}

// What a URL says behind the server's address.
std::string TargetOf(const std::string& url) {
  EXPECT_TRUE(absl::StartsWith(url, CloudServer::Endpoint(Cloud().port()) + "/")) << url;
  return url.substr(CloudServer::Endpoint(Cloud().port()).size());
}

TEST_F(BucketArtifactStoreTest, ASignedUrlIsEnoughForItsBlob) {
  OpenDirectly();
  ASSERT_TRUE(Put("weights").ok());
  const absl::StatusOr<std::string> url = store_->SignBlob(Sha256Hex("weights"), absl::Hours(1));
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(HttpGet(Cloud().port(), TargetOf(*url)), "weights");
  EXPECT_THAT(*url, Not(HasSubstr(Cloud().Secret())));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->SignBlob("../owner", absl::Hours(1)).status()));
}

TEST_F(BucketArtifactStoreTest, ASignedUrlIsForOneBlobAndForItsLifetimeOnly) {
  if (Cloud().scheme() == "s3") GTEST_SKIP() << "SKIPPED: moto looks at no signature; the other servers do";
  OpenDirectly();
  ASSERT_TRUE(Put("weights").ok());
  ASSERT_TRUE(Put("others!").ok());
  const auto path = [](const std::string& sha256) { return "/" + sha256.substr(0, 2) + "/" + sha256; };
  const std::string mine = Sha256Hex("weights"), other = Sha256Hex("others!");
  const std::string target = TargetOf(*store_->SignBlob(mine, absl::Hours(1)));
  EXPECT_EQ(HttpGet(Cloud().port(), absl::StrReplaceAll(target, {{path(mine), path(other)}})), "");
  EXPECT_EQ(HttpGet(Cloud().port(), target.substr(0, target.find('?'))), "") << "unsigned";
  const std::string soon = TargetOf(*store_->SignBlob(mine, absl::Seconds(1)));
  EXPECT_TRUE(WaitFor([&] { return HttpGet(Cloud().port(), soon).empty(); }));
  EXPECT_EQ(HttpGet(Cloud().port(), target), "weights");
}

TEST_F(BucketArtifactStoreTest, CredentialsThatCannotSignSaySo) {
  if (!Cloud().UseWithoutKey()) GTEST_SKIP() << "SKIPPED: all credentials of S3 can";
  const auto store = BucketArtifactStore::OpenToRead(Options());
  ASSERT_TRUE(store.ok()) << store.status();
  const absl::Status url = (*store)->SignBlob(Sha256Hex("weights"), absl::Hours(1)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(url)) << url;
  EXPECT_THAT(std::string(url.message()),
              AllOf(HasSubstr(Cloud().Address(prefix_)), HasSubstr(Cloud().KeyVariable()), Not(HasSubstr("sig="))));
}

TEST_F(BucketArtifactStoreTest, TheRoleOfAMachineIsEnoughToReadAndWrite) {
  if (Cloud().scheme() != "gs") GTEST_SKIP() << "SKIPPED: only the server of Google's protocol plays the machine, too";
  Cloud().UseWithoutKey();
  auto store = BucketArtifactStore::Open(Options(), "owner");
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  ASSERT_TRUE(Put("rows").ok());
  EXPECT_EQ(*Get(Sha256Hex("rows")), "rows");
}

TEST_F(BucketArtifactStoreTest, AKeyInQuotesIsRefusedWithoutRepeatingIt) {
  if (Cloud().scheme() != "gs") GTEST_SKIP() << "SKIPPED: the other clouds' keys are in no JSON";
  Cloud().UseFromHere(Cloud().port());
  setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "\"{\\\"private_key\\\": \\\"not to be seen\\\"}\"", 1);
  const absl::Status opened = Bucket::Open(Options().address, {}).status();
  unsetenv("GOOGLE_SERVICE_ACCOUNT_KEY");
  EXPECT_TRUE(absl::IsInvalidArgument(opened)) << opened;
  EXPECT_THAT(std::string(opened.message()),
              AllOf(HasSubstr("GOOGLE_SERVICE_ACCOUNT_KEY"), Not(HasSubstr("not to be seen"))));
}

// Who asks again learns that there is no such upload.
TEST_F(BucketArtifactStoreTest, AnUploadWhoseLastAnswerWasLostIsComplete) {
  std::atomic<int> lost = 1;
  OpenThrough([&](const std::string& request) {
    const bool last = absl::StrContains(request, "comp=blocklist") ||
                      (absl::StartsWith(request, "POST ") && absl::StrContains(request, "uploadId="));
    return last && lost-- > 0 ? Fault::kLoseAnswer : Fault::kNone;
  });
  const std::string content = Content(18 * kMega);
  const absl::Status put = Put(content);
  ASSERT_TRUE(put.ok()) << put;
  EXPECT_LE(lost, 0);
  EXPECT_TRUE(*Get(Sha256Hex(content)) == content);
}

TEST_F(BucketArtifactStoreTest, AnUploadThatTheBucketGaveUpFails) {
  if (Cloud().scheme() == "az") GTEST_SKIP() << "SKIPPED: nobody can remove parts of Azure's";
  OpenDirectly();
  const std::string content = Content(18 * kMega), sha256 = Sha256Hex(content);
  const auto writer = *store_->PutBlob(sha256, static_cast<int64_t>(content.size()));
  for (size_t at = 0; at < content.size(); at += kMega)
    ASSERT_TRUE(writer->Append(absl::string_view(content).substr(at, kMega)).ok());
  Cloud().AbortUploads();
  const absl::Status stored = writer->Commit();
  EXPECT_TRUE(absl::IsUnavailable(stored)) << stored;
  EXPECT_THAT(std::string(stored.message()),
              AllOf(HasSubstr(Cloud().Address(prefix_)), HasSubstr("gave the upload up")));
  EXPECT_FALSE(store_->HasBlob(sha256));
  EXPECT_TRUE(Put(content).ok());
}

// Azure forgets the parts of one when the other is complete.
TEST_F(BucketArtifactStoreTest, TwoUploadsOfTheSameBlobBothSucceed) {
  OpenDirectly();
  const std::string content = Content(18 * kMega), sha256 = Sha256Hex(content);
  const auto first = *store_->PutBlob(sha256, static_cast<int64_t>(content.size()));
  const auto second = *store_->PutBlob(sha256, static_cast<int64_t>(content.size()));
  for (size_t at = 0; at < content.size(); at += kMega) {
    ASSERT_TRUE(first->Append(absl::string_view(content).substr(at, kMega)).ok());
    ASSERT_TRUE(second->Append(absl::string_view(content).substr(at, kMega)).ok());
  }
  for (BlobWriter* const writer : {first.get(), second.get()}) {
    const absl::Status stored = writer->Commit();
    EXPECT_TRUE(stored.ok()) << stored;
  }
  EXPECT_TRUE(*Get(sha256) == content);
}

// The cache of this fixture holds 10 bytes.
TEST_F(BucketArtifactStoreTest, TheCacheKeepsWhatIsInUseAndGivesUpTheRest) {
  OpenThrough([](const std::string&) { return Fault::kNone; });
  for (const char* content : {"12345678", "abcdefgh"}) ASSERT_TRUE(Put(content).ok());
  absl::StatusOr<LocalBlob> first = store_->MakeLocal(Sha256Hex("12345678"));
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string path = first->path;
  const absl::Status full = store_->MakeLocal(Sha256Hex("abcdefgh")).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("--artifact-cache-limit is 10 B; raise it"));
  EXPECT_TRUE(std::filesystem::exists(path));
  first->lease.reset();
  EXPECT_TRUE(store_->MakeLocal(Sha256Hex("abcdefgh")).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(BucketArtifactStoreTest, AFileOfTheCacheThatChangedIsFetchedAgain) {
  OpenThrough([](const std::string&) { return Fault::kNone; });
  ASSERT_TRUE(Put("rows").ok());
  const std::string path = store_->MakeLocal(Sha256Hex("rows"))->path;
  OpenThrough([](const std::string&) { return Fault::kNone; });  // as the next process would
  std::ofstream(path) << "cows";
  ASSERT_TRUE(store_->MakeLocal(Sha256Hex("rows")).ok());
  EXPECT_EQ(*Sha256OfFile(path), Sha256Hex("rows"));
  EXPECT_EQ(proxy_->Count("GET", "/blobs/"), 1);
}

TEST_F(BucketArtifactStoreTest, ADamagedObjectIsNeverMadeLocal) {
  OpenThrough([](const std::string&) { return Fault::kNone; });
  const std::string sha256 = Sha256Hex("rows");
  ASSERT_TRUE(Put("rows").ok());
  Cloud().Put(prefix_ + "/blobs/sha256/" + sha256.substr(0, 2) + "/" + sha256, "cows");
  const absl::Status local = store_->MakeLocal(sha256).status();
  EXPECT_TRUE(absl::IsDataLoss(local)) << local;
  EXPECT_THAT(std::string(local.message()), HasSubstr(Cloud().Address(prefix_)));
}

// Its beginning is not fetched once more, and counts all the same.
TEST_F(BucketArtifactStoreTest, ADownloadGoesOnWithWhatIsMissing) {
  OpenThrough([](const std::string&) { return Fault::kNone; });
  std::string content = Content(18 * kMega);
  const std::string sha256 = Sha256Hex(content);
  ASSERT_TRUE(Put(content).ok());
  const auto read_from = [&](size_t offset, size_t bytes) -> absl::StatusOr<std::string> {
    auto reader = store_->OpenBlob(sha256, static_cast<int64_t>(offset));
    if (!reader.ok()) return reader.status();
    std::string found;
    std::vector<char> buffer(kMega);
    while (found.size() < bytes) {
      const auto count = (*reader)->Read(std::span<char>(buffer));
      if (!count.ok()) return count.status();
      if (*count == 0) break;
      found.append(buffer.data(), *count);
    }
    return found;
  };
  const auto fetches = [&] { return proxy_->Count("GET", "/blobs/"); };
  ASSERT_TRUE(read_from(0, 14 * kMega).ok());
  const int before = fetches();
  EXPECT_GE(before, 4) << "pieces of 4 MB";
  const absl::StatusOr<std::string> rest = read_from(13 * kMega, content.size());
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_TRUE(*rest == content.substr(13 * kMega));
  EXPECT_LE(fetches() - before, 2);

  content.back() ^= 1;
  Cloud().Put(absl::StrCat(prefix_, "/blobs/sha256/", sha256.substr(0, 2), "/", sha256), content);
  EXPECT_TRUE(absl::IsDataLoss(read_from(13 * kMega, content.size()).status()));
}

// Bytes of this process's memory at this moment.
int64_t Memory() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm").ignore(100, ' ') >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

TEST_F(BucketArtifactStoreTest, ALargeBlobTakesLittleMemory) {
  OpenDirectly();  // a proxy would hold whole parts, too
  constexpr size_t kSize = 160 * kMega;
  const std::string piece = Content(kMega);
  Sha256 hash;
  for (size_t at = 0; at < kSize; at += kMega) hash.Update(absl::string_view(piece));
  const std::string sha256 = hash.FinishHex();
  const int64_t before = Memory();
  int64_t most = before;
  const auto writer = *store_->PutBlob(sha256, kSize);
  for (size_t at = 0; at < kSize; at += kMega) {
    ASSERT_TRUE(writer->Append(piece).ok());
    most = std::max(most, Memory());
  }
  ASSERT_TRUE(writer->Commit().ok());
  const auto reader = *store_->OpenBlob(sha256, 0);
  std::vector<char> buffer(kMega);
  absl::StatusOr<size_t> count = 1;
  while (count.ok() && *count > 0) {
    count = reader->Read(std::span<char>(buffer));
    most = std::max(most, Memory());
  }
  EXPECT_TRUE(count.ok()) << count.status();
  EXPECT_LT(most - before, int64_t{80} << 20);
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::RunCloudTests(argc, argv); }
