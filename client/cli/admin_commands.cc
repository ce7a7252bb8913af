#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
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

}  // namespace

void AddAdminCommands(CLI::App& app, CommandContext& context) {
  CLI::App& admin = context.AddNoun(app, "admin", "Take care of the server");
  auto folder = std::make_shared<std::string>();
  CLI::App& backup = context.AddCommand(admin, "backup", "Copy everything the server holds into a new folder on its machine, while it works",
                                        "  luthier admin backup --to /backups/monday\n"
                                        "  luthierd restore --from /backups/monday     # on the server's machine, brings it back\n",
                                        [&context, folder] { return BackUp(context, *folder); });
  backup.add_option("--to", *folder, "Folder that does not exist yet")->required()->type_name("FOLDER");
}

}  // namespace luthier
