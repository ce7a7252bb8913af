#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/private_ca.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

absl::Status BackUp(CommandContext& context, const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::string path = std::filesystem::absolute(folder).lexically_normal();
  if (path.size() > 1 && path.back() == '/') path.pop_back();
  LUTHIER_ASSIGN_OR_RETURN(const v1::Backup backup, client->CreateBackup(path));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(backup));
    return absl::OkStatus();
  }
  context.out() << backup.path() << "\n";
  if (context.format() == OutputFormat::kName) return absl::OkStatus();
  context.Say(absl::StrCat(FormatCount(backup.jobs()), " jobs and ", FormatCount(backup.files()), " stored files, ",
                           FormatBytes(backup.size_bytes()), ", as they were at ", FormatTime(backup.create_time())));
  return absl::OkStatus();
}

struct NewToken {
  std::string id, role, tenant, expires;
};

std::string RoleWord(v1::Role role) { return absl::AsciiStrToLower(absl::StripPrefix(v1::Role_Name(role), "ROLE_")); }

absl::Status CreateToken(CommandContext& context, const NewToken& wanted) {
  v1::CreateTokenRequest request;
  request.set_token_id(wanted.id);
  v1::Role role = v1::ROLE_UNSPECIFIED;
  v1::Role_Parse(absl::StrCat("ROLE_", absl::AsciiStrToUpper(wanted.role)), &role);
  request.mutable_token()->set_role(role);
  request.mutable_token()->set_tenant(wanted.tenant);
  if (!wanted.expires.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const absl::Duration in, ParseDurationFlag("--expires", wanted.expires));
    request.mutable_token()->mutable_expire_time()->set_seconds(absl::ToUnixSeconds(absl::Now() + in));
  }
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::CreateTokenResponse created, client->CreateToken(request));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(created));
    return absl::OkStatus();
  }
  context.out() << created.secret() << "\n";
  context.Say(absl::StrCat(created.token().name(),
                           ": this is its secret, shown once; its bearer sets LUTHIER_TOKEN to it, or "
                           "LUTHIER_TOKEN_FILE to a file that holds it"));
  return absl::OkStatus();
}

std::string StateOf(const v1::Token& token) {
  if (token.has_revoke_time()) return "revoked";
  return token.has_expire_time() && ToTime(token.expire_time()) <= absl::Now() ? "expired" : "valid";
}

absl::Status ListTokens(CommandContext& context) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Token> tokens, client->ListTokens());
  if (context.ForPrograms()) {
    nlohmann::json list = nlohmann::json::array();
    for (const v1::Token& token : tokens) list.push_back(MessageToJson(token));
    context.PrintForPrograms({{"tokens", list}});
    return absl::OkStatus();
  }
  Table table({{"NAME", false, true}, {"ROLE"}, {"TENANT", false, true}, {"STATE"}, {"AGE", true}});
  for (const v1::Token& token : tokens) {
    if (context.format() == OutputFormat::kName) {
      context.out() << token.name() << "\n";
    } else {
      table.AddRow({ShortName(token.name()), RoleWord(token.role()), token.tenant(), StateOf(token),
                    FormatAge(absl::Now() - ToTime(token.create_time()))});
    }
  }
  if (tokens.empty()) context.Say("no tokens: the server serves its own machine, and asks nobody for one");
  if (!table.empty()) context.out() << table.Render(context.out_terminal());
  return absl::OkStatus();
}

absl::Status RevokeToken(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Token token, client->RevokeToken(FullName("tokens", id)));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(token));
  } else {
    context.out() << token.name() << "\n";
  }
  return absl::OkStatus();
}

void AddTokenCommands(CLI::App& admin, CommandContext& context) {
  CLI::App& token = context.AddNoun(admin, "token", "Say who may call the server");
  auto wanted = std::make_shared<NewToken>();
  CLI::App& create =
      context.AddCommand(token, "create", "Make a token and print its secret, which nobody can see again",
                         "  luthier admin token create root --role admin\n"
                         "  luthier admin token create alice --role member --tenant support\n"
                         "  luthier admin token create gpu-1 --role agent --expires 720h\n",
                         [&context, wanted] { return CreateToken(context, *wanted); });
  create.add_option("TOKEN", wanted->id, "Name of the token")->required();
  create
      .add_option("--role", wanted->role,
                  "viewer: reads its tenant's; member: also changes it; admin: everything; agent: a node's")
      ->required()
      ->check(CLI::IsMember({"viewer", "member", "admin", "agent"}))
      ->type_name("ROLE");
  create.add_option("--tenant", wanted->tenant, "Whose jobs, datasets and models a viewer or member sees")
      ->type_name("TENANT");
  create.add_option("--expires", wanted->expires, "It is worthless after this long")->type_name("DURATION");
  context.AddCommand(token, "list", "List tokens, without their secrets", "  luthier admin token list\n",
                     [&context] { return ListTokens(context); });
  auto id = std::make_shared<std::string>();
  CLI::App& revoke =
      context.AddCommand(token, "revoke", "Make a token worthless at once", "  luthier admin token revoke alice\n",
                         [&context, id] { return RevokeToken(context, *id); });
  revoke.add_option("TOKEN", *id, "Name of the token")->required();
}

struct NewCa {
  std::string folder;
  std::vector<std::string> hosts;
};

absl::Status InitTls(CommandContext& context, const NewCa& wanted) {
  LUTHIER_RETURN_IF_ERROR(WritePrivateCa(wanted.folder, wanted.hosts));
  context.out() << wanted.folder << "\n";
  const std::string& at = wanted.folder;
  context.Say(absl::StrCat("the server:  luthierd --tls-cert ", at, "/server.pem --tls-key ", at,
                           "/server.key --tls-client-ca ", at, "/ca.pem\n", "the others:  LUTHIER_TLS_CA=", at,
                           "/ca.pem LUTHIER_TLS_CERT=", at, "/client.pem LUTHIER_TLS_KEY=", at, "/client.key\n",
                           "ca.key signs more certificates: keep it elsewhere"));
  return absl::OkStatus();
}

}  // namespace

void AddAdminCommands(CLI::App& app, CommandContext& context) {
  CLI::App& admin = context.AddNoun(app, "admin", "Take care of the server");
  auto folder = std::make_shared<std::string>();
  CLI::App& backup = context.AddCommand(
      admin, "backup", "Copy everything the server holds into a new folder on its machine, while it works",
      "  luthier admin backup --to /backups/monday\n"
      "  luthierd restore --from /backups/monday     # on the server's machine, brings it back\n",
      [&context, folder] { return BackUp(context, *folder); });
  AddTokenCommands(admin, context);
  CLI::App& tls = context.AddNoun(admin, "tls", "Encrypt connections");
  auto wanted = std::make_shared<NewCa>();
  CLI::App& init = context.AddCommand(
      tls, "init", "Make a certificate authority, and certificates of the server and its callers, on this machine",
      "  luthier admin tls init --to /etc/luthier/tls --host gpu-head --host 10.0.0.1\n",
      [&context, wanted] { return InitTls(context, *wanted); });
  init.add_option("--to", wanted->folder, "Folder that does not exist yet")->required()->type_name("FOLDER");
  init.add_option("--host", wanted->hosts, "Name or address by which the server is called; may be repeated")
      ->allow_extra_args(false)
      ->type_name("HOST");
  backup.add_option("--to", *folder, "Folder that does not exist yet")->required()->type_name("FOLDER");
}

}  // namespace luthier
