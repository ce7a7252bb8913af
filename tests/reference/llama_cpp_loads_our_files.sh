#!/usr/bin/env bash
# What luthier-trainer exports loads in llama.cpp, without edits, and computes there what was trained: GGUF adapters and merged models
# of every family; an adapter of the shipped base; and a base with a vocabulary that llama.cpp knows, tuned from nothing.
# Usage: llama_cpp_loads_our_files.sh LUTHIER-TRAINER SOURCE-FOLDER
set -euo pipefail
trainer=$1 source=$2 check=$2/tests/reference/llama_cpp_loads_our_files.py
llama_cpp=${LUTHIER_LLAMA_CPP:-}
if [ -z "$llama_cpp" ]; then
  echo "SKIPPED: LUTHIER_LLAMA_CPP names no folder that scripts/llama-cpp made; run scripts/test --with-serving --long" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python() { "$llama_cpp/bin/python" "$check" "$llama_cpp" "$trainer" "$@"; }
train() { # FOLDER SPEC
  printf '%s' "$2" >"$1.json"
  "$trainer" run --spec "$1.json" --out "$1" >"$1.log" </dev/null || { tail -1 "$1.log" >&2; exit 1; }
}
# tuned FOLDER [FIELD-OF-SPEC]: an adapter of FOLDER/base, compared on rows that it learnt.
tuned() {
  train "$1/run" "{\"protocol\": 1, \"base_model\": \"$1/base\", ${2:-} \"dataset\": {\"train\": \"$work/second.jsonl\"},
                   \"training\": {\"epochs\": 20, \"learning_rate\": 0.01}}"
  mv "$1/run/adapter" "$1/adapter"
  head -5 "$work/second.jsonl" >"$1/rows.jsonl"
  python tuned "$1"
}
head -40 "$source/examples/tasks/classification/train.jsonl" >"$work/first.jsonl"
sed -n 41,80p "$source/examples/tasks/classification/train.jsonl" >"$work/second.jsonl"
mkdir "$work"/{families,shipped,known}

python families "$work/families"

echo "The shipped base:"
cp -r "$source/examples/base/luthier-tiny" "$work/shipped/base"
tuned "$work/shipped"

echo "A base with the vocabulary of GPT-2:"
python vocabulary "$work/known"
train "$work/known/full" "{\"protocol\": 1, \"base_model\": \"$work/known/empty\", \"init\": \"random\", \"tuning\": \"full\",
                           \"dataset\": {\"train\": \"$work/first.jsonl\"},
                           \"training\": {\"epochs\": 20, \"learning_rate\": 0.01, \"loss_on\": \"all\"}}"
mv "$work/known/full/model" "$work/known/base"
touch "$work/known/base/known-vocabulary"
tuned "$work/known" "\"chat_template\": \"$work/known/own.jinja\","
