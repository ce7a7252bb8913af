#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/private_ca.h"
#include "client/cli/sister_program.h"
#include "client/cli/text.h"
#include "client/lib/local_disk.h"
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
  if (!backup.bucket().empty())
    context.Say(absl::StrCat("the files stay in ", backup.bucket(), ", which needs a copy of its own"));
  return absl::OkStatus();
}

struct CheckArguments {
  std::string folder;  // empty: the server's, by the server
};

// By `luthierd check`, on this machine.
absl::StatusOr<v1::CheckDataResponse> CheckFolder(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(
      const std::string output,
      OutputOfSisterProgram({"luthierd", "check", "--json", "--data-dir", std::filesystem::absolute(folder).string()}));
  const nlohmann::json facts = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  if (!facts.is_object()) return absl::InternalError("luthierd does not say what it found; is it of this version?");
  v1::CheckDataResponse found;
  found.set_jobs(facts.value("jobs", int64_t{0}));
  found.set_files(facts.value("files", int64_t{0}));
  found.set_size_bytes(facts.value("size_bytes", int64_t{0}));
  return found;
}

absl::StatusOr<v1::CheckDataResponse> CheckServer(CommandContext& context) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return client->CheckData();
}

absl::Status Check(CommandContext& context, const CheckArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::CheckDataResponse found,
                           arguments.folder.empty() ? CheckServer(context) : CheckFolder(arguments.folder));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(found));
    return absl::OkStatus();
  }
  context.out() << "ok\n";
  if (context.format() == OutputFormat::kName) return absl::OkStatus();
  context.Say(absl::StrCat(FormatCount(found.jobs()), " jobs and ", FormatCount(found.files()), " stored files, ",
                           FormatBytes(found.size_bytes()), ": nothing is damaged"));
  return absl::OkStatus();
}

struct NewCa {
  std::string folder;
  std::vector<std::string> hosts;
};

absl::Status InitTls(CommandContext& context, const NewCa& wanted) {
  LUTHIER_RETURN_IF_ERROR(OnOurDisk(WritePrivateCa(wanted.folder, wanted.hosts, absl::Now())));
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
  auto check = std::make_shared<CheckArguments>();
  CLI::App& check_command = context.AddCommand(
      admin, "check", "Read the record and every stored file, and say what is damaged: by the server, while it works",
      "  luthier admin check\n"
      "  luthier admin check --data-dir /var/lib/luthier     # on the server's machine, while no server runs there\n",
      [&context, check] { return Check(context, *check); });
  check_command
      .add_option("--data-dir", check->folder,
                  "A data folder that no server uses, or a backup, on this machine: `luthierd check` looks at it")
      ->type_name("FOLDER");
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
