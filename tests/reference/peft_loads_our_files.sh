#!/usr/bin/env bash
# What luthier-trainer writes loads in real transformers + PEFT and computes the same logits: a full model, an adapter with each
# option, and the adapter merged; in the manner of Llama, of Qwen (biases, a head of its own), of Gemma (soft-caps, windows) and of
# Qwen3-MoE (experts).
set -euo pipefail
trainer=$1 check=$2 fixture=$3 here=$(dirname "$0")
python=${LUTHIER_REFERENCE_PYTHON:-}
if [ -z "$python" ]; then
  echo "SKIPPED: LUTHIER_REFERENCE_PYTHON names no Python with transformers + PEFT; run scripts/test --with-reference" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What ModelConfigTest expects of a config.json that leaves fields out is what this transformers takes.
"$python" "$here/config_defaults.py" 2>"$work/config_defaults.log" | diff "$here/../fixtures/config_defaults.json" - ||
  { tail -3 "$work/config_defaults.log" >&2; exit 1; }
tokens=1,120,114,117,104,13,40,50,60,2,13,1,100,200,250

train() { # FOLDER SPEC
  printf '%s' "$2" >"$1.json"
  "$trainer" run --spec "$1.json" --out "$1" >"$1.log" </dev/null || { tail -1 "$1.log" >&2; exit 1; }
}

# family NAME: a full model in the manner of the family.
family() {
  folder=$work/$1 adapters=()
  "$fixture" "$folder" "$1"
  data="\"dataset\": {\"train\": \"$folder/train.jsonl\"}"
  train "$folder/full" "{\"protocol\": 1, \"base_model\": \"$folder/empty\", \"init\": \"random\", $data, \"tuning\": \"full\",
                       \"training\": {\"epochs\": 3, \"loss_on\": \"all\"}}"
  "$check" logits --base "$folder/full/model" --tokens $tokens --out "$folder/full.safetensors"
}
# adapter NAME LORA-BLOCK: an adapter of that model, and the two merged.
adapter() {
  train "$folder/$1" "{\"protocol\": 1, \"base_model\": \"$folder/full/model\", $data, \"lora\": $2, \"training\": {\"epochs\": 6}}"
  "$trainer" export --base "$folder/full/model" --adapter "$folder/$1/adapter" --format merged --out "$folder/$1/merged"
  "$check" logits --base "$folder/full/model" --adapter "$folder/$1/adapter" --tokens $tokens --out "$folder/$1/logits.safetensors"
  adapters+=("$1")
}
compare() { "$python" "$here/peft_loads_our_files.py" "$folder" $tokens "${adapters[@]}"; }

# The tiny Llama and the tiny Gemma tie their head to the embedding; the tiny Qwen does not.
family llama
adapter dora_saved_embedding '{"rank": 4, "dora": true, "modules_to_save": ["embed_tokens"]}'
adapter tied_head '{"rank": 4, "target_modules": ["q_proj", "lm_head"]}'
compare
family qwen2
adapter rslora_head '{"rank": 4, "rslora": true, "plus_ratio": 4, "rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}'
adapter dora_saved_head '{"rank": 4, "dora": true, "modules_to_save": ["lm_head"]}'
adapter saved_embedding '{"rank": 4, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}'
adapter dora_embedding '{"rank": 4, "dora": true, "target_modules": ["embed_tokens", "v_proj"]}'
compare
family gemma2
adapter one_layer '{"rank": 4, "alpha": 8, "layers": [1]}'
adapter dora_saved_head '{"rank": 4, "dora": true, "target_modules": ["o_proj", "up_proj"], "modules_to_save": ["lm_head"]}'
adapter tied_embedding '{"rank": 4, "alpha": 8, "target_modules": ["embed_tokens", "q_proj"]}'
adapter dora_tied_head '{"rank": 4, "dora": true, "target_modules": ["k_proj", "lm_head"]}'
compare
# Its second layer has no experts.
family qwen3_moe
adapter experts '{"rank": 2, "rank_pattern": {"gate_up_proj": 3}, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}'
adapter router '{"rank": 4, "rslora": true, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.gate.weight", "mlp.down_proj.weight"]}'
adapter attention '{"rank": 4}'
compare
