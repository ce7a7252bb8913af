// A disk that fills up, for one process.
#pragma once

#include <signal.h>
#include <sys/resource.h>

namespace luthier {

// Lowers the largest file this process may write: the kernel's own way to make a write fail half-way, as on a full
// disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit lowered = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &lowered);
    previous_ = signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, previous_);
  }

 private:
  rlimit before_;
  sighandler_t previous_;
};

}  // namespace luthier
