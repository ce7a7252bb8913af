// Preloaded into a program (LD_PRELOAD), in place of the calls that change what is on a disk. write() is not among
// them, since programs also wake their threads and log with it.
//
// FAULTY_DISK_FAILS_SYNCS_IF=FILE: from the moment that FILE exists, every flush fails as that of a broken disk.
// FAULTY_DISK_KILLS_AT=N: the program is killed in place of its N-th call.
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

namespace {

void CountCall() {
  static const char* const kills_at = std::getenv("FAULTY_DISK_KILLS_AT");
  static std::atomic<int> calls = 0;
  if (kills_at == nullptr || ++calls != std::atoi(kills_at)) return;
  kill(getpid(), SIGKILL);
  pause();
}

int Sync(long call, int fd) {
  CountCall();
  static const char* const fails_if = std::getenv("FAULTY_DISK_FAILS_SYNCS_IF");
  if (fails_if != nullptr && access(fails_if, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(syscall(call, fd));
}

template <typename... Arguments>
auto Counted(long call, Arguments... arguments) {
  CountCall();
  return syscall(call, arguments...);
}

}  // namespace

extern "C" {
int fsync(int fd) { return Sync(SYS_fsync, fd); }
int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  return Counted(SYS_pwrite64, fd, data, size, at);
}
int ftruncate64(int fd, off64_t size) noexcept { return static_cast<int>(Counted(SYS_ftruncate, fd, size)); }
int rename(const char* from, const char* to) noexcept { return static_cast<int>(Counted(SYS_rename, from, to)); }
int link(const char* from, const char* to) noexcept { return static_cast<int>(Counted(SYS_link, from, to)); }
int unlink(const char* path) noexcept { return static_cast<int>(Counted(SYS_unlink, path)); }
}
