#!/usr/bin/env bash
# scripts/quickstart as a new user runs it, warm: it must tune the shipped model within three minutes, show base against tuned, and leave
# no process behind.
# Usage: quickstart.sh SOURCE-FOLDER
set -euo pipefail
cd "$1"
output=$(mktemp)
trap 'rm -f "$output"' EXIT
started=$SECONDS
scripts/quickstart >"$output" 2>&1 || { tail -n 40 "$output"; exit 1; }
seconds=$((SECONDS - started))

failed=false
expect() { # WHAT COMMAND …
  local what=$1
  shift
  "$@" >/dev/null || { echo "not so: $what"; failed=true; }
}
expect 'the comparison has a line of exact matches' grep -q '^exact match' "$output"
expect 'rows are shown before and after' grep -q 'Held-out rows, before and after' "$output"
expect 'it says what to type next' grep -q 'luthier generate --model classification-lora-' "$output"
expect "warm within 180 seconds, not $seconds" test "$seconds" -le 180
# Those of its own folder: other tests run programs of the same build meanwhile.
if left=$(pgrep -af "^$PWD/build/release/bin/luthier.*build/quickstart"); then
  echo "left running:"; echo "$left"
  failed=true
fi
if $failed; then cat "$output"; exit 1; fi
accuracy=$(sed -n 's/^exact match *[0-9.]* % *\([0-9.]*\) %.*/\1/p' "$output")
echo "quickstart: $seconds s, exact match $accuracy %"
# The accuracy that the README promises of its first command.
awk -v accuracy="$accuracy" 'BEGIN { exit !(accuracy >= 85) }' || { echo "exact match is below 85 %"; exit 1; }
