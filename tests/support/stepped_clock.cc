// Preloaded into a program (LD_PRELOAD): from the moment that the file STEPPED_CLOCK_IF exists, the wall clock shows a
// day less.
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

extern "C" int clock_gettime(clockid_t clock, timespec* now) noexcept {
  constexpr time_t kDay = 24 * 60 * 60;
  static const char* const stepped_if = std::getenv("STEPPED_CLOCK_IF");
  const long result = syscall(SYS_clock_gettime, clock, now);
  const bool wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  if (result == 0 && wall && stepped_if != nullptr && syscall(SYS_access, stepped_if, F_OK) == 0) now->tv_sec -= kDay;
  return static_cast<int>(result);
}
