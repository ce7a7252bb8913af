// A file descriptor that is closed with its owner.
#pragma once

#include <unistd.h>

#include <utility>

namespace luthier {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { Close(); }

  bool is_open() const { return fd_ >= 0; }
  int get() const { return fd_; }  // negative: none
  int release() { return std::exchange(fd_, -1); }
  void Close() {
    if (is_open()) close(release());
  }

 private:
  int fd_ = -1;
};

}  // namespace luthier
