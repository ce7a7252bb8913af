// Servers of the clouds' protocols, each with one bucket, and what an administrator of them sees: moto of S3's
// (scripts/s3-server), Azurite of Azure's (scripts/azure-server), and one of ours for Google's (gcs_server.py), since
// nobody's knows the part of it that is needed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tests/support/background_program.h"
#include "tests/support/free_port.h"
#include "tests/support/http_get.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {

class CloudServer {
 public:
  virtual ~CloudServer() = default;

  int port() const { return port_; }
  static std::string Endpoint(int port) { return absl::StrCat("http://127.0.0.1:", port); }
  // Of its addresses: `s3`, `az`, `gs`.
  virtual std::string scheme() const = 0;
  std::string Address(absl::string_view prefix) const { return absl::StrCat(scheme(), "://bucket/", prefix); }

  // Makes this process, and what it starts, use the server at `port`, which may be a proxy before it.
  virtual void UseFromHere(int port) const = 0;
  // The same, directly, with credentials that sign no URLs; false if there are none such. UseFromHere() undoes it.
  virtual bool UseWithoutKey() const { return false; }
  // What nobody may print of what this process uses.
  virtual std::string Secret() const { return kSecret; }
  // What messages say about the environment.
  virtual std::string EndpointVariable() const = 0;
  virtual std::string KeyVariable() const = 0;

  // What there is, as it is: nothing of ours checks it.
  std::string Get(const std::string& key) { return Send("GET", TargetOf(key)).second; }
  bool Has(const std::string& key) { return IsDone(Send("HEAD", TargetOf(key))); }
  void Put(const std::string& key, const std::string& content) {
    EXPECT_TRUE(IsDone(Send("PUT", TargetOf(key), content)));
  }
  // Multipart uploads that were neither completed nor aborted, of a cloud that keeps them for ever.
  virtual int UnfinishedUploads() { return static_cast<int>(Uploads().size()); }
  // As a bucket's rule for unfinished uploads does it.
  void AbortUploads() {
    for (const std::string& upload : Uploads()) EXPECT_TRUE(IsDone(Send("DELETE", upload)));
  }
  // Which part of an upload a request (`METHOD /target`) brings; empty: none.
  virtual std::string PartOf(absl::string_view request) const { return Between(request, "partNumber=", "&"); }

 protected:
  static constexpr char kSecret[] = "YS1zZWNyZXQtdGhhdC1ub2JvZHktbWF5LXByaW50";
  CloudServer(int port, const std::vector<std::string>& program) : port_(port) {
    std::vector<std::string> line = {"/bin/sh", "-c", "exec \"$0\" \"$@\" >/dev/null 2>&1"};
    line.insert(line.end(), program.begin(), program.end());
    program_ = BackgroundProgram(line);
  }
  using Answer = std::pair<int, std::string>;  // status, 0 if there is none; body
  static bool IsDone(const Answer& answer) { return answer.first / 100 == 2; }
  // Where an administrator finds an object, and the header lines that he sends.
  virtual std::string TargetOf(const std::string& key) const = 0;
  virtual std::string Headers() const = 0;
  Answer Send(const std::string& method, const std::string& target, const std::string& body = "") const {
    const std::string answer = HttpExchange(
        port_,
        absl::StrCat(method, " ", target,
                     " HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\nContent-Length: ",
                     body.size(), "\r\n", Headers(), "\r\n", body));
    int status = 0;
    if (answer.size() < 12 || !absl::SimpleAtoi(answer.substr(9, 3), &status)) return {0, ""};
    const size_t head = answer.find("\r\n\r\n");
    return {status, head == std::string::npos ? "" : answer.substr(head + 4)};
  }
  // What stands in a text behind `begin`, up to `end` or the text's own.
  static std::string Between(absl::string_view text, absl::string_view begin, absl::string_view end) {
    const size_t at = text.find(begin);
    if (at == absl::string_view::npos) return "";
    const absl::string_view rest = text.substr(at + begin.size());
    return std::string(rest.substr(0, rest.find(end)));
  }

 private:
  // Where the uploads that are not over are aborted.
  std::vector<std::string> Uploads() const {
    const std::string list = Send("GET", "/bucket?uploads").second;
    std::vector<std::string> targets;
    for (size_t at = 0; (at = list.find("<Upload>", at)) != std::string::npos; ++at) {
      const absl::string_view upload = absl::string_view(list).substr(at);
      targets.push_back(
          absl::StrCat("/bucket/", Between(upload, "<Key>", "<"), "?uploadId=", Between(upload, "<UploadId>", "<")));
    }
    return targets;
  }

  const int port_;
  BackgroundProgram program_;
};

class S3Server final : public CloudServer {
 public:
  // Null where it is not installed.
  static const char* Program() { return std::getenv("LUTHIER_S3_SERVER"); }

  S3Server() : S3Server(FreePort()) {
    EXPECT_TRUE(WaitFor([&] { return IsDone(Send("PUT", "/bucket")); }));
  }

  std::string scheme() const override { return "s3"; }
  void UseFromHere(int port) const override {
    setenv("AWS_ENDPOINT_URL", Endpoint(port).c_str(), 1);
    setenv("AWS_ACCESS_KEY_ID", "test-key", 1);
    setenv("AWS_SECRET_ACCESS_KEY", kSecret, 1);
    setenv("AWS_REGION", "us-east-1", 1);
    setenv("NO_PROXY", "127.0.0.1", 1);
  }
  std::string EndpointVariable() const override { return "AWS_ENDPOINT_URL"; }
  std::string KeyVariable() const override { return "AWS_SECRET_ACCESS_KEY"; }

 private:
  explicit S3Server(int port) : CloudServer(port, {Program(), "-H", "127.0.0.1", "-p", absl::StrCat(port)}) {}
  std::string TargetOf(const std::string& key) const override { return "/bucket/" + key; }
  // Signatures are not looked at, but without one it would be an anonymous request.
  std::string Headers() const override {
    return "Authorization: AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, "
           "SignedHeaders=host, Signature=0\r\n";
  }
};

// It checks every signature.
class AzureServer final : public CloudServer {
 public:
  // Null where it is not installed.
  static const char* Program() { return std::getenv("LUTHIER_AZURE_SERVER"); }

  AzureServer() : AzureServer(FreePort()) {
    const std::string container = absl::StrCat("/luthier/bucket?restype=container&", kAdministrator);
    EXPECT_TRUE(WaitFor([&] { return IsDone(Send("PUT", container)); }));
  }

  std::string scheme() const override { return "az"; }
  void UseFromHere(int port) const override {
    setenv("AZURE_STORAGE_ENDPOINT", absl::StrCat(Endpoint(port), "/luthier").c_str(), 1);
    setenv("AZURE_STORAGE_ACCOUNT_NAME", "luthier", 1);
    setenv("AZURE_STORAGE_ACCOUNT_KEY", kSecret, 1);
    unsetenv("AZURE_STORAGE_SAS_TOKEN");
    setenv("NO_PROXY", "127.0.0.1", 1);
  }
  bool UseWithoutKey() const override {
    UseFromHere(port());
    unsetenv("AZURE_STORAGE_ACCOUNT_KEY");
    setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2019-12-12&ss=b&srt=sco&sp=r&se=2099-01-01T00%3A00%3A00Z&sig=AAAA", 1);
    return true;
  }
  std::string EndpointVariable() const override { return "AZURE_STORAGE_ENDPOINT"; }
  std::string KeyVariable() const override { return "AZURE_STORAGE_ACCOUNT_KEY"; }
  // Parts go by themselves after a week.
  int UnfinishedUploads() override { return 0; }
  std::string PartOf(absl::string_view request) const override { return Between(request, "blockid=", "&"); }

 private:
  explicit AzureServer(int port)
      : CloudServer(port, {"/usr/bin/env", absl::StrCat("AZURITE_ACCOUNTS=luthier:", kSecret), Program(), "--blobHost",
                           "127.0.0.1", "--blobPort", absl::StrCat(port), "--inMemoryPersistence", "--silent",
                           "--disableTelemetry", "--skipApiVersionCheck"}) {}
  std::string TargetOf(const std::string& key) const override {
    return absl::StrCat("/luthier/bucket/", key, "?", kAdministrator);
  }
  std::string Headers() const override { return "x-ms-blob-type: BlockBlob\r\n"; }
  // A shared access signature of the account for everything until 2099, made with kSecret.
  static constexpr char kAdministrator[] =
      "sv=2019-12-12&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&"
      "sig=wGz3jqNVGbmhYXXsmP6P1GGDQDJ33e1aAHULMfO4D4Y%3D";
};

// It checks every token and signature.
class GoogleServer final : public CloudServer {
 public:
  // Null where it was not asked for.
  static const char* Program() { return std::getenv("LUTHIER_GCS_SERVER"); }

  GoogleServer() : GoogleServer(FreePort(), std::make_unique<TempFolder>()) {
    EXPECT_TRUE(WaitFor([&] { return IsDone(Send("GET", "/bucket?list-type=2")); }));
  }

  std::string scheme() const override { return "gs"; }
  void UseFromHere(int port) const override {
    setenv("GOOGLE_BASE_URL", Endpoint(port).c_str(), 1);
    setenv("GOOGLE_APPLICATION_CREDENTIALS", KeyFile(*folder_).c_str(), 1);
    unsetenv("GCE_METADATA_HOST");
    unsetenv("HTTPS_PROXY");
    setenv("NO_PROXY", "127.0.0.1", 1);
  }
  // As on a machine of Google's with a role, whose URLs another service would sign, which is out of reach.
  bool UseWithoutKey() const override {
    UseFromHere(port());
    unsetenv("GOOGLE_APPLICATION_CREDENTIALS");
    setenv("HOME", folder_->path().c_str(), 1);  // where `gcloud` has left nothing
    setenv("GCE_METADATA_HOST", absl::StrCat("127.0.0.1:", port()).c_str(), 1);
    setenv("HTTPS_PROXY", "http://127.0.0.1:1", 1);
    return true;
  }
  // A line of the private key that says nothing of the public one.
  std::string Secret() const override {
    std::ifstream stream(KeyFile(*folder_));
    const std::string file(std::istreambuf_iterator<char>(stream), {});
    const std::vector<std::string> lines = absl::StrSplit(file, "\\n");
    EXPECT_GT(lines.size(), 20u);
    return lines.size() > 20 ? lines[9] : file;
  }
  std::string EndpointVariable() const override { return "GOOGLE_BASE_URL"; }
  std::string KeyVariable() const override { return "GOOGLE_APPLICATION_CREDENTIALS"; }

 private:
  GoogleServer(int port, std::unique_ptr<TempFolder> folder)
      : CloudServer(port, {Program(), "--port", absl::StrCat(port), "--bucket", "bucket", "--key-file",
                           KeyFile(*folder), "--administrator", kSecret}),
        folder_(std::move(folder)) {}
  static std::string KeyFile(const TempFolder& folder) { return folder.path() + "/key.json"; }
  std::string TargetOf(const std::string& key) const override { return "/bucket/" + key; }
  std::string Headers() const override { return absl::StrCat("Authorization: Bearer ", kSecret, "\r\n"); }

  const std::unique_ptr<TempFolder> folder_;
};

// One for all tests of a process, since it takes seconds to start.
template <typename Server>
Server& Started() {
  static Server server;
  return server;
}

// What a test's program can be told to test.
struct TestedCloud {
  absl::string_view argument;  // of the program
  const char* variable;        // names the server
  const char* server;          // its value
  CloudServer& (*started)();
};
inline constexpr TestedCloud kTestedClouds[] = {
    {"", "LUTHIER_S3_SERVER", "$(scripts/s3-server)", []() -> CloudServer& { return Started<S3Server>(); }},
    {"azure", "LUTHIER_AZURE_SERVER", "$(scripts/azure-server)",
     []() -> CloudServer& { return Started<AzureServer>(); }},
    {"gcs", "LUTHIER_GCS_SERVER", "$PWD/tests/support/gcs_server.py",
     []() -> CloudServer& { return Started<GoogleServer>(); }},
};

// The cloud that this process tests.
inline const TestedCloud*& ChosenCloud() {
  static const TestedCloud* cloud = nullptr;
  return cloud;
}
inline CloudServer& Cloud() { return ChosenCloud()->started(); }

// The main of tests of a cloud. GoogleTest's own would end with 0 where nothing was tried, and ctest call that passed.
inline int RunCloudTests(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const absl::string_view argument = argc > 1 ? argv[1] : "";
  const auto* const found = std::find_if(std::begin(kTestedClouds), std::end(kTestedClouds),
                                         [&](const TestedCloud& cloud) { return cloud.argument == argument; });
  if (found == std::end(kTestedClouds)) {
    std::cerr << "there is no cloud '" << argument << "'\n";
    return 2;
  }
  ChosenCloud() = found;
  if (std::getenv(found->variable) != nullptr) return RUN_ALL_TESTS();
  std::cout << "SKIPPED: " << found->variable << " names no server; scripts/test sets it, or: " << found->variable
            << "=" << found->server << "\n";
  return 77;
}

}  // namespace luthier
