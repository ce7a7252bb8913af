#include "worker/trainer/commands/command.h"

#include <iostream>

namespace luthier {

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << "\n";
  return 1;
}

}  // namespace luthier
