#include "lib/artifact/checked_blob.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {

namespace {

constexpr size_t kReadChunk = size_t{1} << 20;

}  // namespace

absl::Status CheckReceived(const std::string& found, const std::string& expected, int64_t bytes) {
  if (found == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("received ", bytes, " bytes with SHA-256 ", found, ", expected ",
                                                 expected, "; send the file again"));
}

absl::StatusOr<size_t> CheckedReader::Read(std::span<char> buffer) {
  if (buffer.empty()) return 0;
  LUTHIER_ASSIGN_OR_RETURN(const size_t count, ReadSome(position_, buffer));
  hash_.Update(absl::string_view(buffer.data(), count));
  position_ += static_cast<int64_t>(count);
  if ((count == 0 || position_ >= size_) && !checked_) {
    checked_ = true;
    intact_ = hash_.FinishHex() == sha256_;
  }
  if (checked_ && !intact_) {
    return absl::DataLossError(absl::StrCat(place_, ": blob ", sha256_,
                                            " is damaged, its content has another hash; restore it from a backup"));
  }
  return count;
}

void CheckedReader::Begin(int64_t bytes, Sha256 hash) {
  position_ = bytes;
  hash_ = std::move(hash);
}

absl::Status CheckedReader::SkipTo(int64_t offset) {
  std::vector<char> buffer(kReadChunk);
  while (position_ < offset) {
    const size_t wanted =
        static_cast<size_t>(std::min<int64_t>(offset - position_, static_cast<int64_t>(buffer.size())));
    LUTHIER_ASSIGN_OR_RETURN(const size_t count, Read({buffer.data(), wanted}));
    if (count == 0) return absl::DataLossError(absl::StrCat("blob ", sha256_, " became shorter"));
  }
  return absl::OkStatus();
}

}  // namespace luthier
