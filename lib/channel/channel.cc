#include "lib/channel/channel.h"

#include <cstdlib>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"

namespace luthier {
namespace {

using grpc::experimental::ClientInterceptorFactoryInterface;
using grpc::experimental::ClientRpcInfo;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;

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

}  // namespace

std::shared_ptr<grpc::Channel> DialWithToken(const std::string& address, const std::string& token, const grpc::ChannelArguments& arguments) {
  if (token.empty()) return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  std::vector<std::unique_ptr<ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<TokenInterceptors>(token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(address, grpc::InsecureChannelCredentials(), arguments,
                                                                 std::move(interceptors));
}

absl::StatusOr<std::string> TokenFromEnvironment() {
  if (const char* token = std::getenv("LUTHIER_TOKEN"); token != nullptr && *token != '\0') return std::string(token);
  const char* path = std::getenv("LUTHIER_TOKEN_FILE");
  if (path == nullptr || *path == '\0') return std::string();
  std::ifstream file(path);
  std::string token;
  if (!(file >> token)) return absl::InvalidArgumentError(absl::StrCat("LUTHIER_TOKEN_FILE: ", path, " holds no token, or cannot be read"));
  return token;
}

}  // namespace luthier
