// What a power loss leaves of a disk, where a kill leaves everything that was written.
//
// The strictest that POSIX allows: a file has the content of its last flush, a folder the names of its last flush.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "tests/support/disk_key.h"

namespace luthier {

// Makes `folder` what a power loss has left of it, if its program ran with FAULTY_DISK_KEEPS=`kept`. Of the bytes that
// were written to a log of SQLite since its last flush, as many as `torn` says of 256 have arrived: the last page in
// part.
class PowerLoss {
 public:
  PowerLoss(std::string kept, unsigned torn) : kept_(std::move(kept)), torn_(torn) {}

  void LeaveOf(const std::string& folder) const {
    const std::string left = folder + ".left";
    Rebuild(folder, KeyOf(folder), left);
    std::filesystem::remove_all(folder);
    std::filesystem::rename(left, folder);
  }

 private:
  static std::string KeyOf(const std::string& path) { return DiskKey(AT_FDCWD, path.c_str()); }
  static std::string Read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  // `now`: where it is, if its name is still the same.
  void Rebuild(const std::string& now, const std::string& key, const std::string& to) const {
    std::filesystem::create_directory(to);
    std::istringstream names(Read(kept_ + "/" + key));
    for (std::string kind, of_entry, name; names >> kind >> of_entry && std::getline(names.ignore(), name);) {
      if (kind == "d") {
        Rebuild(now + "/" + name, of_entry, to + "/" + name);
      } else {
        std::ofstream(to + "/" + name, std::ios::binary) << Content(now + "/" + name, of_entry);
      }
    }
  }
  std::string Content(const std::string& now, const std::string& key) const {
    std::string flushed = Read(kept_ + "/" + key);
    if (!now.ends_with("-wal") || KeyOf(now) != key) return flushed;
    const std::string written = Read(now);
    const auto [first, ignored] = std::mismatch(flushed.begin(), flushed.end(), written.begin(), written.end());
    const auto begin = static_cast<size_t>(first - flushed.begin());
    if (begin >= written.size()) return flushed;
    const std::string arrived = written.substr(begin, (written.size() - begin) * torn_ / 256);
    return flushed.replace(begin, std::min(arrived.size(), flushed.size() - begin), arrived);
  }

  const std::string kept_;
  const unsigned torn_;
};

}  // namespace luthier
