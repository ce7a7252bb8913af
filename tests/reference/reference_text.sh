#!/usr/bin/env bash
# Tokenizers, chat templates and masks agree with what transformers wrote, but for what docs/text.md names; and a record that
# says something else is noticed.
# Usage: reference_text.sh REFERENCE-CHECK FOLDER SOURCE-FOLDER
set -euo pipefail
check=$1 texts=$2 source=$3
if [ ! -d "$texts" ]; then
  echo "SKIPPED: $texts is not there, so tokenizers and templates were compared with the committed fixtures only" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! "$check" text "$texts" >"$work/out"; then
  grep '"ok":false' "$work/out" | grep -v '"known"' >&2
  exit 1
fi
records=$(cat "$texts"/expected/*.jsonl "$texts"/expected/encode/*.jsonl | wc -l)
known=$(grep -c '"known"' "$work/out" || true)
echo "$records records, $known differ as docs/text.md says"
[ "$(wc -l <"$work/out")" = "$records" ] || { echo "not every record was compared" >&2; exit 1; }
grep '"known"' "$work/out" | sed -E 's/.*"check":"probe\/([^"]*)".*/\1/' | while read -r probe; do
  grep -q "\`$probe\`" "$source/docs/text.md" || { echo "docs/text.md does not name the probe $probe" >&2; exit 1; }
done

# must_fail FILE SED-EXPRESSION: the check notices the folder with this change in a file of expected/.
must_fail() {
  rm -rf "$work/texts"
  mkdir -p "$work/texts"
  cp -rL "$texts/expected" "$work/texts/expected"
  chmod -R u+w "$work/texts"
  for each in "$texts"/*; do [ -e "$work/texts/${each##*/}" ] || ln -s "$each" "$work/texts/"; done
  sed -i "$2" "$work/texts/expected/$1"
  if cmp -s "$texts/expected/$1" "$work/texts/expected/$1"; then echo "$1: '$2' changes nothing" >&2; exit 1; fi
  if "$check" text "$work/texts" >/dev/null; then echo "$1 with '$2' was not noticed" >&2; exit 1; fi
}
must_fail render.jsonl '1s/"text": "/"text": " /'
must_fail masks.jsonl '0,/"mask_runs": \[\[/s//"mask_runs": [[1/'
must_fail encode/qwen3.jsonl '3s/"ids": \[/"ids": [7, /'
