// A server of the Hugging Face hub's API and of the CDN behind it (hub_server.py), and what it was asked for.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/support/background_program.h"
#include "tests/support/free_port.h"
#include "tests/support/http_get.h"
#include "tests/support/wait_for.h"

namespace luthier {

class HubServer {
 public:
  // Of the only account.
  static constexpr char kToken[] = "hf_thatNobodyMayPrint";

  // `folder` holds ORG/REPO/FILES. `tls`: a folder with server.pem and server.key for hub.test and cdn.test, which are
  // reached through proxy() only; empty: without TLS.
  explicit HubServer(const std::string& folder, const std::string& tls = "") : tls_(!tls.empty()) {
    std::vector<std::string> line = {"/usr/bin/env",
                                     "python3",
                                     std::filesystem::absolute("tests/support/hub_server.py"),
                                     "--folder",
                                     folder,
                                     "--port",
                                     absl::StrCat(port_),
                                     "--cdn-port",
                                     absl::StrCat(cdn_port_),
                                     "--control-port",
                                     absl::StrCat(control_port_),
                                     "--token",
                                     kToken};
    if (tls_) {
      const std::string proxy = absl::StrCat(proxy_port_);
      line.insert(line.end(), {"--tls", tls + "/server.pem", tls + "/server.key", "--proxy-port", proxy});
    }
    program_ = BackgroundProgram(line);
    EXPECT_TRUE(WaitFor([&] { return !HttpGet(control_port_, "/requests").empty(); }));
  }

  std::string endpoint() const { return tls_ ? "https://hub.test" : absl::StrCat("http://127.0.0.1:", port_); }
  std::string proxy() const { return absl::StrCat("http://127.0.0.1:", proxy_port_); }

  // From now on, as hub_server.py says; what was asked before is forgotten.
  void Fail(const nlohmann::json& faults) {
    const std::string body = faults.dump();
    HttpExchange(control_port_,
                 absl::StrCat("PUT /faults HTTP/1.0\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
  }
  // What came to the `hub`, the `cdn` or the `proxy`, with `part` in its path: objects of path, range and token.
  std::vector<nlohmann::json> Requests(const std::string& at, const std::string& part = "") const {
    std::vector<nlohmann::json> found;
    for (const nlohmann::json& request : nlohmann::json::parse(HttpGet(control_port_, "/requests"))) {
      if (request["at"] == at && request["path"].get<std::string>().find(part) != std::string::npos)
        found.push_back(request);
    }
    return found;
  }
  // The list of files that the hub gives of a repository.
  nlohmann::json Listing(const std::string& repository) const {
    const std::string target = absl::StrCat("/api/models/", repository, "/revision/main?blobs=true");
    return nlohmann::json::parse(HttpGet(port_, target));
  }

 private:
  const bool tls_;
  const int port_ = FreePort(), cdn_port_ = FreePort(), control_port_ = FreePort(), proxy_port_ = FreePort();
  BackgroundProgram program_;
};

// The facts of one file in such a list.
inline nlohmann::json& FileIn(nlohmann::json& listing, const std::string& path) {
  for (nlohmann::json& file : listing["siblings"]) {
    if (file["rfilename"] == path) return file;
  }
  ADD_FAILURE() << path << " is not listed";
  return listing["siblings"][0];
}

}  // namespace luthier
