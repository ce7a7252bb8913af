#include "client/cli/each.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

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

}  // namespace luthier
