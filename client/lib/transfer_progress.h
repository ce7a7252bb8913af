#pragma once

#include <cstdint>
#include <functional>

namespace luthier {

// Bytes done and in all.
using TransferProgress = std::function<void(int64_t, int64_t)>;

}  // namespace luthier
