#include "server/store/network_disk.h"

#include <sys/vfs.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

struct FileSystem {
  uint32_t type;  // as in linux/magic.h and statfs(2), and of the file systems that are not in the kernel
  absl::string_view name;
};

// FUSE is among them since sshfs, s3fs and their like cannot be told from a local one.
constexpr FileSystem kNetworkFileSystems[] = {
    {0x6969, "NFS"},        {0x517b, "SMB"},          {0xff534d42, "CIFS"}, {0xfe534d42, "SMB2"},  {0x65735546, "FUSE"},
    {0x01021997, "9P"},     {0x5346414f, "AFS"},      {0x6b414653, "AFS"},  {0x00c36400, "Ceph"},  {0x73757245, "Coda"},
    {0x564c, "NCP"},        {0x0bd00bd0, "Lustre"},   {0x01161970, "GFS2"}, {0x7461636f, "OCFS2"}, {0x47504653, "GPFS"},
    {0x19830326, "BeeGFS"}, {0x20030528, "OrangeFS"},
};

}  // namespace

absl::string_view NetworkFileSystem(int64_t type) {
  for (const FileSystem& each : kNetworkFileSystems) {
    if (each.type == static_cast<uint32_t>(type)) return each.name;  // some kernels extend the sign of the others
  }
  return "";
}

absl::Status CheckLocalDisk(const std::string& data_dir) {
  struct statfs info;
  if (statfs(data_dir.c_str(), &info) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("--data-dir: cannot look at the file system of ", data_dir));
  const absl::string_view name = NetworkFileSystem(static_cast<int64_t>(info.f_type));
  if (name.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("--data-dir: ", data_dir, " is on a network file system (", name,
                   "), where the record can be damaged or lost; give a folder on a disk of this machine, or "
                   "--allow-network-disk if this is one"));
}

}  // namespace luthier
