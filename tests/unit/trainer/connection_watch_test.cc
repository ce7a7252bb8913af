// Connections whose other end does not answer, as if its machine were gone: its kernel drops whatever arrives.
#include "worker/trainer/distributed/connection_watch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using std::chrono::milliseconds;

class ConnectionWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    ASSERT_EQ(bind(listening, reinterpret_cast<sockaddr*>(&address), size), 0);
    ASSERT_EQ(listen(listening, 1), 0);
    ASSERT_EQ(getsockname(listening, reinterpret_cast<sockaddr*>(&address), &size), 0);
    own_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(own_, reinterpret_cast<sockaddr*>(&address), size), 0);
    other_ = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    ASSERT_GE(other_, 0);
    close(listening);
  }
  void TearDown() override {
    close(own_);
    close(other_);
  }
  void OtherMachineIsGone() const {
    sock_filter nothing_passes = {BPF_RET | BPF_K, 0, 0, 0};
    const sock_fprog program = {1, &nothing_passes};
    ASSERT_EQ(setsockopt(other_, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  }
  void Send() const { (void)send(own_, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL); }
  // The other end never sends anything.
  bool IsClosed() const {
    char byte;
    const ssize_t count = recv(own_, &byte, 1, MSG_DONTWAIT);
    return count == 0 || (count < 0 && errno != EAGAIN);
  }

  int own_ = -1, other_ = -1;
};

TEST_F(ConnectionWatchTest, ClosesOneOnWhichNothingIsAnsweredAnyMore) {
  const ConnectionWatch watch({.silence = milliseconds(500), .between_looks = milliseconds(20)});
  OtherMachineIsGone();
  EXPECT_TRUE(WaitFor([&] {
    Send();
    return IsClosed();
  }));
}

// Its process may be stopped, or at other work for an hour: its kernel answers. Nor does that end send anything.
TEST_F(ConnectionWatchTest, LeavesOneOpenWhoseOtherEndReadsNothing) {
  const ConnectionWatch watch({.silence = milliseconds(500), .between_looks = milliseconds(20)});
  EXPECT_FALSE(WaitFor(
      [&] {
        Send();
        return IsClosed();
      },
      milliseconds(2000)));
}

TEST_F(ConnectionWatchTest, HasTheKernelAskWhereNothingIsSent) {
  const ConnectionWatch watch({.between_looks = milliseconds(20)});
  EXPECT_TRUE(WaitFor([&] {
    int asks = 0;
    socklen_t size = sizeof asks;
    return getsockopt(own_, SOL_SOCKET, SO_KEEPALIVE, &asks, &size) == 0 && asks == 1;
  }));
  EXPECT_FALSE(IsClosed());
}

}  // namespace
}  // namespace luthier
