#include "lib/checkpoint/rope_config.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using nlohmann::json;
using Type = RopeConfig::Type;

// `su` is how Phi-3 first called longrope.
const std::map<std::string, Type>& Types() {
  static const std::map<std::string, Type> types = {
      {"default", Type::kDefault},   {"linear", Type::kLinear}, {"dynamic", Type::kDynamic}, {"yarn", Type::kYarn},
      {"longrope", Type::kLongrope}, {"su", Type::kLongrope},   {"llama3", Type::kLlama3}};
  return types;
}

// Attention is sharpened a little as the context grows (arXiv:2309.00071, section 3.4).
double YarnScale(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

void ReadYarn(FieldReader& fields, RopeConfig& rope) {
  // As in transformers, 0 says nothing.
  const auto multiplier = [&](const char* field) {
    return fields.Raw(field) == 0 ? std::nullopt : fields.OptionalPositive(field);
  };
  const std::optional<double> mscale = multiplier("mscale"), mscale_all_dim = multiplier("mscale_all_dim");
  const double scale = mscale && mscale_all_dim
                           ? YarnScale(rope.factor, *mscale) / YarnScale(rope.factor, *mscale_all_dim)
                           : YarnScale(rope.factor, 1);
  rope.attention_factor = fields.PositiveOr("attention_factor", scale);
  rope.beta_fast = fields.PositiveOr("beta_fast", rope.beta_fast);
  rope.beta_slow = fields.PositiveOr("beta_slow", rope.beta_slow);
  rope.truncate = fields.FlagOr("truncate", rope.truncate);
}

void ReadLongrope(FieldReader& fields, RopeConfig& rope) {
  const double original = static_cast<double>(rope.original_max_position_embeddings);
  const double scale = rope.factor <= 1 ? 1.0 : std::sqrt(1 + std::log(rope.factor) / std::log(original));
  rope.attention_factor = fields.PositiveOr("attention_factor", scale);
  const auto pairs = static_cast<size_t>((rope.rotary_dim + 1) / 2);
  rope.short_factors = fields.PositiveList("short_factor", pairs);
  rope.long_factors = fields.PositiveList("long_factor", pairs);
}

void ReadLlama3(FieldReader& fields, RopeConfig& rope) {
  rope.low_freq_factor = fields.Positive("low_freq_factor");
  rope.high_freq_factor = fields.Positive("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor)
    fields.Violation("high_freq_factor", "must be above low_freq_factor");
}

// Phi-3 keeps the length of pre-training beside the block, and there it counts.
int64_t OriginalLength(FieldReader* beside, FieldReader& block, const ModelConfig& config,
                       std::optional<int64_t> default_length) {
  constexpr char kField[] = "original_max_position_embeddings";
  const int64_t in_block = block.SizeOr(kField, default_length.value_or(config.max_position_embeddings));
  if (beside == nullptr) return in_block;
  if (default_length && in_block != *default_length && !beside->Has(kField)) {
    block.Violation(kField, absl::StrCat(in_block, " does not count for model_type ", config.model_type,
                                         ", which takes ", *default_length, "; give it beside the block"));
  }
  return beside->SizeOr(kField, in_block);
}

bool Same(const RopeConfig& a, const RopeConfig& b) {
  const auto fields = [](const RopeConfig& rope) {
    return std::tie(rope.type, rope.theta, rope.rotary_dim, rope.attention_factor, rope.factor, rope.low_freq_factor,
                    rope.high_freq_factor, rope.beta_fast, rope.beta_slow, rope.truncate,
                    rope.original_max_position_embeddings, rope.short_factors, rope.long_factors);
  };
  return fields(a) == fields(b);
}

void RefuseUnread(const FieldReader& fields, FieldReader& reporting) {
  for (const auto& [field, value] : fields.object().items()) {
    if (fields.Unread(field) && !value.is_null()) {
      reporting.Violation(
          field, absl::StrCat(value.dump(), " is not supported for this rope_type; remove it if it changes nothing"));
    }
  }
}

}  // namespace

RopeConfig ReadRopeBlock(const json& block, const std::string& name, FieldReader& top, const ModelConfig& config,
                         double theta, bool length_beside, std::optional<int64_t> default_length) {
  FieldReader* const beside = length_beside ? &top : nullptr;
  FieldReader fields(block, absl::StrCat("config.json: ", name, "."), top.violations());
  RopeConfig rope;
  rope.theta = fields.PositiveOr("rope_theta", theta);
  const double part = fields.PositiveOr("partial_rotary_factor", top.PositiveOr("partial_rotary_factor", 1.0));
  if (part > 1) fields.Violation("partial_rotary_factor", absl::StrCat(part, " is above 1"));
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * std::min(part, 1.0));
  if (rope.rotary_dim < 1) fields.Violation("partial_rotary_factor", absl::StrCat(part, " leaves nothing to rotate"));
  // `type` is what transformers wrote before 4.43.
  const std::string old_name = fields.TextOr("type", "default");
  const std::string type = fields.TextOr("rope_type", old_name);
  const auto known = Types().find(type);
  if (known == Types().end()) {
    fields.Violation(
        "rope_type",
        absl::StrCat("'", type, "' is not supported; supported: default, linear, dynamic, yarn, longrope, llama3"));
    return rope;
  }
  rope.type = known->second;
  const double context = static_cast<double>(config.max_position_embeddings);
  switch (rope.type) {
    case Type::kDefault: break;
    case Type::kLinear: rope.factor = fields.Positive("factor"); break;
    case Type::kDynamic:
      rope.factor = fields.Positive("factor");
      rope.original_max_position_embeddings = config.max_position_embeddings;
      break;
    case Type::kYarn:
      rope.original_max_position_embeddings = OriginalLength(beside, fields, config, default_length);
      rope.factor = fields.PositiveOr("factor", context / static_cast<double>(rope.original_max_position_embeddings));
      ReadYarn(fields, rope);
      break;
    case Type::kLongrope:
      rope.original_max_position_embeddings = OriginalLength(beside, fields, config, default_length);
      rope.factor = fields.PositiveOr("factor", context / static_cast<double>(rope.original_max_position_embeddings));
      ReadLongrope(fields, rope);
      break;
    case Type::kLlama3:
      rope.original_max_position_embeddings = OriginalLength(beside, fields, config, default_length);
      rope.factor = fields.Positive("factor");
      ReadLlama3(fields, rope);
      break;
  }
  if (!std::isfinite(rope.attention_factor)) {
    fields.Violation("attention_factor", "what follows from the other fields is not finite; correct them or give it");
  }
  // Written beside types that do not read them, and without effect there.
  for (const char* harmless : {"original_max_position_embeddings", "finetuned"}) fields.Has(harmless);
  top.Has("original_max_position_embeddings");
  RefuseUnread(fields, fields);
  return rope;
}

RopeConfig ReadRope(FieldReader& fields, const ModelConfig& config, double default_theta,
                    std::optional<int64_t> default_length) {
  const double theta = fields.PositiveOr("rope_theta", default_theta);
  static const json no_block = json::object();
  std::vector<std::pair<const char*, const json*>> blocks;
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json& block = fields.Raw(name);
    if (!block.is_null() && !block.is_object()) fields.Violation(name, absl::StrCat(block.dump(), " is not an object"));
    if (block.is_object() && !block.empty()) blocks.emplace_back(name, &block);
  }
  if (blocks.empty()) blocks.emplace_back("rope_parameters", &no_block);
  const RopeConfig rope = ReadRopeBlock(*blocks.back().second, blocks.back().first, fields, config, theta,
                                        /*length_beside=*/true, default_length);
  if (fields.Has("rope_theta") && rope.theta != theta) {
    fields.Violation("rope_theta", absl::StrCat(theta, " is not the rope_theta of ", blocks.back().first, ", ",
                                                rope.theta, "; remove the one that is wrong"));
  }
  if (blocks.size() == 2 && !Same(ReadRopeBlock(*blocks[0].second, blocks[0].first, fields, config, rope.theta,
                                                /*length_beside=*/true, default_length),
                                  rope)) {
    fields.Violation("rope_scaling",
                     absl::StrCat(blocks[0].second->dump(), " says something else than rope_parameters ",
                                  blocks[1].second->dump(), "; remove the one that is wrong"));
  }
  return rope;
}

void RequireWholeHeads(const ModelConfig& config, FieldReader& fields) {
  for (const RopeConfig& rope : config.ropes) {
    if (rope.rotary_dim != config.head_dim) {
      fields.Violation("partial_rotary_factor",
                       absl::StrCat("below 1 is not supported for model_type ", config.model_type, "; supported: 1.0"));
    }
  }
}

}  // namespace luthier
