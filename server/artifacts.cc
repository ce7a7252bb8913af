#include "server/artifacts.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/artifact/bucket_artifact_store.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/file_artifact_store.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// What a data folder remembers of its bucket.
struct Claim {
  std::string owner;    // of the bucket: this data folder
  std::string address;  // empty: none was opened yet
};

std::string ClaimPath(const std::string& data_dir) { return data_dir + "/artifact-store.json"; }

std::string AddressOf(const ServerOptions& options) {
  return std::string(absl::StripSuffix(options.artifact_store, "/"));
}

BucketArtifactStore::Options BucketOptions(const ServerOptions& options) {
  return {.address = AddressOf(options),
          .cache = options.data_dir + "/artifact-cache",
          .cache_bytes = options.artifact_cache_limit};
}

// Errors: NOT_FOUND if it has none.
absl::StatusOr<Claim> ReadClaim(const std::string& data_dir) {
  std::ifstream stream(ClaimPath(data_dir));
  if (!stream) return absl::NotFoundError(data_dir);
  const nlohmann::json json = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("owner") || !json.contains("address"))
    return absl::DataLossError(absl::StrCat(ClaimPath(data_dir), ": is damaged; bring it back from a backup"));
  return Claim{json["owner"], json["address"]};
}

absl::Status WriteClaim(const std::string& data_dir, const Claim& claim) {
  LUTHIER_RETURN_IF_ERROR(CreateFolders(data_dir));
  const nlohmann::json json = {{"owner", claim.owner}, {"address", claim.address}};
  return WriteFileDurably(ClaimPath(data_dir), json.dump(2) + "\n");
}

std::string NewOwner() {
  absl::BitGen random;
  const auto part = [&] { return absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16); };
  return absl::StrCat(part(), part());
}

absl::StatusOr<Claim> NewClaim(const ServerOptions& options, bool adopt) {
  if (fs::exists(LocalArtifacts(options.data_dir))) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the files of this server are in ", LocalArtifacts(options.data_dir),
        "; to move them, make a backup and `luthierd restore` it into a new data folder with this --artifact-store"));
  }
  if (!adopt) return Claim{NewOwner(), ""};
  LUTHIER_ASSIGN_OR_RETURN(std::string owner, BucketArtifactStore::OwnerOf(BucketOptions(options)));
  return Claim{std::move(owner), ""};
}

// The owner is kept before the bucket knows of it, so that a start that is cut short is made again by the next; the
// address after that, so that one that does not work can be corrected.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenBucket(const ServerOptions& options, bool adopt) {
  absl::StatusOr<Claim> claim = ReadClaim(options.data_dir);
  if (absl::IsNotFound(claim.status())) {
    claim = NewClaim(options, adopt);
    if (claim.ok()) LUTHIER_RETURN_IF_ERROR(WriteClaim(options.data_dir, *claim));
  }
  LUTHIER_RETURN_IF_ERROR(claim.status());
  if (!claim->address.empty() && claim->address != AddressOf(options)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the files of this server are in ", claim->address, "; give that"));
  }
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<ArtifactStore> store,
                           BucketArtifactStore::Open(BucketOptions(options), claim->owner));
  if (!claim->address.empty()) return store;
  claim->address = store->Address();
  LUTHIER_RETURN_IF_ERROR(WriteClaim(options.data_dir, *claim));
  return store;
}

absl::Status OfOption(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("--artifact-store: ", status.message()));
}

}  // namespace

std::string LocalArtifacts(const std::string& data_dir) { return data_dir + "/artifacts"; }

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenArtifacts(const ServerOptions& options,
                                                             const std::string& restored) {
  if (!restored.empty() && AddressOf(options) != restored) {
    return absl::FailedPreconditionError(
        absl::StrCat("--artifact-store: the files of this backup are in ", restored, "; give that"));
  }
  if (options.artifact_store.empty()) {
    const absl::StatusOr<Claim> claim = ReadClaim(options.data_dir);
    if (absl::IsNotFound(claim.status()) || (claim.ok() && claim->address.empty()))
      return FileArtifactStore::Open(LocalArtifacts(options.data_dir));
    LUTHIER_RETURN_IF_ERROR(claim.status());
    return absl::FailedPreconditionError(
        absl::StrCat("--artifact-store: the files of this server are in ", claim->address, "; give that"));
  }
  absl::StatusOr<std::unique_ptr<ArtifactStore>> store = OpenBucket(options, !restored.empty());
  if (!store.ok()) return OfOption(store.status());
  return store;
}

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenBucketToRead(const ServerOptions& options) {
  const absl::StatusOr<Claim> claim = ReadClaim(options.data_dir);
  if (claim.ok() && !claim->address.empty() && claim->address != AddressOf(options)) {
    return absl::FailedPreconditionError(
        absl::StrCat("--artifact-store: the files of this server are in ", claim->address, "; give that"));
  }
  if (options.artifact_store.empty()) return std::unique_ptr<ArtifactStore>();
  absl::StatusOr<std::unique_ptr<ArtifactStore>> store = BucketArtifactStore::OpenToRead(BucketOptions(options));
  if (!store.ok()) return OfOption(store.status());
  return store;
}

}  // namespace luthier
