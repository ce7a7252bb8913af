// Folders of a program's data, for the user that it runs as. What is in them needs no protection of its own then: into
// a folder that cannot be entered nobody gets.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace luthier {

// Creates `folder`, which only our user may enter, and what is missing above it, durably. One that is there stays as it
// is: whoever made it may have let others in, such as a group.
absl::Status CreatePrivateFolder(const std::string& folder);

// Whether every user of the machine can enter `folder`, and so read what is in it.
bool IsOpenToEverybody(const std::string& folder);
// What to say of it at the start; empty if it is not.
std::string WarningIfOpen(const std::string& folder);

}  // namespace luthier
