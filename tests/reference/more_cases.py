"""Further reference cases: options of families and of adapters that the stored cases leave out. Written, and then checked, by

    python tests/reference/more_cases.py ../shared/reference/models/generate.py OUT [NAME ...]
    build/release/bin/reference-check models OUT/*

with the Python of scripts/reference-python.
"""
import sys
from pathlib import Path

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ROPE = dict(rope_type="default", rope_theta=10000.0)
def case(name, family, lora, rope=ROPE, dtype="f32", style="v4", shard=None, extra=None, rows=((48, 12), (36, 6)), **config):
    sizes = dict(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope)
    sizes.update(config)
    return dict(dict(name=name, pins=name, config=dict(sizes, model_type=family), style=style, dtype=dtype, shard=shard,
                rows=list(rows), micro=[[(24, 4), (30, 12)], [(40, 2)], [(20, 9), (16, 5)]], packed=[(26, 6), (22, 3)],
                lora=lora, toggles=[]), **(extra or {}))

CASES = [
    case("x_qwen2_sliding", "qwen2", dict(r=3, lora_alpha=7, target_modules="all-linear"), use_sliding_window=True, sliding_window=9,
         max_window_layers=1, num_key_value_heads=1, style="v5"),
    case("x_qwen3_bias_sliding", "qwen3", dict(r=5, lora_alpha=16, target_modules=["q_proj","v_proj","down_proj"]), attention_bias=True, head_dim=24,
         use_sliding_window=True, sliding_window=7, layer_types=["full_attention", "sliding_attention", "full_attention"], style="v5"),
    case("x_llama_bias_head", "llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head", "up_proj"]), attention_bias=True, mlp_bias=True,
         rope=dict(rope_type="linear", rope_theta=5000.0, factor=3.0), head_dim=20, num_key_value_heads=4),
    case("x_llama_dynamic", "llama", dict(r=4, lora_alpha=8, target_modules=["v_proj"]), rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)),
    case("x_llama_long", "llama", dict(r=16, lora_alpha=32, target_modules=ATTN + MLP), rows=((700, 20), (333, 0), (90, 80)),
         rope=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=128, truncate=False, beta_fast=16.0)),
    case("x_llama_yarn_mscale", "llama", dict(r=2, lora_alpha=3, target_modules=ATTN, exclude_modules=["k_proj"]),
         rope=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=128, mscale=1.0, mscale_all_dim=0.5)),
    case("x_gemma2_plain", "gemma2", dict(r=4, lora_alpha=8, target_modules="all-linear"), head_dim=12, tie_word_embeddings=True,
         attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=30, sliding_window=5, attention_bias=True),
    case("x_gemma2_long", "gemma2", dict(r=4, lora_alpha=8, target_modules=ATTN), head_dim=16, tie_word_embeddings=True, rows=((300, 12), (150, 6)),
         attn_logit_softcapping=5.0, final_logit_softcapping=4.0, query_pre_attn_scalar=30, sliding_window=100, dtype="bf16"),
    case("x_gemma3_cap", "gemma3_text", dict(r=4, lora_alpha=8, target_modules=MLP), head_dim=12, tie_word_embeddings=True,
         final_logit_softcapping=5.0, query_pre_attn_scalar=7, sliding_window=6, attention_bias=True, num_key_value_heads=4,
         rope=dict(full_attention=dict(rope_type="default", rope_theta=700000.0), sliding_attention=dict(rope_type="default", rope_theta=3000.0))),
    case("x_smollm3_sliding", "smollm3", dict(r=4, lora_alpha=8, target_modules=ATTN + MLP, layers_to_transform=[1]), no_rope_layers=[0, 1, 0],
         use_sliding_window=True, sliding_window=11, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    case("x_granite_untied_bias", "granite", dict(r=4, lora_alpha=8, target_modules=ATTN + MLP), embedding_multiplier=5, attention_multiplier=0.2,
         residual_multiplier=0.3, logits_scaling=2, attention_bias=True, mlp_bias=True, style="v5"),
    case("x_olmo2_gqa_tied", "olmo2", dict(r=4, lora_alpha=8, target_modules="all-linear"), num_key_value_heads=2, tie_word_embeddings=True, style="v4",
         shard="60KB", attention_bias=True),
    case("x_phi3_mini_like", "phi3", dict(r=4, lora_alpha=8, target_modules="all-linear"), original_max_position_embeddings=30, max_position_embeddings=300,
         sliding_window=17, tie_word_embeddings=True, num_key_value_heads=1, style="v5",
         rope=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                   long_factor=[1.5, 2.0, 3.0, 5.0, 7.0, 9.0]), extra=dict(micro=[[(34, 4), (40, 12)], [(40, 2)]], packed=[(36, 6), (32, 3)], short_rows=[(28, 4)])),
    case("x_moe_sparse2", "qwen3_moe", dict(r=4, lora_alpha=8, target_modules="all-linear"), moe_intermediate_size=24, num_experts=5, num_experts_per_tok=3,
         norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[], output_router_logits=False, tie_word_embeddings=True, attention_bias=True,
         use_sliding_window=True, sliding_window=20, head_dim=20),
    # Experts as parameters, and what the names of their layers become.
    case("x_moe_experts", "qwen3_moe", dict(r=4, lora_alpha=8, target_modules=ATTN, use_rslora=True,
                                            target_parameters=["mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"],
                                            rank_pattern={"gate_up_proj": 3}, alpha_pattern={"layers.2.mlp.experts.gate_up_proj": 12}),
         moe_intermediate_size=32, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
         output_router_logits=False, head_dim=20, style="v5"),
    case("x_moe_names", "qwen3_moe", dict(r=2, lora_alpha=5, target_modules=["v_proj", *MLP]), moe_intermediate_size=24, num_experts=5,
         num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1], output_router_logits=False,
         tie_word_embeddings=True, head_dim=20, dtype="bf16"),
    # On the embedding. Where a head is tied to it, PEFT's merge moves both, so it is not here.
    case("x_llama_embedding", "llama", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", *ATTN])),
    case("x_gemma3_embedding", "gemma3_text", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", *MLP], rank_pattern=dict(embed_tokens=6)),
         head_dim=12, query_pre_attn_scalar=7, sliding_window=6,
         rope=dict(full_attention=dict(rope_type="default", rope_theta=700000.0), sliding_attention=dict(rope_type="default", rope_theta=3000.0))),
    case("x_mistral_long_window", "mistral", dict(r=32, lora_alpha=8, target_modules=ATTN + MLP, use_rslora=True), sliding_window=200, rows=((400, 100), (210, 3)),
         hidden_size=48, num_attention_heads=6, num_key_value_heads=3, dtype="bf16", shard="100KB"),
    # Adapters: DoRA, modules trained whole, the head of a tied base, patterns of ranks and alphas, rsLoRA, and several of them at once.
    case("x_lora_dora_qwen2", "qwen2", dict(r=4, lora_alpha=6, target_modules="all-linear", use_dora=True, use_rslora=True),
         use_sliding_window=False, tie_word_embeddings=True),
    case("x_lora_dora_gemma2", "gemma2", dict(r=3, lora_alpha=8, target_modules=ATTN, use_dora=True, layers_to_transform=[0, 2]),
         head_dim=12, tie_word_embeddings=True, query_pre_attn_scalar=30, sliding_window=7),
    case("x_lora_head_and_layers", "llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head", "model.layers.0.mlp.up_proj"],
                                                 layers_to_transform=[1])),
    case("x_lora_saved_head", "llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])),
    case("x_lora_saved_head_tied", "qwen2", dict(r=4, lora_alpha=8, target_modules=MLP, modules_to_save=["lm_head"]),
         use_sliding_window=False, tie_word_embeddings=True),
    case("x_lora_saved_embedding_dora", "gemma3_text", dict(r=4, lora_alpha=8, target_modules=ATTN, modules_to_save=["embed_tokens"], use_dora=True),
         head_dim=12, tie_word_embeddings=True, query_pre_attn_scalar=7, sliding_window=6, style="v5",
         rope=dict(full_attention=dict(rope_type="default", rope_theta=700000.0), sliding_attention=dict(rope_type="default", rope_theta=3000.0))),
    case("x_lora_tied_head", "qwen2", dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "lm_head"]),
         use_sliding_window=False, tie_word_embeddings=True),
    case("x_lora_tied_head_capped", "gemma2", dict(r=3, lora_alpha=5, target_modules=["o_proj", "lm_head"], use_dora=True),
         head_dim=12, tie_word_embeddings=True, query_pre_attn_scalar=30, sliding_window=7, final_logit_softcapping=6.0),
    case("x_lora_patterns", "mistral", dict(r=4, lora_alpha=8, target_modules=ATTN + MLP, use_rslora=True,
                                            rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 7, "up_proj": 1},
                                            alpha_pattern={"v_proj": 3, "layers.2.self_attn.o_proj": 12}), sliding_window=13),
    case("x_lora_patterns_dora", "granite", dict(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj"], use_dora=True,
                                                 rank_pattern={"v_proj": 5}, alpha_pattern={"gate_proj": 2}),
         embedding_multiplier=5, attention_multiplier=0.2, residual_multiplier=0.3, logits_scaling=2),
]

if __name__ == "__main__":
    from peft_options import load
    generate, out, names = load(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for one in CASES:
        if not names or one["name"] in names:
            generate.build_case(one, 99, out)
