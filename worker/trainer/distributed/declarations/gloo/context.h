// LibTorch's wheel has Gloo's code and not its headers. These declarations are what ProcessGroupGloo.hpp names of it,
// so that a ProcessGroupGloo can be made; nothing here is called.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
