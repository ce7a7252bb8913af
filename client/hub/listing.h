// What a repository of the hub holds at one commit.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/hub/address.h"

namespace luthier {

struct HubFile {
  std::string path;  // relative, and leads nowhere else
  // Of those that belong to a model (lib/checkpoint/model_files.h):
  int64_t bytes = 0;
  std::string sha256;   // of what the hub keeps beside Git (LFS, Xet); empty for the small rest
  std::string blob_id;  // GitBlobIdOfFile() of that rest; empty if the endpoint says none
};

struct HubListing {
  std::string commit;          // 40 hexadecimal digits
  std::vector<HubFile> files;  // each path once
};

// Parses the answer to GET /api/models/ORG/REPO/revision/REVISION?blobs=true (huggingface.co/docs/hub/api), and
// believes nothing of it. Errors: DATA_LOSS, without naming the endpoint.
absl::StatusOr<HubListing> ParseHubListing(absl::string_view json);

// Whether there are weights that Luthier reads. Errors: INVALID_ARGUMENT that says what is there instead, and what to
// do.
absl::Status CheckHasWeights(const HubListing& listing, const HubAddress& address);

// Of the files that belong to a model, those that are no weights: everything that is known of it before.
std::vector<HubFile> DescribingFiles(const HubListing& listing);

// The files of these names. Errors: INVALID_ARGUMENT for one that is not there.
absl::StatusOr<std::vector<HubFile>> FilesNamed(const HubListing& listing, const std::set<std::string>& names);

}  // namespace luthier
