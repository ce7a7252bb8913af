#include "server/rpc/access.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "nlohmann/json.hpp"
#include "server/core/reason.h"
#include "server/rpc/attempt_key.h"

namespace luthier {
namespace {

// Names and paths are shorter; texts of callers that are not must not push the lines of others out of the audit log.
constexpr size_t kMaxSubject = 1024;

std::optional<Need> NeedOf(absl::string_view method) {
  for (const MethodNeed& each : kMethodNeeds) {
    if (each.method == method) return each.need;
  }
  return std::nullopt;
}

bool Allows(Role role, Need need) {
  switch (role) {
    case Role::kAdmin: return true;
    case Role::kMember: return need == Need::kRead || need == Need::kShare || need == Need::kWrite;
    case Role::kViewer: return need == Need::kRead || need == Need::kShare;
    case Role::kAgent: return need == Need::kAgent;
  }
  return false;
}

// As gRPC writes addresses.
bool IsThisMachine(absl::string_view peer) {
  return absl::StartsWith(peer, "ipv4:127.") || absl::StartsWith(peer, "ipv6:%5B::1%5D") ||
         absl::StartsWith(peer, "ipv6:[::1]") || absl::StartsWith(peer, "unix:");
}

absl::Status Unauthenticated(absl::string_view what) {
  return WithReason(absl::UnauthenticatedError(
                        absl::StrCat(what, "; set LUTHIER_TOKEN to one that `luthier admin token create` made")),
                    "UNAUTHENTICATED");
}

}  // namespace

std::string RandomSecret() {
  unsigned char bytes[32];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) std::abort();  // never for so few bytes
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes), sizeof bytes});
}

Access::Access(std::vector<Token> tokens, Options options)
    : options_(std::move(options)),
      attempt_key_(options_.attempt_key.empty() ? RandomSecret() : options_.attempt_key),
      audit_(options_.audit) {
  for (const Token& token : tokens) by_hash_[token.sha256] = token;
  any_ = !tokens.empty();
}

void Access::Put(const Token& token) {
  const std::lock_guard lock(mutex_);
  by_hash_[token.sha256] = token;
  any_ = true;
}

std::vector<Token> Access::tokens() {
  const std::lock_guard lock(mutex_);
  std::vector<Token> all;
  for (const auto& [sha256, token] : by_hash_) {
    if (!token.id.empty()) all.push_back(token);
  }
  std::sort(all.begin(), all.end(), [](const Token& a, const Token& b) { return a.id < b.id; });
  return all;
}

bool Access::required() {
  const std::lock_guard lock(mutex_);
  return any_;
}

std::string Access::MakeAgentSecret() {
  const std::string secret = RandomSecret();
  const std::lock_guard lock(mutex_);
  const std::string sha256 = Sha256Hex(secret);
  by_hash_[sha256] = {.sha256 = sha256, .role = Role::kAgent};
  return secret;
}

absl::StatusOr<Token> Access::TokenOf(const grpc::ServerContextBase& context) {
  const auto header = context.client_metadata().find("authorization");
  absl::string_view secret;
  if (header != context.client_metadata().end()) secret = {header->second.data(), header->second.size()};
  if (!secret.empty() && !absl::ConsumePrefix(&secret, "Bearer "))
    return Unauthenticated("authorization: is no bearer token");
  const std::string sha256 = secret.empty() ? "" : Sha256Hex(secret);
  const std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(sha256);
  const bool valid = found != by_hash_.end() && found->second.ValidAt(absl::Now());
  if (!any_ && !valid) {
    // Nobody could have made one yet.
    if (IsThisMachine(context.peer()) || options_.trust_network) return Token{.role = Role::kAdmin};
    return Unauthenticated("the server has no tokens yet, and without one it serves its own machine only");
  }
  if (secret.empty()) return Unauthenticated("the call carries no token");
  if (!valid) return Unauthenticated("the token is unknown, expired or revoked");
  return found->second;
}

absl::StatusOr<Call> Access::Admit(const grpc::ServerContextBase& context, absl::string_view method) {
  const std::optional<Need> need = NeedOf(method);
  Call call{.need = need.value_or(Need::kAdmin), .peer = context.peer(), .context = &context};
  absl::StatusOr<Token> token = TokenOf(context);
  absl::Status refused = token.status();
  if (token.ok()) {
    call.token = token->id;
    call.tenant = token->tenant;
    call.node = token->node;
    call.sha256 = token->sha256;
    if (!need || !Allows(token->role, *need)) {
      refused = WithReason(
          absl::PermissionDeniedError(absl::StrCat("the role of this token may not call ", method, "; ask an admin")),
          "PERMISSION_DENIED");
    }
  }
  if (refused.ok()) return call;
  Note(method, call, refused);
  return refused;
}

void Access::Note(absl::string_view method, const Call& call, const absl::Status& status) {
  const bool refused = absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
  // Of a server without tokens a line a job would tell nobody who it was.
  const bool with_token = (call.need == Need::kShare || call.need == Need::kWrite) && !call.token.empty();
  const bool noted = call.need == Need::kAdmin || with_token;
  if (!refused && !noted) return;
  const nlohmann::json line = {{"time", absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone())},
                               {"method", std::string(method)},
                               {"token", call.token},
                               {"tenant", call.tenant},
                               {"peer", call.peer},
                               {"subject", call.subject.substr(0, kMaxSubject)},
                               {"code", absl::StatusCodeToString(status.code())}};
  audit_.Append(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

absl::Status Access::StillAdmits(const Call& call) {
  const std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(call.sha256);
  const bool needed_none = call.sha256.empty() && !any_;
  if (needed_none || (found != by_hash_.end() && found->second.ValidAt(absl::Now()))) return absl::OkStatus();
  return Unauthenticated("the token of this call was revoked or has expired, or one is needed by now");
}

std::string Access::CredentialOf(absl::string_view attempt) const { return AttemptCredential(attempt_key_, attempt); }

// Hashes are compared, so that the time it takes says nothing about the credential.
bool Access::IsCredentialOf(absl::string_view attempt, absl::string_view credential) const {
  return Sha256Hex(CredentialOf(attempt)) == Sha256Hex(credential);
}

}  // namespace luthier
