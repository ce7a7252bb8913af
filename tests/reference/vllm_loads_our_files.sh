#!/usr/bin/env bash
# What luthier-trainer writes loads in a real vLLM, on the CPU, and computes the same (vllm_loads_our_files.py).
# Usage: vllm_loads_our_files.sh PROGRAMS [CASE…]; without a case all of them, which takes some 15 minutes.
set -euo pipefail
programs=$1 here=$(dirname "$0")
shift
python=${LUTHIER_VLLM_PYTHON:-}
if [ -z "$python" ]; then
  echo "SKIPPED: LUTHIER_VLLM_PYTHON names no Python with vLLM; run scripts/test --with-serving --long" >&2
  exit 77
fi
cases=("$@")
[ $# -gt 0 ] || cases=(shipped llama llama_tied qwen2 qwen3 mistral gemma2 gemma3_text phi3 smollm3 granite olmo2 qwen3_moe)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
# step STEP CASE: each in a process of its own, since one of vLLM holds its engine until it ends.
step() {
  if ! OMP_NUM_THREADS=1 timeout 1800 "$python" "$here/vllm_loads_our_files.py" "$1" "$programs" "$work" "$2" >"$work/out" 2>"$work/log"; then
    failed=1
    echo "$2: $1 failed" >&2
    tail -40 "$work/log" >&2
  fi
  grep '^  ' "$work/out" || true
}
for case in "${cases[@]}"; do
  step make "$case"
  [ "$case" = qwen3_moe ] || step load "$case"  # on a CPU vLLM takes no adapters for a model with experts, see docs/vllm.md
  step serve "$case"
  [ "$case" != qwen3_moe ] || step experts "$case"
done
exit $failed
