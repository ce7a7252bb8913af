#!/usr/bin/env bash
# What luthier-trainer writes loads in real transformers + PEFT and computes the same logits: an adapter, and a full model.
set -euo pipefail
trainer=$1 check=$2 fixture=$3 here=$(dirname "$0")
python=${LUTHIER_REFERENCE_PYTHON:-}
if [ -z "$python" ]; then
  echo "SKIPPED: LUTHIER_REFERENCE_PYTHON names no Python with transformers + PEFT; run scripts/test --with-reference" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$fixture" "$work"

train() { # NAME SPEC
  printf '%s' "$2" >"$work/$1.json"
  "$trainer" run --spec "$work/$1.json" --out "$work/$1" >"$work/$1.log" </dev/null || { tail -1 "$work/$1.log" >&2; exit 1; }
}
data="\"dataset\": {\"train\": \"$work/train.jsonl\"}"
train full "{\"protocol\": 1, \"base_model\": \"$work/empty\", \"init\": \"random\", $data, \"tuning\": \"full\",
             \"training\": {\"epochs\": 3, \"loss_on\": \"all\"}}"
train lora "{\"protocol\": 1, \"base_model\": \"$work/full/model\", $data, \"lora\": {\"rank\": 4}, \"training\": {\"epochs\": 6}}"

tokens=1,120,114,117,104,13,40,50,60,2,13,1,100,200,250
"$check" logits --base "$work/full/model" --tokens $tokens --out "$work/full.safetensors"
"$check" logits --base "$work/full/model" --adapter "$work/lora/adapter" --tokens $tokens --out "$work/lora.safetensors"
"$python" "$here/peft_loads_our_files.py" "$work/full/model" "$work/lora/adapter" $tokens "$work/full.safetensors" "$work/lora.safetensors"
