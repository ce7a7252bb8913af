// Preloaded into a program (LD_PRELOAD): from the moment that the file $FAILING_SYNC_WHEN_THERE_IS exists, every fsync
// and fdatasync fails as that of a broken disk.
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace {

int Sync(long call, int fd) {
  const char* fault = std::getenv("FAILING_SYNC_WHEN_THERE_IS");
  if (fault != nullptr && access(fault, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(syscall(call, fd));
}

}  // namespace

extern "C" int fsync(int fd) { return Sync(SYS_fsync, fd); }
extern "C" int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
