// A file system that other machines share. The record must not lie on one: its log is for one machine
// (sqlite.org/wal.html), and what such a file system answers to a flush is not always true.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace luthier {

// The name of a network file system, from `f_type` of statfs(2); empty for one of a local disk.
absl::string_view NetworkFileSystem(int64_t type);

// FAILED_PRECONDITION if the folder is on one, with the flag that allows it.
absl::Status CheckLocalDisk(const std::string& data_dir);

}  // namespace luthier
