// Sizes as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace luthier {

std::string FormatBytes(int64_t bytes);  // 7.6 MB, powers of 1000 as disks and downloads are counted

}  // namespace luthier
