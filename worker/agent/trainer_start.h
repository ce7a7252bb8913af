// What the trainer of an attempt is started with: inputs, spec, command line and environment, all from the order.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "luthier/v1/worker.pb.h"
#include "nlohmann/json.hpp"
#include "worker/agent/core/attempt_path.h"
#include "worker/agent/input_cache.h"

namespace luthier {

// Whether it trains every weight, and not an adapter.
bool TrainsWholeModel(const v1::StartAttempt& order);

// Of all inputs.
std::vector<InputCache::Blob> InputBlobs(const v1::StartAttempt& order);

// Makes the inputs that are folders in `folder`, by their roles, out of links to the files where the cache has them.
absl::Status LinkInputs(const v1::StartAttempt& order, const InputCache::Lease& inputs, const std::string& folder);

// The server's spec with the paths of this machine; `folder` is that of LinkInputs. Errors: INTERNAL if the server's is
// no JSON object.
absl::StatusOr<nlohmann::json> LocalSpec(const v1::StartAttempt& order, const AttemptPath& attempt,
                                         const InputCache::Lease& inputs, const std::string& folder);

// Program and arguments (docs/trainer-protocol.md).
std::vector<std::string> TrainerCommand(const std::string& trainer, const v1::StartAttempt& order,
                                        const std::string& spec_file, const std::string& run_folder);

// NAME=VALUE: the devices that the server gave and, where a device has several shares, this attempt's part of them.
std::vector<std::string> TrainerEnvironment(const v1::StartAttempt& order, const v1::Inventory& machine);

}  // namespace luthier
