#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "server/core/reason.h"
#include "server/rpc/backup.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// By where links lead.
bool IsInside(const std::filesystem::path& path, const std::filesystem::path& folder) {
  std::error_code error;
  const std::filesystem::path inner = std::filesystem::weakly_canonical(path, error);
  const std::filesystem::path outer = std::filesystem::weakly_canonical(folder, error);
  return !outer.empty() && std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

// Errors: INVALID_ARGUMENT unless the disk could have a folder there.
absl::Status CheckBackupPath(const std::string& path) {
  const std::filesystem::path folder(path);
  const bool can_be = path.size() <= kMostPath && path.find('\0') == std::string::npos;
  if (can_be && folder.is_absolute() && folder == folder.lexically_normal() && folder.has_filename())
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("path: ", Shown(path, kMostPath),
                   " is no absolute path of a folder on the server's machine; give one of at most ", kMostPath,
                   " bytes without zeros among them, '..' or a slash at its end"));
}

const Token* FindToken(const std::vector<Token>& tokens, const std::string& id) {
  const auto found = std::find_if(tokens.begin(), tokens.end(), [&](const Token& token) { return token.id == id; });
  return found == tokens.end() ? nullptr : &*found;
}

v1::Token TokenToProto(const Token& token) {
  v1::Token message;
  message.set_name("tokens/" + token.id);
  message.set_role(static_cast<v1::Role>(token.role));
  message.set_tenant(token.tenant);
  message.set_node(token.node);
  *message.mutable_create_time() = ToProto(token.create_time);
  if (token.expire_time != absl::InfiniteFuture()) *message.mutable_expire_time() = ToProto(token.expire_time);
  if (token.revoke_time != absl::InfiniteFuture()) *message.mutable_revoke_time() = ToProto(token.revoke_time);
  return message;
}

// All but the secret. Errors: INVALID_ARGUMENT with every violation.
absl::StatusOr<Token> ReadToken(const v1::CreateTokenRequest& request, absl::Time now) {
  std::vector<std::string> violations;
  const auto check = [&](const absl::Status& status) {
    if (!status.ok()) violations.emplace_back(status.message());
  };
  Token token{.id = request.token_id(),
              .role = static_cast<Role>(request.token().role()),
              .tenant = request.token().tenant(),
              .node = request.token().node(),
              .create_time = now};
  check(CheckId("token_id", token.id));
  const bool of_tenant = token.role == Role::kViewer || token.role == Role::kMember;
  const bool of_none = token.role == Role::kAdmin || token.role == Role::kAgent;
  if (!of_tenant && !of_none)
    violations.emplace_back("token.role: is missing; give ROLE_VIEWER, ROLE_MEMBER, ROLE_ADMIN or ROLE_AGENT");
  if (of_none && !token.tenant.empty()) {
    violations.emplace_back("token.tenant: admins and agents are of no tenant; leave it out");
  } else if (of_tenant || !token.tenant.empty()) {
    check(CheckId("token.tenant", token.tenant));
  }
  if ((of_tenant || token.role == Role::kAdmin) && !token.node.empty()) {
    violations.emplace_back("token.node: only agents are of a node; leave it out");
  } else if (!token.node.empty()) {
    check(CheckId("token.node", token.node, /*dots=*/true));
  }
  if (request.token().has_expire_time()) {
    token.expire_time = absl::FromUnixSeconds(request.token().expire_time().seconds());
    if (token.expire_time <= now || token.expire_time > kLatestTime) {
      violations.push_back(absl::StrCat(
          "token.expire_time: ", absl::FormatTime(absl::RFC3339_sec, token.expire_time, absl::UTCTimeZone()),
          token.expire_time <= now ? " has passed" : " is beyond the year 9999",
          "; give a time to come, or leave it out"));
    }
  }
  LUTHIER_RETURN_IF_ERROR(Refusal(violations));
  return token;
}

// Whether the request may make a token beside `all` that there are.
absl::Status CheckIsNew(const v1::CreateTokenRequest& request, const std::vector<Token>& all) {
  if (FindToken(all, request.token_id()) == nullptr) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("token_id: tokens/", request.token_id(), " exists; choose another id"));
}
absl::Status CheckLeavesAnAdmin(const v1::CreateTokenRequest& request, const std::vector<Token>& all) {
  if (!all.empty() || (request.token().role() == v1::ROLE_ADMIN && !request.token().has_expire_time()))
    return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError("token.role: every call needs a token once there is one, so the first must be an "
                                    "admin's that does not expire; make that one first"),
      "NO_ADMIN");
}

class AdminService final : public v1::AdminService::Service {
 public:
  explicit AdminService(Backend& backend) : backend_(backend) {}

  grpc::Status CreateBackup(grpc::ServerContext* context, const v1::CreateBackupRequest* request,
                            v1::Backup* response) override {
    return Handle(backend_, *context, "CreateBackup",
                  [&](Call& call) { return BackUp(call, *context, request->path(), *response); });
  }
  grpc::Status CheckData(grpc::ServerContext* context, const v1::CheckDataRequest*,
                         v1::CheckDataResponse* response) override {
    return Handle(backend_, *context, "CheckData", [&](Call&) { return Check(*context, *response); });
  }
  grpc::Status CreateToken(grpc::ServerContext* context, const v1::CreateTokenRequest* request,
                           v1::CreateTokenResponse* response) override {
    return Handle(backend_, *context, "CreateToken", [&](Call& call) { return Create(call, *request, *response); });
  }
  grpc::Status ListTokens(grpc::ServerContext* context, const v1::ListTokensRequest* request,
                          v1::ListTokensResponse* response) override {
    return Handle(backend_, *context, "ListTokens", [&](Call&) { return List(*request, *response); });
  }
  grpc::Status RevokeToken(grpc::ServerContext* context, const v1::RevokeTokenRequest* request,
                           v1::Token* response) override {
    return Handle(backend_, *context, "RevokeToken",
                  [&](Call& call) { return Revoke(call, request->name(), *response); });
  }

 private:
  absl::Status BackUp(Call& call, const grpc::ServerContext& context, const std::string& path, v1::Backup& response) {
    call.subject = path;
    LUTHIER_RETURN_IF_ERROR(CheckBackupPath(path));
    if (IsInside(path, backend_.data_dir)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "path: ", path, " is inside the data folder, with which it would be lost; give a folder elsewhere"));
    }
    const auto paused = backend_.housekeeping.Pause();
    const absl::StatusOr<DataFacts> made =
        MakeBackup(backend_.store, backend_.artifacts, path, absl::Now(), [&] { return context.IsCancelled(); });
    // The disk's word on our user, which says nothing about the caller's token.
    if (absl::IsPermissionDenied(made.status()))
      return absl::InvalidArgumentError(absl::StrCat("path: ", made.status().message()));
    LUTHIER_RETURN_IF_ERROR(made.status());
    const DataFacts& facts = *made;
    backend_.metrics.ObserveBackup(absl::Now());
    response.set_path(path);
    *response.mutable_create_time() = ToProto(facts.create_time);
    response.set_jobs(facts.jobs);
    response.set_files(static_cast<int64_t>(facts.files.size()));
    response.set_size_bytes(facts.bytes());
    response.set_bucket(facts.bucket);
    return absl::OkStatus();
  }

  absl::Status Check(const grpc::ServerContext& context, v1::CheckDataResponse& response) {
    const auto paused = backend_.housekeeping.Pause();
    LUTHIER_ASSIGN_OR_RETURN(const DataFacts facts, CheckServing(backend_.store, backend_.artifacts, backend_.data_dir,
                                                                 [&] { return context.IsCancelled(); }));
    response.set_files(static_cast<int64_t>(facts.files.size()));
    response.set_size_bytes(facts.bytes());
    return backend_.loop.Run([&](State& state, absl::Time) {
      for (const JobState each : kAllStates) response.set_jobs(response.jobs() + state.jobs().count(each));
      return absl::OkStatus();
    });
  }

  absl::Status Create(Call& call, const v1::CreateTokenRequest& request, v1::CreateTokenResponse& response) {
    call.subject = "tokens/" + request.token_id();
    absl::StatusOr<Token> token = ReadToken(request, absl::Now());
    const std::lock_guard lock(mutex_);
    const std::vector<Token> all = backend_.access.tokens();
    LUTHIER_RETURN_IF_ERROR(AllOf({token.status(), CheckIsNew(request, all), CheckLeavesAnAdmin(request, all)}));
    const std::string secret = RandomSecret();
    token->sha256 = Sha256Hex(secret);
    LUTHIER_RETURN_IF_ERROR(Record(*token));
    *response.mutable_token() = TokenToProto(*token);
    response.set_secret(secret);
    return absl::OkStatus();
  }

  absl::Status List(const v1::ListTokensRequest& request, v1::ListTokensResponse& response) {
    const auto by_id = [](const Token& token) { return Position(0, token.id); };
    return AddPage("tokens", request, response, backend_.access.tokens(), by_id,
                   [&](const Token& token) -> auto& { return *response.add_tokens() = TokenToProto(token); });
  }

  absl::Status Revoke(Call& call, const std::string& name, v1::Token& response) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "tokens", name));
    const std::lock_guard lock(mutex_);
    const absl::Time now = absl::Now();
    const std::vector<Token> all = backend_.access.tokens();
    const Token* found = FindToken(all, id);
    if (found == nullptr) return DoesNotExist(name);
    Token token = *found;
    const bool another = std::any_of(all.begin(), all.end(), [&](const Token& other) {
      return other.id != id && other.role == Role::kAdmin && other.ValidAt(now) &&
             other.expire_time == absl::InfiniteFuture();
    });
    if (token.role == Role::kAdmin && token.ValidAt(now) && !another) {
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat(name,
                                                     " is the last admin's that does not expire, and nobody could make "
                                                     "another; make a new one first")),
          "LAST_ADMIN");
    }
    token.revoke_time = std::min(token.revoke_time, now);
    LUTHIER_RETURN_IF_ERROR(Record(token));
    response = TokenToProto(token);
    return absl::OkStatus();
  }

  // On record first: what was answered survives.
  absl::Status Record(const Token& token) {
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time) {
      state.PutToken(token);
      return absl::OkStatus();
    }));
    backend_.access.Put(token);
    return absl::OkStatus();
  }

  Backend& backend_;
  std::mutex mutex_;  // one change of the tokens at a time
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(Backend& backend) { return std::make_unique<AdminService>(backend); }

}  // namespace luthier
