// How people name a model of the Hugging Face hub.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace luthier {

// hf://ORG/REPO@REVISION.
struct HubAddress {
  std::string repository;  // ORG/REPO
  std::string revision;    // a branch, a tag or a commit

  std::string Text() const;
};

bool IsHubAddress(absl::string_view text);

// The revision is `main` if none is given. Errors: INVALID_ARGUMENT. What it returns is safe as a part of a URL's path
// (the revision once it is encoded) and, without its slash, as a name of a folder.
absl::StatusOr<HubAddress> ParseHubAddress(absl::string_view text);

}  // namespace luthier
