// Commands that take several names.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/command.h"

namespace luthier {

// Does it to each of the names, also after one that failed. Of several names each failure is said at once, and the
// status has the code of the first and says how many there were.
absl::Status DoToEach(CommandContext& context, const std::vector<std::string>& names,
                      const std::function<absl::Status(const std::string& name)>& act);

// Asks first, then deletes each and prints its name. `full_name`: what a name of the command line stands for.
absl::Status DeleteEach(CommandContext& context, const std::vector<std::string>& names,
                        const std::function<std::string(const std::string& name)>& full_name,
                        absl::Status (Client::*remove)(const std::string& full_name));

}  // namespace luthier
