// Durations as people write them.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace luthier {

// `90s`, `1h30m` and `inf`, as Abseil reads them, and days in front: `7d`, `1d12h`. False if the text is none of these.
bool ReadDuration(absl::string_view text, absl::Duration* duration);

}  // namespace luthier
