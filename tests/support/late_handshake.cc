// Loaded into a program with LD_PRELOAD: does at the very end, after everything that the program registered for its
// exit, what one of gRPC's threads does that is still at a handshake.
#include <openssl/rand.h>

#include <cstdlib>

namespace {

constexpr int kFailed = 99;

void DrawKey() {
  unsigned char key[32];
  if (RAND_priv_bytes(key, sizeof key) != 1) std::_Exit(kFailed);
}

__attribute__((constructor)) void RegisterFirst() { std::atexit(DrawKey); }

}  // namespace
