// The rotary settings of a config.json, in either generation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lib/checkpoint/field_reader.h"
#include "lib/checkpoint/model_config.h"

namespace luthier {

// Reads `rope_scaling` or `rope_parameters` with `rope_theta`, `partial_rotary_factor` and
// `original_max_position_embeddings` beside it, for a model whose layers all rotate alike. `config` has its sizes.
// Refuses types and fields that are not known. `default_length`: what the family takes for
// `original_max_position_embeddings` where that is not beside the block, whatever the block says.
RopeConfig ReadRope(FieldReader& fields, const ModelConfig& config, double default_theta,
                    std::optional<int64_t> default_length = std::nullopt);

// Reads one block of settings. `name` is the block's field, for messages; `theta` holds where the block does not say.
// `length_beside`: whether `original_max_position_embeddings` beside the block counts for it, which it does not where
// kinds of layers have a block each.
RopeConfig ReadRopeBlock(const nlohmann::json& block, const std::string& name, FieldReader& fields,
                         const ModelConfig& config, double theta, bool length_beside = false,
                         std::optional<int64_t> default_length = std::nullopt);

// For families that rotate whole heads only.
void RequireWholeHeads(const ModelConfig& config, FieldReader& fields);

}  // namespace luthier
