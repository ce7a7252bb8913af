#include "lib/checkpoint/name_pattern.h"

#include <re2/re2.h>

#include <cstdint>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr size_t kLongestPattern = 1000;
// Compiled patterns that a thread keeps: a model has hundreds of names, and compiling takes a hundred times as long as
// matching.
constexpr size_t kKept = 256;
// Bytes that one of them may take, of which its program gets a sixth: enough for 10,000 instructions, and a letter is
// one.
constexpr int64_t kMaxMemory = 1 << 20;

const RE2& Compiled(const std::string& pattern) {
  thread_local std::map<std::string, std::unique_ptr<const RE2>> kept;
  const auto found = kept.find(pattern);
  if (found != kept.end()) return *found->second;
  if (kept.size() >= kKept) kept.clear();
  RE2::Options options(RE2::Quiet);
  options.set_max_mem(kMaxMemory);
  return *(kept[pattern] = std::make_unique<const RE2>(pattern, options));
}

bool FullMatch(const std::string& pattern, absl::string_view name) {
  const RE2& compiled = Compiled(pattern);
  return compiled.ok() && RE2::FullMatch(re2::StringPiece(name.data(), name.size()), compiled);
}

}  // namespace

absl::Status CheckPattern(const std::string& pattern) {
  if (pattern.size() > kLongestPattern) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", pattern.size(), " characters; give at most ", kLongestPattern));
  }
  const RE2& compiled = Compiled(pattern);
  if (compiled.ok()) return absl::OkStatus();
  const bool looks_around = compiled.error_code() == RE2::ErrorBadPerlOp;
  return absl::InvalidArgumentError(absl::StrCat("'", pattern, "' is no regular expression: ", compiled.error(), "; ",
                                                 looks_around
                                                     ? "look-around, which Python has, is not supported: give a list "
                                                       "of names, and in exclude_modules what to leave out"
                                                     : "give one in RE2's syntax, such as .*\\.q_proj"));
}

bool MatchesWhole(const std::string& pattern, absl::string_view name) { return FullMatch(pattern, name); }

bool MatchesEnd(const std::string& pattern, absl::string_view name) {
  return FullMatch(absl::StrCat("(?:.*\\.)?(?:", pattern, ")"), name);
}

bool MatchesBeginning(const std::string& pattern, absl::string_view name) {
  return FullMatch(absl::StrCat("(?:", pattern, ")(?:\\..*)?"), name);
}

}  // namespace luthier
