// How the CLI and agents dial a server.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace luthier {

// Files of an authority that signed the server's certificate, and of a certificate and its key if the server wants one.
// Without any of them: those that $LUTHIER_TLS_CA, $LUTHIER_TLS_CERT and $LUTHIER_TLS_KEY name.
struct TlsFiles {
  std::string ca, cert, key;

  bool empty() const { return ca.empty() && cert.empty() && key.empty(); }
};

// Every call carries the token, if it is not empty. Over TLS if there is an authority. CheckTlsFiles() says whether the
// files can be read; if not, no call succeeds.
std::shared_ptr<grpc::Channel> DialWithToken(const std::string& address, const std::string& token,
                                             const grpc::ChannelArguments& arguments, const TlsFiles& files = {});

// Waits until there is a connection, for a few seconds at most, or until `stopped` says so. gRPC 1.51 gets on with one
// only while somebody waits, and a call does not wait for a channel that has failed before: to call again and again
// comes upon a server that is back by luck, some eight seconds late.
void AwaitConnection(grpc::Channel& channel, absl::FunctionRef<bool()> stopped);

// Errors: INVALID_ARGUMENT.
absl::Status CheckTlsFiles(const TlsFiles& files = {});

// Errors: INVALID_ARGUMENT for what gRPC would look for elsewhere or nowhere: a URL, and a host without a port.
absl::Status CheckServerAddress(absl::string_view address);

// $LUTHIER_TOKEN, else what the file $LUTHIER_TOKEN_FILE holds; empty if neither is set. Errors: INVALID_ARGUMENT for a
// file that cannot be read and for what can be no token.
absl::StatusOr<std::string> TokenFromEnvironment();
// What a file holds that `given_by` names. Errors: as above.
absl::StatusOr<std::string> TokenInFile(const char* given_by, const std::string& path);

}  // namespace luthier
