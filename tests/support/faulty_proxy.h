// A proxy before an HTTP server on this machine, which does to chosen requests what networks and servers do.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/support/http_get.h"

namespace luthier {

class FaultyProxy {
 public:
  enum class Fault {
    kNone,
    kUnavailable,  // answers 503, and the server does not hear of it
    kInternal,     // answers 500
    kDenied,       // answers 403
    kLoseAnswer,   // the server does it, and the connection breaks before the answer
    kCutAnswer,    // the connection breaks in the middle of the answer's body
    kSilence,      // nothing comes, until the proxy ends
  };
  // `METHOD /target` of the request's first line, without its percent signs.
  using Rule = std::function<Fault(const std::string& request)>;

  FaultyProxy(int server_port, Rule rule) : server_port_(server_port), rule_(std::move(rule)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof address;
    bind(listener_, reinterpret_cast<sockaddr*>(&address), size);
    listen(listener_, 64);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~FaultyProxy() {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    close(listener_);
  }

  int port() const { return port_; }
  // Those that came, with a fault or without.
  std::vector<std::string> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  int Count(const std::string& method, const std::string& part_of_target = "") {
    int count = 0;
    for (const std::string& request : requests())
      count += absl::StartsWith(request, method + " ") && absl::StrContains(request, part_of_target) ? 1 : 0;
    return count;
  }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void Accept() {
    for (int fd; (fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) {
      const std::lock_guard lock(mutex_);
      open_.push_back(fd);
      threads_.emplace_back([this, fd] {
        Serve(fd);
        const std::lock_guard done(mutex_);
        open_.remove(fd);
        close(fd);
      });
    }
  }

  // One request a connection.
  void Serve(int fd) {
    std::string request;
    size_t head = std::string::npos, whole = 0;
    while (head == std::string::npos || request.size() < whole) {
      char buffer[1 << 16];
      const ssize_t count = recv(fd, buffer, sizeof buffer, 0);
      if (count <= 0) return;
      request.append(buffer, static_cast<size_t>(count));
      if (head == std::string::npos && (head = request.find("\r\n\r\n")) != std::string::npos)
        whole = head + 4 + BodySize(request.substr(0, head));
    }
    const std::vector<std::string> words = absl::StrSplit(request.substr(0, request.find('\r')), ' ');
    const std::string line = absl::StrCat(words[0], " ", PercentDecode(words[1]));
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(line);
    }
    const Fault fault = rule_(line);
    if (fault == Fault::kSilence) {
      char byte;
      recv(fd, &byte, 1, 0);  // until one of both goes away
      return;
    }
    for (const auto& [kind, status] :
         {std::pair(Fault::kUnavailable, "503 Slow Down"), std::pair(Fault::kInternal, "500 Internal Server Error"),
          std::pair(Fault::kDenied, "403 Forbidden")}) {
      if (fault != kind) continue;
      return Send(fd, absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    }
    std::string answer = Forward(request.insert(head + 2, "Connection: close\r\n"));
    if (fault == Fault::kLoseAnswer) return;
    const size_t body = answer.find("\r\n\r\n") + 4;
    if (fault == Fault::kCutAnswer) answer.resize(body + (answer.size() - body) / 2);
    Send(fd, answer);
  }

  static size_t BodySize(const std::string& head) {
    size_t size = 0;
    for (const absl::string_view line : absl::StrSplit(head, "\r\n")) {
      constexpr absl::string_view kLength = "content-length: ";
      if (absl::StartsWithIgnoreCase(line, kLength)) (void)absl::SimpleAtoi(line.substr(kLength.size()), &size);
    }
    return size;
  }

  std::string Forward(const std::string& request) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Loopback(server_port_);
    std::string answer;
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      Send(fd, request);
      char buffer[1 << 16];
      for (ssize_t count; (count = recv(fd, buffer, sizeof buffer, 0)) > 0;)
        answer.append(buffer, static_cast<size_t>(count));
    }
    close(fd);
    return answer;
  }

  static void Send(int fd, const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t count = send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<size_t>(count);
    }
  }

  const int server_port_;
  const Rule rule_;
  int listener_ = -1, port_ = 0;
  std::thread acceptor_;
  std::mutex mutex_;  // of what follows
  std::list<int> open_;
  std::list<std::thread> threads_;
  std::vector<std::string> requests_;
};

}  // namespace luthier
