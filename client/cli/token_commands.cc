// `admin token`: who may call the server.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/list.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct NewToken {
  std::string id, role, tenant, node, expires;
};

absl::Status CreateToken(CommandContext& context, const NewToken& wanted) {
  v1::CreateTokenRequest request;
  request.set_token_id(wanted.id);
  v1::Role role = v1::ROLE_UNSPECIFIED;
  v1::Role_Parse(absl::StrCat("ROLE_", absl::AsciiStrToUpper(wanted.role)), &role);
  request.mutable_token()->set_role(role);
  request.mutable_token()->set_tenant(wanted.tenant);
  request.mutable_token()->set_node(wanted.node);
  if (!wanted.expires.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const absl::Duration in, ParseDurationFlag("--expires", wanted.expires));
    request.mutable_token()->mutable_expire_time()->set_seconds(absl::ToUnixSeconds(absl::Now() + in));
  }
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Token> before, client->ListTokens());
  LUTHIER_ASSIGN_OR_RETURN(const v1::CreateTokenResponse created, client->CreateToken(request));
  if (before.empty()) {
    context.Say(
        "from now on every call needs a token, and every agent one of its own: what runs on nodes without one is lost "
        "in 30 s and tried again; luthier admin token create NODE --role agent --node NODE");
  }
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

std::string ExpiryOf(const v1::Token& token) {
  if (!token.has_expire_time()) return "never";
  const absl::Duration left = ToTime(token.expire_time()) - absl::Now();
  return left > absl::ZeroDuration() ? absl::StrCat("in ", FormatAge(left)) : absl::StrCat(FormatAge(-left), " ago");
}

Table TokenTable(const std::vector<v1::Token>& tokens) {
  Table table({{"NAME"},
               {"ROLE"},
               {"TENANT", false, true},
               {"NODE", false, true},
               {"STATE"},
               {"EXPIRES", true, false, true},
               {"AGE", true, false, true}});
  for (const v1::Token& token : tokens) {
    table.AddRow({ShortName(token.name()), EnumWord(v1::Role_Name(token.role()), "ROLE_"),
                  token.tenant().empty() ? "-" : token.tenant(), token.node().empty() ? "-" : token.node(),
                  StateOf(token), ExpiryOf(token), FormatAge(absl::Now() - ToTime(token.create_time()))});
  }
  return table;
}

absl::Status ListTokens(CommandContext& context, bool watch) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Token> tokens, client->ListTokens());
    return ListingOf("tokens", tokens, TokenTable(tokens),
                     "no tokens: the server serves its own machine, and asks nobody for one");
  });
}

absl::Status RevokeToken(CommandContext& context, const std::string& id) {
  LUTHIER_RETURN_IF_ERROR(context.Confirm("make " + FullName("tokens", id) + " worthless"));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Token token, client->RevokeToken(FullName("tokens", id)));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(token));
  } else {
    context.out() << token.name() << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenCommands(CLI::App& admin, CommandContext& context) {
  CLI::App& token = context.AddNoun(admin, "token", "Say who may call the server");
  auto wanted = std::make_shared<NewToken>();
  CLI::App& create =
      context.AddCommand(token, "create", "Make a token and print its secret, which nobody can see again",
                         "  luthier admin token create root --role admin\n"
                         "  luthier admin token create alice --role member --tenant support\n"
                         "  luthier admin token create gpu-1 --role agent --node gpu-1 --expires 30d\n",
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
  create
      .add_option("--node", wanted->node,
                  "The only node that an agent with it may be; without it, any that it says it is")
      ->type_name("NODE");
  create
      .add_option("--expires", wanted->expires,
                  "It is worthless after this long, such as 30d; default: it never expires")
      ->type_name("DURATION");
  auto watch = std::make_shared<bool>(false);
  CLI::App& list =
      context.AddCommand(token, "list", "List tokens, without their secrets", "  luthier admin token list\n",
                         [&context, watch] { return ListTokens(context, *watch); });
  AddWatchFlag(list, *watch);
  auto id = std::make_shared<std::string>();
  CLI::App& revoke =
      context.AddCommand(token, "revoke", "Make a token worthless at once", "  luthier admin token revoke alice\n",
                         [&context, id] { return RevokeToken(context, *id); });
  revoke.add_option("TOKEN", *id, "Name of the token")->required();
  context.CompleteWith(revoke, TokenNames);
  context.AddYesFlag(revoke);
}

}  // namespace luthier
