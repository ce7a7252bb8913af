#include "server/rpc/page.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr int kDefaultSize = 50, kMaxSize = 1000;
// Where no list goes; what is added to a position must not overflow.
constexpr int64_t kFarthest = int64_t{1} << 60;

// Long enough for a slip: who makes a token up sees no more than its list has.
std::string MarkOf(absl::string_view list) { return Sha256Hex(list).substr(0, 8); }

absl::Status CheckSize(int page_size) {
  if (page_size >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("page_size: ", page_size, " is negative; give 0 to ", kMaxSize));
}

// None for an empty token. Errors: as ParsePage.
absl::StatusOr<std::optional<Position>> PositionOf(absl::string_view list, const std::string& page_token) {
  if (page_token.empty()) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(page_token, absl::MaxSplits('/', 2));
  int64_t number = 0;
  const bool is_ours = parts.size() == 3 && absl::SimpleAtoi(parts[0], &number);
  if (!is_ours || number < -kFarthest || number > kFarthest) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_token: ", Shown(page_token),
                     " is no token of this server; give next_page_token of the page before, or leave it out"));
  }
  if (parts[1] != MarkOf(list)) {
    return absl::InvalidArgumentError(
        "page_token: belongs to another list, or to one with another filter or order; give next_page_token of the page "
        "before, or leave it out");
  }
  return Position(number, parts[2]);
}

}  // namespace

absl::StatusOr<PageRequest> ParsePage(absl::string_view list, int page_size, const std::string& page_token) {
  const absl::StatusOr<std::optional<Position>> after = PositionOf(list, page_token);
  LUTHIER_RETURN_IF_ERROR(AllOf({CheckSize(page_size), after.status()}));
  return PageRequest{.size = page_size == 0 ? kDefaultSize : std::min(page_size, kMaxSize), .after = *after};
}

std::string PageToken(absl::string_view list, const Position& after) {
  return absl::StrCat(after.first, "/", MarkOf(list), "/", after.second);
}

}  // namespace luthier
