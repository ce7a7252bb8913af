// One HTTP request to a program on this machine.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace luthier {

// All that 127.0.0.1:port answers to a request; empty if nobody does. The request says HTTP/1.0: the answer ends with
// the connection, and is not sent in chunks.
inline std::string HttpExchange(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[1 << 16];
    for (ssize_t count; (count = recv(fd, buffer, sizeof buffer, 0)) > 0;)
      answer.append(buffer, static_cast<size_t>(count));
  }
  close(fd);
  return answer;
}

// The body of `GET path` from 127.0.0.1:port; empty if nobody answers or the answer is not 200.
inline std::string HttpGet(int port, const std::string& path) {
  const std::string answer = HttpExchange(port, absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"));
  const size_t body = answer.find("\r\n\r\n");
  const bool ok = answer.compare(0, 5, "HTTP/") == 0 && answer.find(" 200 ") == 8;
  return ok && body != std::string::npos ? answer.substr(body + 4) : "";
}

// `text` as it stands in a query: everything but letters and digits as %XX.
inline std::string PercentEncode(const std::string& text) {
  std::string encoded;
  for (const unsigned char c : text) {
    if (isalnum(c)) {
      encoded.push_back(static_cast<char>(c));
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return encoded;
}

// The other way round, of what others encoded.
inline std::string PercentDecode(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    uint32_t byte = 0;
    if (text[i] == '%' && i + 2 < text.size() && absl::SimpleHexAtoi(text.substr(i + 1, 2), &byte)) {
      decoded.push_back(static_cast<char>(byte));
      i += 2;
    } else {
      decoded.push_back(text[i]);
    }
  }
  return decoded;
}

}  // namespace luthier
