// How the CLI and agents dial a server.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace luthier {

// Every call carries the token, if it is not empty.
std::shared_ptr<grpc::Channel> DialWithToken(const std::string& address, const std::string& token, const grpc::ChannelArguments& arguments);

// $LUTHIER_TOKEN, else what the file $LUTHIER_TOKEN_FILE holds; empty if neither is set. Errors: INVALID_ARGUMENT for a file that cannot be
// read.
absl::StatusOr<std::string> TokenFromEnvironment();

}  // namespace luthier
