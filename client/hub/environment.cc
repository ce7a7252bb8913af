#include "client/hub/environment.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/environment.h"
#include "lib/base/own_address.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

bool IsGraphic(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); });
}

absl::StatusOr<std::string> Endpoint(const std::string& usual) {
  const std::string given = Environment("HF_ENDPOINT");
  if (given.empty()) return usual;
  const bool address = absl::StartsWith(given, "https://") || absl::StartsWith(given, "http://");
  // Who has put a password into it is not shown it again.
  if (!address || !IsGraphic(given) || given.find_first_of("@?#") != std::string::npos) {
    return absl::InvalidArgumentError(
        "HF_ENDPOINT: is no address of a hub; give https://HOST or http://HOST:PORT, without a name, a password or a "
        "query");
  }
  absl::string_view endpoint = given;
  while (absl::ConsumeSuffix(&endpoint, "/")) {
  }
  return std::string(endpoint);
}

bool IsInTheClear(absl::string_view endpoint) {
  if (!absl::ConsumePrefix(&endpoint, "http://")) return false;
  const absl::string_view authority = endpoint.substr(0, endpoint.find('/'));
  if (absl::StartsWith(authority, "[")) return !IsLoopback(std::string(authority.substr(1, authority.find(']') - 1)));
  return !IsLoopback(std::string(authority.substr(0, authority.find(':'))));
}

std::string TokenFile() {
  if (std::string file = Environment("HF_TOKEN_PATH"); !file.empty()) return file;
  if (const std::string home = Environment("HF_HOME"); !home.empty()) return absl::StrCat(home, "/token");
  if (const std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty())
    return absl::StrCat(cache, "/huggingface/token");
  return absl::StrCat(Environment("HOME"), "/.cache/huggingface/token");
}

absl::StatusOr<std::string> Token(const std::string& endpoint) {
  const bool in_the_clear = IsInTheClear(endpoint);
  std::string token(absl::StripAsciiWhitespace(Environment("HF_TOKEN")));
  if (!token.empty() && in_the_clear) {
    return absl::InvalidArgumentError(absl::StrCat(
        "HF_TOKEN: would go to ", endpoint, " for everybody to read; give HF_ENDPOINT as https://, or unset HF_TOKEN"));
  }
  if (token.empty() && !in_the_clear) std::ifstream(TokenFile()) >> token;  // stays empty if there is none
  if (IsGraphic(token)) return token;
  return absl::InvalidArgumentError(
      absl::StrCat("HF_TOKEN (or ", TokenFile(), "): is no token; give one as the hub shows it, hf_ and letters"));
}

}  // namespace

absl::StatusOr<Hub::Options> HubOptionsFromEnvironment() {
  Hub::Options options;
  LUTHIER_ASSIGN_OR_RETURN(options.endpoint, Endpoint(options.endpoint));
  LUTHIER_ASSIGN_OR_RETURN(options.token, Token(options.endpoint));
  return options;
}

}  // namespace luthier
