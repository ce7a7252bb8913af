"""Reference cases that are drawn: shapes, head counts, windows, scalings, adapters and lengths of every family, a case for each seed.

    python tests/reference/random_cases.py ../shared/reference/models/generate.py OUT FIRST-SEED COUNT
    build/release/bin/reference-check models OUT/*

with the Python of scripts/reference-python. The generator gives some up, since its own checks need more than chance gives: a feature
that changes nothing in so small a model, a configuration that transformers does not take.
"""
import random
import sys
from pathlib import Path

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "granite", "olmo2", "qwen3_moe"]
OWN_HEAD_SIZE = {"llama", "mistral", "qwen3", "gemma2", "gemma3_text", "qwen3_moe", "smollm3"}  # others: hidden_size / heads
CONTEXT = 1024


def rope_of(draw, family, head_dim):
    """The settings of rotation, and what stands beside them."""
    theta = draw.choice([500.0, 10000.0, 1e6, 12345.6])
    if family == "gemma3_text":
        full = draw.choice([dict(rope_type="default"), dict(rope_type="linear", factor=draw.choice([2.0, 8.0]))])
        local = dict(rope_type="default", rope_theta=draw.choice([100.0, 10000.0]))
        return dict(full_attention=dict(full, rope_theta=theta), sliding_attention=local), {}
    if family == "phi3":
        part = draw.choice([1.0, 0.75, 0.5, 0.4])
        rotated = int(head_dim * part)
        rope = dict(rope_type="default", rope_theta=theta, partial_rotary_factor=part)
        if rotated < 2 or rotated % 2 or draw.random() < .5:
            return rope, dict(original_max_position_embeddings=CONTEXT)
        factors = lambda most: [round(1 + (most - 1) * draw.random(), 3) for _ in range(rotated // 2)]
        rope.update(rope_type="longrope", short_factor=factors(2), long_factor=factors(10))
        return rope, dict(original_max_position_embeddings=draw.choice([8, 12, 15]))
    kind = draw.choice(["default", "default", "linear", "yarn", "llama3", "dynamic"])
    rope = dict(rope_type=kind, rope_theta=theta)
    if kind in ("linear", "dynamic"):
        rope["factor"] = draw.choice([1.5, 4.0])
    if kind == "yarn":
        rope.update(factor=draw.choice([2.0, 4.0, 40.0]), original_max_position_embeddings=draw.choice([32, 64, 4096]))
        for more in (dict(attention_factor=0.7), dict(beta_fast=20.0, beta_slow=0.5), dict(truncate=False),
                     dict(mscale=0.7, mscale_all_dim=draw.choice([1.0, 0.0, 0.3]))):
            if draw.random() < .3:
                rope.update(more)
    if kind == "llama3":
        rope.update(factor=draw.choice([8.0, 32.0]), low_freq_factor=1.0, high_freq_factor=draw.choice([4.0, 2.0]),
                    original_max_position_embeddings=draw.choice([32, 64, 8192]))
    return rope, {}


def fields_of(draw, family, layers, head_dim):
    """What only this family has."""
    flag = lambda: draw.random() < .3
    kinds = ["full_attention", "sliding_attention"]
    if family in ("llama", "smollm3", "granite"):
        fields = dict(attention_bias=flag(), mlp_bias=flag())
    else:
        fields = dict(attention_bias=flag()) if family in ("qwen3", "gemma2", "gemma3_text", "olmo2", "qwen3_moe") else {}
    if family in ("mistral", "phi3"):
        fields["sliding_window"] = draw.choice([None, 1, 2, 7, 33, 1000])
    if family == "qwen2" and flag():
        fields.update(use_sliding_window=True, sliding_window=draw.choice([3, 20]), max_window_layers=draw.randint(0, layers))
    if family in ("gemma2", "gemma3_text"):
        fields.update(query_pre_attn_scalar=draw.choice([3, head_dim, 144]), sliding_window=draw.choice([1, 4, 10, 64]),
                      final_logit_softcapping=draw.choice([None, 5.0, 30.0]))
        if family == "gemma2":
            fields["attn_logit_softcapping"] = draw.choice([None, 2.0, 50.0])
        if flag():
            fields["layer_types"] = [draw.choice(kinds) for _ in range(layers)]
    if family == "smollm3":
        fields["no_rope_layer_interval"] = draw.choice([1, 2, 4])
        if flag():
            fields["no_rope_layers"] = [draw.randint(0, 1) for _ in range(layers)]
        if flag():
            fields.update(use_sliding_window=True, sliding_window=draw.choice([2, 9]))
    if family == "granite":
        fields.update(embedding_multiplier=draw.choice([1.0, 12, 0.5]), attention_multiplier=draw.choice([0.0078125, 0.3]),
                      residual_multiplier=draw.choice([0.22, 1.0]), logits_scaling=draw.choice([8, 1.0, 0.5]))
    if family == "qwen3_moe":
        experts = draw.choice([2, 4, 7])
        fields.update(moe_intermediate_size=draw.choice([8, 20]), num_experts=experts, num_experts_per_tok=draw.randint(1, experts),
                      norm_topk_prob=flag(), decoder_sparse_step=draw.choice([1, 2]), output_router_logits=False,
                      mlp_only_layers=[layer for layer in range(layers) if draw.random() < .2])
    return fields


def adapter_of(draw, family, layers):
    names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if family == "phi3" else ATTN if family == "qwen3_moe" else ATTN + MLP
    targets = draw.choice([names, draw.sample(names, draw.randint(1, len(names)))])
    rank = draw.choice([1, 2, 3, 5, 8, 13, 16, 31, 32, 64])
    lora = dict(r=rank, lora_alpha=draw.choice([1, 8, 16, rank, 2 * rank]), target_modules=targets, use_rslora=draw.random() < .3)
    if layers > 1 and draw.random() < .2:
        lora["layers_to_transform"] = sorted(draw.sample(range(layers), draw.randint(1, layers)))
    if draw.random() < .2:
        lora.update(rank_pattern={targets[0]: draw.choice([1, 7, 20])}, alpha_pattern={targets[-1]: draw.choice([3, 50])})
    return lora


def case_of(seed):
    draw = random.Random(seed)
    family = FAMILIES[seed % len(FAMILIES)]
    layers, head_dim = draw.choice([1, 2, 3, 5]), draw.choice([2, 4, 6, 8, 10, 12, 16, 18, 20, 24, 32, 40, 64])
    key_heads = draw.choice([1, 1, 2, 3, 5])
    heads = key_heads * draw.choice([1, 2, 3, 4, 7])
    if family not in OWN_HEAD_SIZE and head_dim * heads > 160:
        heads = key_heads
    hidden = heads * (max(2, draw.choice([24, 40, 64, 96]) // heads) if family in OWN_HEAD_SIZE else head_dim)
    rope, beside = rope_of(draw, family, head_dim)
    def rows(count, longest):
        lengths = [draw.randint(16, longest) for _ in range(count)]
        return [(length, draw.randint(0, length - 2)) for length in lengths]
    config = dict(model_type=family, vocab_size=draw.choice([5, 17, 64, 131, 256, 1000]), hidden_size=hidden,
                  intermediate_size=draw.choice([8, 33, 50, 64, 96, 100]), num_hidden_layers=layers, num_attention_heads=heads,
                  num_key_value_heads=key_heads, max_position_embeddings=CONTEXT, rms_norm_eps=draw.choice([1e-5, 1e-6, 1e-3]),
                  tie_word_embeddings=draw.random() < .5, rope_parameters=rope)
    config.update(beside)
    config.update(fields_of(draw, family, layers, head_dim))
    if family in OWN_HEAD_SIZE:
        config["head_dim"] = head_dim
    batch = rows(draw.choice([1, 2, 3]), draw.choice([50, 50, 50, 300]))
    config["pad_token_id"] = draw.choice([None, 0, 1, 2, -1, 3])  # 1 and 2 begin and end every row
    long = rope.get("rope_type") == "longrope"
    if not long and draw.random() < .3:
        batch += [(1, 0), (2, 0)]
    case = dict(name=f"random_{seed:03d}_{family}", pins=f"drawn from the seed {seed}", config=config, rows=batch, toggles=[],
                style="v5" if "layer_types" in config else draw.choice(["v4", "v5"]), dtype=draw.choice(["f32", "bf16"]),
                shard=draw.choice([None, None, "30KB"]), micro=[rows(draw.choice([1, 2, 3]), 40) for _ in range(draw.choice([1, 2, 3]))],
                packed=rows(draw.choice([2, 3, 5]), 40), lora=adapter_of(draw, family, layers), clip=draw.choice([1.0, 0.3, 100.0]),
                wd_lora=draw.choice([0.0, 0.1]))
    return dict(case, short_rows=[(7, 1), (5, 0)]) if long else case


if __name__ == "__main__":
    from peft_options import load
    generate, out, first, count = load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    for seed in range(first, first + count):
        case = case_of(seed)
        try:
            generate.build_case(case, seed, out)
        except Exception as error:  # whatever transformers or the generator has against it
            print(f"given up: {case['name']}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            generate.shutil.rmtree(out / case["name"], ignore_errors=True)
