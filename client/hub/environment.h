// What the environment says about the hub, by the variables that Hugging Face's own tools read.
#pragma once

#include "absl/status/statusor.h"
#include "client/hub/hub.h"

namespace luthier {

// HF_ENDPOINT, else https://huggingface.co. HF_TOKEN, else what the file HF_TOKEN_PATH holds, else `token` in HF_HOME,
// in XDG_CACHE_HOME/huggingface or in ~/.cache/huggingface, where `hf auth login` writes it. A token goes over TLS, or
// to this machine; to another one without TLS the file's is left out. Errors: INVALID_ARGUMENT, without any token.
absl::StatusOr<Hub::Options> HubOptionsFromEnvironment();

}  // namespace luthier
