// The accept4 of this program: a program's own functions come before those of the C library, also for gRPC's library.
// gRPC 1.51 listens no more, for good, once accept4 fails (newer ones try again); and every connection is a file, of
// which there are only so many. Here it fails with what gRPC takes: that there is nobody to accept. Connections that
// would take the last files are closed, so that there are some for uploads, downloads and checks of rows.
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>

#include "absl/time/time.h"
#include "lib/base/steady_now.h"

namespace luthier {
namespace {

constexpr rlim_t kOwnFiles = 1024;
constexpr absl::Duration kSaidEvery = absl::Minutes(1);

// A file gets the lowest number that is free: who got this one or a higher one has found all others taken.
rlim_t FirstOwnFile() {
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  return files.rlim_cur - std::min(kOwnFiles, files.rlim_cur / 4);
}

void SayThatFilesAreTaken() {
  static std::atomic<int64_t> silent_until = 0;
  int64_t until = silent_until;
  const int64_t now = absl::ToUnixMillis(SteadyNow());
  if (now < until || !silent_until.compare_exchange_strong(until, now + absl::ToInt64Milliseconds(kSaidEvery))) return;
  std::fprintf(stderr,
               "luthierd: further connections are closed, since all files are taken that connections may have: %lld; "
               "raise the hard limit of open files (LimitNOFILE= in the unit)\n",
               static_cast<long long>(FirstOwnFile()));
}

bool IsForWantOfAFile(int error) { return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM; }

// Listener and arguments are in order. It is the connection that failed.
bool IsOfTheConnection(int error) {
  return error == ECONNABORTED || error == EPROTO || error == ENOPROTOOPT || error == EPERM || error == ENETDOWN ||
         error == ENETUNREACH || error == EHOSTDOWN || error == EHOSTUNREACH || error == ENONET || error == EOPNOTSUPP;
}

}  // namespace
}  // namespace luthier

extern "C" int accept4(int listener, sockaddr* peer, socklen_t* size, int flags) {
  static const auto next = reinterpret_cast<decltype(&accept4)>(dlsym(RTLD_NEXT, "accept4"));
  const int connection = next(listener, peer, size, flags);
  if (connection >= 0 && static_cast<rlim_t>(connection) < luthier::FirstOwnFile()) return connection;
  if (connection >= 0) {
    luthier::SayThatFilesAreTaken();
    close(connection);
    errno = EINTR;  // gRPC asks for the next one
    return -1;
  }
  const int error = errno;
  if (luthier::IsForWantOfAFile(error)) luthier::SayThatFilesAreTaken();
  // Whoever waits is let in with the next one who comes.
  errno = luthier::IsForWantOfAFile(error) ? EAGAIN : luthier::IsOfTheConnection(error) ? EINTR : error;
  return -1;
}
