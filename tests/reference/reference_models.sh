#!/usr/bin/env bash
# The Llama cases agree with the stored numbers of transformers + PEFT; a damaged case is noticed.
set -euo pipefail
check=$1 models=$2
if [ ! -d "$models" ]; then
  echo "SKIPPED: $models is not there, so equality with transformers + PEFT was not checked" >&2
  exit 77
fi
"$check" models "$models/llama_plain_untied" "$models/llama3_rope_tied" "$models/llama_rank_pattern"

# The check can fail: the same case with another RoPE base must not pass.
broken=$(mktemp -d)
trap 'rm -rf "$broken"' EXIT
cp -rL "$models/llama3_rope_tied/." "$broken/"
chmod -R u+w "$broken"
sed -i 's/"rope_theta": 500000.0/"rope_theta": 400000.0/' "$broken/base/config.json"
if "$check" models "$broken" >"$broken/out"; then
  echo "reference-check passed a case whose rope_theta was changed" >&2
  exit 1
fi
# An unsupported family is refused by name.
if "$check" models "$models/gemma2_softcap" >"$broken/out"; then exit 1; fi
grep -q "gemma2" "$broken/out"
