#include "client/cli/each.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"

namespace luthier {

absl::Status DoToEach(CommandContext& context, const std::vector<std::string>& names,
                      const std::function<absl::Status(const std::string& name)>& act) {
  absl::Status first;
  int failures = 0;
  for (const std::string& name : names) {
    const absl::Status status = act(name);
    if (status.ok()) continue;
    ++failures;
    if (names.size() > 1) context.Say(absl::StrCat(name, ": ", status.message()));
    first.Update(status);
  }
  if (first.ok() || names.size() == 1) return first;
  absl::Status all(first.code(), absl::StrCat(failures, " of ", names.size(), " could not be done"));
  first.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) { all.SetPayload(type, payload); });
  return all;
}

absl::Status DeleteEach(CommandContext& context, const std::vector<std::string>& names,
                        const std::function<std::string(const std::string& name)>& full_name,
                        absl::Status (Client::*remove)(const std::string& full_name)) {
  LUTHIER_RETURN_IF_ERROR(context.Confirm(absl::StrCat("delete ", absl::StrJoin(names, ", "), " for good")));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return DoToEach(context, names, [&](const std::string& given) -> absl::Status {
    const std::string name = full_name(given);
    LUTHIER_RETURN_IF_ERROR((client->*remove)(name));
    context.out() << name << std::endl;
    return absl::OkStatus();
  });
}

}  // namespace luthier
