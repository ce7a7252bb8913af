// What OpenSSL does when a program ends: nothing, please.
#pragma once

#include <openssl/crypto.h>

namespace luthier {

// First thing in a program that has gRPC's threads: OpenSSL registers its clean-up when it is used first. At exit these
// threads may be amid a handshake, and the clean-up takes away what they use; one in some thousand runs of the CLI
// died of it.
inline void LeaveOpenSslAtExit() { OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, /*settings=*/nullptr); }

}  // namespace luthier
