// What tells a file or folder from every other that a disk has had: its name changes, and its number is given again.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <string>

namespace luthier {

// Of `name` in the open folder; of the open file itself if `name` is empty. Empty if there is none.
inline std::string DiskKey(int fd, const char* name = "") {
  struct statx info;
  if (statx(fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &info) != 0) return "";
  return std::to_string(info.stx_ino) + "-" + std::to_string(info.stx_btime.tv_sec) + "-" +
         std::to_string(info.stx_btime.tv_nsec);
}

}  // namespace luthier
