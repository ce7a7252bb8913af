"""Prints what transformers takes for the fields that a config.json leaves out, for every family: tests/fixtures/config_defaults.json.

Values are asked of the configuration and of a model made from it without memory, since a default may stand in either.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = ["gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3"]
# What our reader requires: a vocabulary that holds every family's default tokens, as many heads as every family's default of key
# heads divides, and twice the longest pattern of layers.
GIVEN = dict(vocab_size=130_000, hidden_size=128, intermediate_size=96, num_hidden_layers=12, num_attention_heads=32)


def window(config, layer):
  if getattr(config, "layer_types", None):
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
  return getattr(config, "sliding_window", None)


def theta(config, layer):
  if hasattr(config, "no_rope_layers") and not config.no_rope_layers[layer]:
    return None
  block = config.rope_parameters
  block = block.get(config.layer_types[layer], block) if getattr(config, "layer_types", None) else block
  assert block["rope_type"] == "default" and block.get("partial_rotary_factor", 1) == 1, block
  return block["rope_theta"]


def experts(config, layers):
  if not hasattr(config, "num_experts"):
    return None
  return {"count": config.num_experts, "per_token": config.num_experts_per_tok, "intermediate_size": config.moe_intermediate_size,
          "normalize": config.norm_topk_prob, "layers": [hasattr(layer.mlp, "experts") for layer in layers]}


def defaults(family):
  config = CONFIG_MAPPING[family].from_dict(dict(GIVEN, model_type=family))
  with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config).model
  attention, norm = model.layers[0].self_attn, model.norm
  layers = range(config.num_hidden_layers)
  return {
      "num_key_value_heads": config.num_key_value_heads,
      "head_dim": attention.head_dim,
      "max_position_embeddings": config.max_position_embeddings,
      "rms_norm_eps": norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps,
      "tie_word_embeddings": config.tie_word_embeddings,
      "attention_bias": getattr(config, "attention_bias", False),
      "mlp_bias": getattr(config, "mlp_bias", False),
      "activation": config.hidden_activation if hasattr(config, "hidden_activation") else config.hidden_act,
      "attention_scale": attention.scaling,
      "attention_softcap": getattr(config, "attn_logit_softcapping", None) or 0,
      "attention_dropout": config.attention_dropout,
      "embedding_scale": getattr(model.embed_tokens, "scalar_embed_scale", getattr(config, "embedding_multiplier", 1)),
      "padding_token": model.embed_tokens.padding_idx,
      "residual_scale": getattr(config, "residual_multiplier", 1),
      "logit_scale": 1 / getattr(config, "logits_scaling", 1),
      "logit_softcap": getattr(config, "final_logit_softcapping", None) or 0,
      "windows": [window(config, layer) for layer in layers],
      "thetas": [theta(config, layer) for layer in layers],
      "experts": experts(config, model.layers),
  }


def main():
  families = {family: defaults(family) for family in FAMILIES}
  lines = [f'    {json.dumps(family)}: {json.dumps(values)}' for family, values in families.items()]
  print('{\n  "transformers": %s,\n  "given": %s,\n  "families": {\n%s\n  }\n}' %
        (json.dumps(transformers.__version__), json.dumps(GIVEN), ",\n".join(lines)))


if __name__ == "__main__":
  sys.exit(main())
