#include "server/rpc/admin_token.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "server/rpc/access.h"
#include "server/rpc/validate.h"
#include "server/store/store.h"

namespace luthier {

absl::StatusOr<std::string> ReplaceAdminToken(const std::string& data_dir, const std::string& id, absl::Time now) {
  LUTHIER_RETURN_IF_ERROR(CheckId("TOKEN", id));
  if (!std::filesystem::exists(data_dir + "/luthier.db"))
    return absl::NotFoundError(absl::StrCat("--data-dir: ", data_dir, " holds no server's data; give the server's"));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(data_dir));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Token> tokens, store->Tokens());
  const auto found = std::find_if(tokens.begin(), tokens.end(), [&](const Token& token) { return token.id == id; });
  if (found != tokens.end() && found->role != Role::kAdmin) {
    return absl::FailedPreconditionError(
        absl::StrCat("TOKEN: tokens/", id, " is on record, and is no admin's; give another name"));
  }
  const std::string secret = RandomSecret();
  Writes writes;
  writes.tokens.push_back({.id = id, .sha256 = Sha256Hex(secret), .role = Role::kAdmin, .create_time = now});
  LUTHIER_RETURN_IF_ERROR(store->Commit(writes));
  Access access({}, {.audit = {.path = data_dir + "/audit.log"}});
  access.Note("luthierd admin-token", {.subject = "tokens/" + id}, absl::OkStatus());
  return secret;
}

}  // namespace luthier
