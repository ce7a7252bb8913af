// Preloaded into a program (LD_PRELOAD), in place of the calls that change what is on a disk. A write() counts if it is
// to a file: programs also wake their threads and log with it.
//
// FAULTY_DISK_FAILS_SYNCS_IF=FILE: from the moment that FILE exists, every flush fails as that of a broken disk.
// FAULTY_DISK_READ_ONLY_IF=FILE: as long as FILE exists, every such call but a flush is refused as on a read-only disk.
// FAULTY_DISK_FOLDER=FOLDER: these two are faults of the disk of that folder only; an absolute path.
// FAULTY_DISK_KILLS_AT=N: the program is killed in place of its N-th call.
// FAULTY_DISK_KEEPS=FOLDER: what is certainly on the disk is kept there, see tests/support/power_loss.h.
// FAULTY_DISK_TYPE=NUMBER: what statfs() says of every file system.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/support/disk_key.h"

namespace {

void CountCall() {
  static const char* const kills_at = std::getenv("FAULTY_DISK_KILLS_AT");
  static std::atomic<int> calls = 0;
  if (kills_at == nullptr || ++calls != std::atoi(kills_at)) return;
  kill(getpid(), SIGKILL);
  pause();
}

// Whether what is named or open is on the disk with the faults.
bool IsOnFaultyDisk(const char* path) {
  static const char* const folder = std::getenv("FAULTY_DISK_FOLDER");
  return folder == nullptr || std::strncmp(path, folder, std::strlen(folder)) == 0;
}
bool IsOnFaultyDisk(int fd) {
  char path[PATH_MAX] = {};  // stays empty for what has no name
  (void)!readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path - 1);
  return IsOnFaultyDisk(path);
}

// Whether the file of the name is there: a fault is wanted.
bool IsWanted(const char* file) { return file != nullptr && syscall(SYS_access, file, F_OK) == 0; }

// Whether the disk is read-only now; errno then says so.
template <typename File>
bool IsReadOnly(File file) {
  static const char* const read_only_if = std::getenv("FAULTY_DISK_READ_ONLY_IF");
  const int error = errno;
  const bool read_only = IsWanted(read_only_if) && IsOnFaultyDisk(file);
  errno = read_only ? EROFS : error;
  return read_only;
}

template <typename File, typename... Arguments>
long Counted(long call, File file, Arguments... arguments) {
  CountCall();
  return IsReadOnly(file) ? -1 : syscall(call, file, arguments...);
}

// The names in a folder: `d` or `f`, key, name, a line each.
void ListNames(int fd, int to) {
  DIR* const folder = opendir(("/proc/self/fd/" + std::to_string(fd)).c_str());
  if (folder == nullptr) return;
  std::string lines;
  while (const dirent* const entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || (entry->d_type != DT_REG && entry->d_type != DT_DIR)) continue;
    lines += (entry->d_type == DT_DIR ? "d " : "f ") + luthier::DiskKey(fd, name.c_str()) + " " + name + "\n";
  }
  closedir(folder);
  syscall(SYS_write, to, lines.data(), lines.size());
}

void CopyContent(int fd, int to) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const int from = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (sendfile(to, from, nullptr, 1 << 30) > 0) {
  }
  close(from);
}

// What has just been flushed replaces what was kept of it before, with one rename: the kill may come meanwhile.
void Keep(int fd) {
  static const char* const folder = std::getenv("FAULTY_DISK_KEEPS");
  if (folder == nullptr) return;
  const int error = errno;
  struct stat info;
  fstat(fd, &info);
  const std::string path = std::string(folder) + "/" + luthier::DiskKey(fd);
  const std::string temporary = path + "." + std::to_string(gettid());
  const int to = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (S_ISDIR(info.st_mode)) {
    ListNames(fd, to);
  } else {
    CopyContent(fd, to);
  }
  close(to);
  syscall(SYS_rename, temporary.c_str(), path.c_str());
  errno = error;
}

int Sync(long call, int fd) {
  CountCall();
  static const char* const fails_if = std::getenv("FAULTY_DISK_FAILS_SYNCS_IF");
  if (IsWanted(fails_if) && IsOnFaultyDisk(fd)) {
    errno = EIO;
    return -1;
  }
  const int result = static_cast<int>(syscall(call, fd));
  if (result == 0) Keep(fd);
  return result;
}

bool IsFile(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace

extern "C" {
int fsync(int fd) { return Sync(SYS_fsync, fd); }
int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
ssize_t write(int fd, const void* data, size_t size) {
  const int error = errno;
  const bool file = IsFile(fd);
  if (file) CountCall();
  errno = error;
  return file && IsReadOnly(fd) ? -1 : syscall(SYS_write, fd, data, size);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  return Counted(SYS_pwrite64, fd, data, size, at);
}
int ftruncate64(int fd, off64_t size) noexcept { return static_cast<int>(Counted(SYS_ftruncate, fd, size)); }
int rename(const char* from, const char* to) noexcept { return static_cast<int>(Counted(SYS_rename, from, to)); }
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned int flags) noexcept {
  return static_cast<int>(Counted(SYS_renameat2, from_folder, from, to_folder, to, flags));
}
int link(const char* from, const char* to) noexcept { return static_cast<int>(Counted(SYS_link, from, to)); }
int unlink(const char* path) noexcept { return static_cast<int>(Counted(SYS_unlink, path)); }
int access(const char* path, int mode) noexcept {
  return (mode & W_OK) != 0 && IsReadOnly(path) ? -1 : static_cast<int>(syscall(SYS_access, path, mode));
}
int statfs(const char* path, struct statfs* info) noexcept {
  static const char* const type = std::getenv("FAULTY_DISK_TYPE");
  const int result = static_cast<int>(syscall(SYS_statfs, path, info));
  if (result == 0 && type != nullptr) info->f_type = std::atol(type);
  return result;
}
}
