// luthier: a person's terminal to a server. Wiring only.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "client/cli/app.h"
#include "lib/base/openssl_at_exit.h"

int main(int argc, char** argv) {
  luthier::LeaveOpenSslAtExit();
  // Whoever starts it may have ignored the signal: a watch would then go on after its reader, such as `head -1`, is
  // gone.
  signal(SIGPIPE, SIG_DFL);
  // gRPC's own log says in its words what the error of the call says in ours. Who wants it sets the variable.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  static luthier::Interrupts interrupts;  // its thread never ends
  luthier::CommandContext context(std::cout, luthier::TerminalOf(STDOUT_FILENO), std::cerr,
                                  luthier::TerminalOf(STDERR_FILENO), interrupts);
  if (isatty(STDIN_FILENO)) context.AnswersComeFrom(std::cin);
  try {
    return luthier::RunApp(std::vector<std::string>(argv + 1, argv + argc), context);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
