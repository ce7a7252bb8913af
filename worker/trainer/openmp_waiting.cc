// How OpenMP's threads wait for each other at the end of a parallel loop. Linked into programs that train.
//
// By default libgomp's threads spin for milliseconds before they sleep. That saves a wake-up of some microseconds while
// each thread has a core of its own. When something else runs on one of the cores, the thread that all wait for is not
// running, and the others spin through the time that it needs: a run next to one busy process is then slowed down many
// times over instead of twofold (figures in docs/performance.md). libgomp reads its setting when it is loaded, before
// main, and has no call to change it later; so the program replaces itself with one that has the setting, before any
// library has been initialised. This costs about 20 ms.
#include <unistd.h>

#include <climits>
#include <cstring>

namespace {

// Rounds to spin before sleeping, some 0.2 ms: longer than most of what one thread does alone between parallel loops.
// With 1,000, small steps took a fifth longer on an idle machine, and with 10,000 a third longer on a busy one.
char g_setting[] = "GOMP_SPINCOUNT=3000";
constexpr const char* kNames[] = {"GOMP_SPINCOUNT=", "OMP_WAIT_POLICY="};
// More variables than any real environment has. Past it the program runs as it is: slower next to others, but right.
constexpr size_t kMaxVariables = 4096;

// Runs before every library's own start, so nothing that allocates or has constructors may be used here.
void LimitSpinning(int /*argc*/, char** argv, char** environment) {
  static char* extended[kMaxVariables + 2];
  static char program[PATH_MAX];
  size_t count = 0;
  for (; environment[count] != nullptr; ++count) {
    if (count == kMaxVariables) return;
    for (const char* name : kNames) {
      if (std::strncmp(environment[count], name, std::strlen(name)) == 0) return;  // ours, or the user's own choice
    }
    extended[count] = environment[count];
  }
  extended[count] = g_setting;
  // By its path and not as /proc/self/exe: `ps` shows the last part of what was executed. Where that cannot be
  // executed, for instance since the file was replaced, this program goes on as it is.
  if (readlink("/proc/self/exe", program, sizeof(program) - 1) < 0) return;
  execve(program, argv, extended);
}

[[gnu::section(".preinit_array"), gnu::used]] void (*const g_limit_spinning)(int, char**, char**) = LimitSpinning;

}  // namespace
