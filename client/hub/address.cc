#include "client/hub/address.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace luthier {
namespace {

constexpr char kScheme[] = "hf://";
constexpr size_t kMaxName = 96;  // of the hub's own
constexpr size_t kMaxRevision = 255;

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxName && name != "." && name != ".." &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
         });
}

// Dots alone would be taken for a step within the URL's path.
bool IsRevision(absl::string_view revision) {
  return !revision.empty() && revision.size() <= kMaxRevision && revision != "." &&
         !absl::StrContains(revision, "..") && std::all_of(revision.begin(), revision.end(), [](char c) {
           return absl::ascii_isgraph(static_cast<unsigned char>(c));
         });
}

}  // namespace

std::string HubAddress::Text() const { return absl::StrCat(kScheme, repository, "@", revision); }

bool IsHubAddress(absl::string_view text) { return absl::StartsWith(text, kScheme); }

absl::StatusOr<HubAddress> ParseHubAddress(absl::string_view text) {
  std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text.substr(absl::string_view(kScheme).size()), absl::MaxSplits('@', 1));
  if (!absl::StrContains(text, '@')) parts.second = "main";
  const std::vector<absl::string_view> names = absl::StrSplit(parts.first, '/');
  if (names.size() != 2 || !IsName(names[0]) || !IsName(names[1]) || !IsRevision(parts.second)) {
    return absl::InvalidArgumentError(
        absl::StrCat(text,
                     ": is no model of the hub; give hf://ORG/REPO or hf://ORG/REPO@REVISION, as in "
                     "hf://Qwen/Qwen2.5-0.5B-Instruct@main"));
  }
  return HubAddress{.repository = std::string(parts.first), .revision = std::string(parts.second)};
}

}  // namespace luthier
