#include "worker/trainer/distributed/connection_watch.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using std::chrono::milliseconds;

// Those of this process. Also some that are none by now: the list is of no one moment.
std::vector<int> Descriptors() {
  std::vector<int> descriptors;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc/self/fd", error), end; !error && entry != end;
       entry.increment(error)) {
    int descriptor = -1;
    if (absl::SimpleAtoi(entry->path().filename().string(), &descriptor)) descriptors.push_back(descriptor);
  }
  return descriptors;
}

// Has the kernel ask for an answer where nothing is sent. It closes the connection itself if none comes for a minute.
void AskWhileIdle(int connection) {
  const int yes = 1, idle_seconds = 30, seconds_between = 10, questions = 3;
  setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
  setsockopt(connection, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof idle_seconds);
  setsockopt(connection, IPPROTO_TCP, TCP_KEEPINTVL, &seconds_between, sizeof seconds_between);
  setsockopt(connection, IPPROTO_TCP, TCP_KEEPCNT, &questions, sizeof questions);
}

// "10.0.0.2:29400".
std::string OtherEndOf(int connection) {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "?";
  if (getpeername(connection, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
  }
  return absl::StrCat(host, ":", port);
}

void LookAt(int descriptor, const ConnectionPatience& patience) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || info.tcpi_state != TCP_ESTABLISHED) return;
  AskWhileIdle(descriptor);
  const milliseconds silence(std::min(info.tcpi_last_data_recv, info.tcpi_last_ack_recv));
  if (silence < patience.silence) return;
  std::cerr << absl::StrCat("error: ", OtherEndOf(descriptor), " has not answered for ", silence.count() / 1000,
                            " s; its machine, or the network to it, is gone\n");
  shutdown(descriptor, SHUT_RDWR);
}

}  // namespace

ConnectionWatch::ConnectionWatch(const ConnectionPatience& patience)
    : patience_(patience), thread_([this] { Run(); }) {}

ConnectionWatch::~ConnectionWatch() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void ConnectionWatch::Run() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, patience_.between_looks, [this] { return closed_; })) {
    for (const int descriptor : Descriptors()) LookAt(descriptor, patience_);
  }
}

}  // namespace luthier
