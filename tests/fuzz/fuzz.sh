#!/usr/bin/env bash
# Builds one fuzzer and runs it from seeds of tests/fixtures and examples. It fails if an input crashes the reader, keeps it busy
# for 10 s or makes it take 1 GB; the input is left in build/fuzz then: build/fuzz/bin/NAME_fuzzer FILE repeats it.
# Usage: fuzz.sh ROOT safetensors|rows|model_config|adapter_config [SECONDS]      default: 60
set -euo pipefail
cd "$1"
name=$2 seconds=${3:-60}
scripts/tools clang >/dev/null
scripts/build fuzz "${name}_fuzzer"

seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
case $name in
  safetensors) files=(tests/fixtures/models/*/adapter_init/adapter_model.safetensors) ;;
  model_config) files=(tests/fixtures/models/*/base/config.json) ;;
  adapter_config) files=(tests/fixtures/{models,adapters}/*/adapter_*/adapter_config.json) ;;
  rows) files=(examples/tasks/*/validation.jsonl tests/fixtures/parquet/{completion,text,tokens,hostile/good}.parquet) ;;
  *) echo "fuzz.sh: unknown fuzzer '$name'" >&2; exit 2 ;;
esac
for i in "${!files[@]}"; do head -c 8192 "${files[$i]}" >"$seeds/$i"; done

UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "build/fuzz/bin/${name}_fuzzer" -max_total_time="$seconds" -timeout=10 \
  -rss_limit_mb=1024 -max_len=16384 -artifact_prefix="build/fuzz/$name-" -print_final_stats=1 -verbosity=0 "$seeds"
