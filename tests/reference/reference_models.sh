#!/usr/bin/env bash
# Every case in a folder agrees with the stored numbers of transformers + PEFT, and a case whose config.json was changed in what
# its family is about does not.
# Usage: reference_models.sh REFERENCE-CHECK FOLDER
set -euo pipefail
check=$1 models=$2
if [ ! -d "$models" ]; then
  echo "SKIPPED: $models is not there, so equality with transformers + PEFT was checked on the committed fixtures only" >&2
  exit 77
fi
cases=()
for golden in "$models"/*/golden.json; do cases+=("$(dirname "$golden")"); done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! "$check" models "${cases[@]}" >"$work/out"; then
  grep '"ok":false' "$work/out" >&2
  exit 1
fi
echo "${#cases[@]} cases, $(wc -l <"$work/out") checks"

# The same by the operations that GPUs use, so that they are checked where there is none.
if ! "$check" models --composed "${cases[@]}" >"$work/out"; then
  grep '"ok":false' "$work/out" >&2
  exit 1
fi

# must_fail CASE SED-EXPRESSION: the check notices the case with this change in its config.json.
must_fail() {
  rm -rf "$work/case"
  cp -rL "$models/$1" "$work/case"
  chmod -R u+w "$work/case"
  sed -i "$2" "$work/case/base/config.json"
  if cmp -s "$models/$1/base/config.json" "$work/case/base/config.json"; then
    echo "$1: '$2' changes nothing" >&2
    exit 1
  fi
  if "$check" models "$work/case" >"$work/out"; then
    echo "reference-check passed $1 with '$2'" >&2
    exit 1
  fi
}
# must_name WORD CASE FILE SED-EXPRESSION: the check says by name what the case lacks with this change in its file.
must_name() {
  rm -rf "$work/case"
  cp -rL "$models/$2" "$work/case"
  chmod -R u+w "$work/case"
  sed -i "$4" "$work/case/$3"
  if "$check" models "$work/case" >"$work/out" 2>&1 || ! grep -q "\"ok\":false.*$1" "$work/out"; then
    echo "reference-check does not say that $2 lacks $1: $(tail -1 "$work/out")" >&2
    exit 1
  fi
}
if [ -d "$models/llama" ]; then # the committed fixtures
  must_name packed llama golden.json 's/"packed": {/"unpacked": {/'
  must_name batch.labels llama golden.safetensors 's/"batch.labels"/"batch.babels"/'
  must_fail llama 's/"rope_type": "llama3"/"rope_type": "linear"/'
  must_fail mistral 's/"sliding_window": 5/"sliding_window": 6/'
  must_fail gemma2 's/"final_logit_softcapping": 6.0/"final_logit_softcapping": 600.0/'
  must_fail smollm3 '/"no_rope_layers": \[/,/\]/d'
elif [ -d "$models/llama_dora" ]; then
  must_fail llama_dora 's/"rope_theta": 10000.0/"rope_theta": 100.0/'
else
  must_fail llama3_rope_tied 's/"rope_theta": 500000.0/"rope_theta": 400000.0/'
  must_fail mistral_sliding 's/"sliding_window": 12/"sliding_window": 13/'
  must_fail gemma2_softcap 's/"attn_logit_softcapping": 4.0/"attn_logit_softcapping": 400.0/'
  must_fail gemma3_text 's/"rope_local_base_freq": 10000.0/"rope_local_base_freq": 1000000.0/'
  must_fail phi3_longrope 's/"original_max_position_embeddings": 24/"original_max_position_embeddings": 240/'
  must_fail granite_multipliers 's/"residual_multiplier": 0.45/"residual_multiplier": 0.5/'
  must_fail qwen3_moe 's/"norm_topk_prob": true/"norm_topk_prob": false/'
fi
