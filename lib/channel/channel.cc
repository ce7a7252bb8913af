#include "lib/channel/channel.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"

namespace luthier {
namespace {

using grpc::experimental::ClientInterceptorFactoryInterface;
using grpc::experimental::ClientRpcInfo;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;

// Then whoever waits calls all the same, and hears what is wrong.
constexpr absl::Duration kLongestWait = absl::Seconds(5);

// Call credentials would be gRPC's way, but it sends those over TLS only.
class TokenInterceptor : public Interceptor {
 public:
  explicit TokenInterceptor(const std::string& token) : header_("Bearer " + token) {}
  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", header_});
    }
    methods->Proceed();
  }

 private:
  const std::string header_;
};

class TokenInterceptors : public ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptors(std::string token) : token_(std::move(token)) {}
  Interceptor* CreateClientInterceptor(ClientRpcInfo*) override { return new TokenInterceptor(token_); }

 private:
  const std::string token_;
};

absl::Status ReadPem(const char* given_by, const std::string& path, std::string& text) {
  if (path.empty()) return absl::OkStatus();
  std::ifstream file(path, std::ios::binary);
  text.assign((std::istreambuf_iterator<char>(file)), {});
  if (text.find("-----BEGIN ") != std::string::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(given_by, ": ", path, " cannot be read, or holds no PEM block"));
}

// None: no TLS.
absl::StatusOr<std::optional<grpc::SslCredentialsOptions>> TlsOf(const TlsFiles& files) {
  const bool given = !files.empty();
  const char* const ca = given ? "tls_ca" : "LUTHIER_TLS_CA";
  const char* const cert = given ? "tls_cert" : "LUTHIER_TLS_CERT";
  const char* const key = given ? "tls_key" : "LUTHIER_TLS_KEY";
  grpc::SslCredentialsOptions options;
  LUTHIER_RETURN_IF_ERROR(ReadPem(ca, given ? files.ca : Environment(ca), options.pem_root_certs));
  LUTHIER_RETURN_IF_ERROR(ReadPem(cert, given ? files.cert : Environment(cert), options.pem_cert_chain));
  LUTHIER_RETURN_IF_ERROR(ReadPem(key, given ? files.key : Environment(key), options.pem_private_key));
  if (options.pem_cert_chain.empty() != options.pem_private_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(cert, " and ", key, " belong together; set both"));
  }
  if (options.pem_root_certs.empty() && !options.pem_cert_chain.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(cert, ": is given without ", ca, "; set that, too"));
  }
  if (options.pem_root_certs.empty()) return std::nullopt;
  return options;
}

// gRPC aborts the process over a header that holds anything else, such as the `…` of an example or a `\r`.
absl::StatusOr<std::string> CheckToken(const char* given_by, absl::string_view text) {
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  if (std::all_of(token.begin(), token.end(), [](unsigned char c) { return absl::ascii_isgraph(c); }))
    return std::string(token);
  return absl::InvalidArgumentError(
      absl::StrCat(given_by, ": holds characters that no token has; copy it again as `admin token create` printed it"));
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const TlsFiles& files) {
  const auto tls = TlsOf(files);
  if (!tls.ok()) return nullptr;
  return *tls ? grpc::SslCredentials(**tls) : grpc::InsecureChannelCredentials();
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) { return TlsOf(files).status(); }

absl::Status CheckServerAddress(absl::string_view address) {
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "http://") || absl::ConsumePrefix(&rest, "https://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("server: '", address, "' is a URL; give HOST:PORT, such as ", rest.substr(0, rest.find('/'))));
  }
  if (!absl::StrContains(address, ':')) {
    return absl::InvalidArgumentError(
        absl::StrCat("server: '", address, "' names no port; give HOST:PORT, such as ", address, ":7070"));
  }
  int port = 0;
  const bool is_socket = absl::StartsWith(address, "unix");  // of this machine, with a path
  if (is_socket || (absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port) && port >= 1 && port <= 65535))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("server: '", address, "' does not end with a port; give HOST:PORT with one from 1 to 65535"));
}

std::shared_ptr<grpc::Channel> DialWithToken(const std::string& address, const std::string& token,
                                             const grpc::ChannelArguments& arguments, const TlsFiles& files) {
  if (token.empty()) return grpc::CreateCustomChannel(address, Credentials(files), arguments);
  std::vector<std::unique_ptr<ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<TokenInterceptors>(token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(address, Credentials(files), arguments,
                                                                 std::move(interceptors));
}

void AwaitConnection(grpc::Channel& channel, absl::FunctionRef<bool()> stopped) {
  const absl::Time end = SteadyNow() + kLongestWait;
  while (SteadyNow() < end && !stopped()) {
    if (channel.WaitForConnected(std::chrono::system_clock::now() + std::chrono::milliseconds(100))) return;
  }
}

absl::StatusOr<std::string> TokenFromEnvironment() {
  LUTHIER_ASSIGN_OR_RETURN(const std::string given, CheckToken("LUTHIER_TOKEN", Environment("LUTHIER_TOKEN")));
  if (!given.empty()) return given;
  const std::string path = Environment("LUTHIER_TOKEN_FILE");
  if (path.empty()) return std::string();
  return TokenInFile("LUTHIER_TOKEN_FILE", path);
}

absl::StatusOr<std::string> TokenInFile(const char* given_by, const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!(file >> token))
    return absl::InvalidArgumentError(absl::StrCat(given_by, ": ", path, " holds no token, or cannot be read"));
  return CheckToken(given_by, token);
}

}  // namespace luthier
