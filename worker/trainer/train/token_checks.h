// Whether the base model knows the tokens of the rows.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "worker/trainer/train/preparation.h"

namespace luthier {

// INVALID_ARGUMENT if a row has a token that the model has no embedding for: the tokenizer belongs to another model, or
// its embedding was not resized with it.
absl::Status CheckTokensHaveEmbeddings(const Run& run);

// A warning if none of the tokens at which generation stops is trained in any row: a model that never sees its own end
// answers until its context is full.
std::optional<std::string> UntrainedEndWarning(const Run& run);

// A warning that names the special tokens of the rows which the base never learned, where this run does not train the
// matrix that lacks them: a model whose head does not know the end of a turn never stops, whatever the adapter learns.
// Requires: the run has its weights.
std::optional<std::string> UntrainedTokensWarning(const Run& run);

}  // namespace luthier
