#!/usr/bin/env bash
# What luthier-trainer writes loads in real transformers + PEFT and computes the same logits: a full model, an adapter with each
# option, and the adapter merged; in the manner of Llama, of Qwen (biases, a head of its own) and of Gemma (soft-caps, windows).
set -euo pipefail
trainer=$1 check=$2 fixture=$3 here=$(dirname "$0")
python=${LUTHIER_REFERENCE_PYTHON:-}
if [ -z "$python" ]; then
  echo "SKIPPED: LUTHIER_REFERENCE_PYTHON names no Python with transformers + PEFT; run scripts/test --with-reference" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tokens=1,120,114,117,104,13,40,50,60,2,13,1,100,200,250

train() { # FOLDER SPEC
  printf '%s' "$2" >"$1.json"
  "$trainer" run --spec "$1.json" --out "$1" >"$1.log" </dev/null || { tail -1 "$1.log" >&2; exit 1; }
}

# family NAME LORA-BLOCK
family() {
  local folder=$work/$1
  "$fixture" "$folder" "$1"
  local data="\"dataset\": {\"train\": \"$folder/train.jsonl\"}"
  train "$folder/full" "{\"protocol\": 1, \"base_model\": \"$folder/empty\", \"init\": \"random\", $data, \"tuning\": \"full\",
                       \"training\": {\"epochs\": 3, \"loss_on\": \"all\"}}"
  train "$folder/lora" "{\"protocol\": 1, \"base_model\": \"$folder/full/model\", $data, \"lora\": $2, \"training\": {\"epochs\": 6}}"
  "$trainer" export --base "$folder/full/model" --adapter "$folder/lora/adapter" --format merged --out "$folder/merged"
  "$check" logits --base "$folder/full/model" --tokens $tokens --out "$folder/full.safetensors"
  "$check" logits --base "$folder/full/model" --adapter "$folder/lora/adapter" --tokens $tokens --out "$folder/lora.safetensors"
  "$python" "$here/peft_loads_our_files.py" "$1" "$folder/full/model" "$folder/lora/adapter" "$folder/merged" $tokens \
      "$folder/full.safetensors" "$folder/lora.safetensors"
}
family llama '{"rank": 4, "dora": true, "modules_to_save": ["embed_tokens"]}'
family qwen2 '{"rank": 4, "rslora": true, "plus_ratio": 4, "rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}'
family gemma2 '{"rank": 4, "alpha": 8, "layers": [1]}'
