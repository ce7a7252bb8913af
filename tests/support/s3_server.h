// A real server of the S3 protocol (moto, see scripts/s3-server) with one bucket, and what an administrator of it sees.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/support/background_program.h"
#include "tests/support/free_port.h"
#include "tests/support/http_get.h"
#include "tests/support/wait_for.h"

namespace luthier {

class S3Server {
 public:
  // Null where it is not installed.
  static const char* Program() { return std::getenv("LUTHIER_S3_SERVER"); }

  S3Server()
      : port_(FreePort()),
        program_({"/bin/sh", "-c", "exec \"$0\" \"$@\" >/dev/null 2>&1", Program(), "-H", "127.0.0.1", "-p",
                  absl::StrCat(port_)}) {
    EXPECT_TRUE(WaitFor([&] { return Send("PUT", "/bucket").first == 200; }));
  }

  int port() const { return port_; }
  static std::string Endpoint(int port) { return absl::StrCat("http://127.0.0.1:", port); }

  // What there is, as it is: nothing of ours checks it.
  std::string Get(const std::string& key) { return Send("GET", "/bucket/" + key).second; }
  bool Has(const std::string& key) { return Send("HEAD", "/bucket/" + key).first == 200; }
  void Put(const std::string& key, const std::string& content) {
    EXPECT_EQ(Send("PUT", "/bucket/" + key, content).first, 200);
  }
  // Multipart uploads that were neither completed nor aborted.
  int UnfinishedUploads() {
    const std::string list = Send("GET", "/bucket?uploads").second;
    int count = 0;
    for (size_t at = 0; (at = list.find("<Upload>", at)) != std::string::npos; ++at) ++count;
    return count;
  }

  // Makes this process, and what it starts, use the server at `port`, which may be a proxy before it.
  static void UseFromHere(int port) {
    setenv("AWS_ENDPOINT_URL", Endpoint(port).c_str(), 1);
    setenv("AWS_ACCESS_KEY_ID", "test-key", 1);
    setenv("AWS_SECRET_ACCESS_KEY", kSecret, 1);
    setenv("AWS_REGION", "us-east-1", 1);
    setenv("NO_PROXY", "127.0.0.1", 1);
  }
  static constexpr char kSecret[] = "a-secret-that-nobody-may-print";

 private:
  // Status and body of the answer; 0 if there is none.
  std::pair<int, std::string> Send(const std::string& method, const std::string& target, const std::string& body = "") {
    // Signatures are not looked at, but without one it would be an anonymous request.
    const std::string answer = HttpExchange(
        port_,
        absl::StrCat(
            method, " ", target,
            " HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\nContent-Length: ", body.size(),
            "\r\nAuthorization: AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0\r\n\r\n",
            body));
    int status = 0;
    if (answer.size() < 12 || !absl::SimpleAtoi(answer.substr(9, 3), &status)) return {0, ""};
    const size_t head = answer.find("\r\n\r\n");
    return {status, head == std::string::npos ? "" : answer.substr(head + 4)};
  }

  const int port_;
  BackgroundProgram program_;
};

// GoogleTest's own main would end with 0 where nothing was tried, and ctest call that passed.
inline int RunS3Tests(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (S3Server::Program() != nullptr) return RUN_ALL_TESTS();
  std::cout << "SKIPPED: LUTHIER_S3_SERVER names no S3 server; scripts/test sets it, or: "
               "LUTHIER_S3_SERVER=$(scripts/s3-server)\n";
  return 77;
}

}  // namespace luthier
