// The rotary settings of a config.json, in either generation.
#pragma once

#include "lib/checkpoint/field_reader.h"
#include "lib/checkpoint/model_config.h"

namespace luthier {

// Reads `rope_scaling` or `rope_parameters` with `rope_theta`, `partial_rotary_factor` and
// `original_max_position_embeddings` beside it, for a model whose layers all rotate alike. `config` has its sizes.
// Refuses types and fields that are not known.
RopeConfig ReadRope(FieldReader& fields, const ModelConfig& config, double default_theta);

// Reads one block of settings. `name` is the block's field, for messages; `theta` holds where the block does not say.
// `length_beside`: whether `original_max_position_embeddings` beside the block counts for it, which it does not where
// kinds of layers have a block each.
RopeConfig ReadRopeBlock(const nlohmann::json& block, const std::string& name, FieldReader& fields,
                         const ModelConfig& config, double theta, bool length_beside = false);

// For families that rotate whole heads only.
void RequireWholeHeads(const ModelConfig& config, FieldReader& fields);

}  // namespace luthier
