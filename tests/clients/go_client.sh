#!/usr/bin/env bash
# clients/go: generated, built, and run against a real server, agent and trainer; the server is killed while it watches.
# Usage: go_client.sh SOURCE-FOLDER BIN-FOLDER      needs LUTHIER_GO and LUTHIER_GO_TOOLS, as scripts/test sets them
set -euo pipefail
if [ -z "${LUTHIER_GO:-}" ] || [ -z "${LUTHIER_GO_TOOLS:-}" ]; then
  echo "SKIPPED: LUTHIER_GO names no Go, or LUTHIER_GO_TOOLS no plugins of protoc; run scripts/test, or set them from scripts/tools" >&2
  exit 77
fi
source=$1 bin=$2
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; wait; rm -rf "$work"' EXIT
unset LUTHIER_SERVER LUTHIER_TOKEN LUTHIER_TOKEN_FILE

cp -r "$source/clients/go" "$work/go"
"$source/clients/go/generate" "$work/go"
# With the flags of scripts/tools, which has compiled gRPC already.
(cd "$work/go" && CGO_ENABLED=0 "$LUTHIER_GO" build -trimpath -mod=readonly -o "$work/example" .)

# start_server LISTEN: sets `server` and `address`.
start_server() {
  : >"$work/log"
  "$bin/luthierd" --listen "$1" --metrics-listen 127.0.0.1:0 --data-dir "$work/data" --with-local-worker 2>"$work/log" &
  server=$!
  until address=$(grep -om1 'serves on [^,]*' "$work/log"); do kill -0 "$server"; sleep 0.05; done
  address=${address#serves on }
}
start_server 127.0.0.1:0
"$bin/luthier" --server "$address" model import luthier-tiny "$source/examples/base/luthier-tiny"
"$bin/luthier" --server "$address" dataset upload intents "$source/examples/tasks/classification/train.jsonl"

"$work/example" --server "$address" --steps 20 --to "$work/adapter" >"$work/out" &
example=$!
until grep -qs started "$work/out"; do kill -0 "$example"; sleep 0.05; done
kill -9 "$server"; wait "$server" || true
start_server "$address"
wait "$example" || { cat "$work/out" "$work/log" >&2; exit 1; }

# Every event once, in order, and the same files that our own client downloads.
job=$(head -1 "$work/out")
tail -n +2 "$work/out" | awk '{print $1}' >"$work/seen"
seq "$("$bin/luthier" --server "$address" job get "$job" -o json | grep -o '"last_event_sequence": *"[0-9]*' | grep -o '[0-9]*$')" |
  diff - "$work/seen"
(cd "$work" && "$bin/luthier" --server "$address" model download "$job" --to ours)
diff -r "$work/ours" "$work/adapter"

# A sweep: the best of two, by the loss on the validation part, and the same files as ours.
for part in train validation; do
  for i in 1 2 3 4 5 6 7 8; do echo "{\"prompt\": \"say $((i % 2))\", \"completion\": \"yes\"}"; done >"$work/$part.jsonl"
done
"$bin/luthier" --server "$address" dataset upload pairs "$work/train.jsonl" "$work/validation.jsonl"
"$work/example" --server "$address" --dataset pairs --steps 8 --grid training.learning_rate=1e-9,1e-3 --to "$work/best" >"$work/out"
sweep=$(head -1 "$work/out") job=$(tail -1 "$work/out" | cut -d' ' -f1)
[ "$("$bin/luthier" --server "$address" sweep best "${sweep#sweeps/}" -o name)" = "$job" ]
grep -q 'training.learning_rate:0.001\|training.learning_rate:1e-3' "$work/out"
(cd "$work" && "$bin/luthier" --server "$address" model download "$job" --to best-of-ours)
diff -r "$work/best-of-ours" "$work/best"

# Ctrl-C ends the watch and leaves the job.
"$work/example" --server "$address" --steps 100000 --to "$work/none" >"$work/out" 2>&1 &
example=$!
until grep -qs started "$work/out"; do kill -0 "$example"; sleep 0.05; done
kill -INT "$example"
if wait "$example"; then exit 1; fi
job=$(head -1 "$work/out")
grep -q "$job goes on" "$work/out"
[[ $("$bin/luthier" --server "$address" job get "$job") == *RUNNING* ]]
"$bin/luthier" --server "$address" job cancel "$job" --wait

# Of a sweep it cancels all of it.
"$work/example" --server "$address" --steps 100000 --grid training.seed=1,2 --to "$work/none" >"$work/out" 2>&1 &
example=$!
until grep -qs RUNNING "$work/out"; do kill -0 "$example"; sleep 0.05; done
kill -INT "$example"
if wait "$example"; then exit 1; fi
sweep=$(head -1 "$work/out")
grep -q "$sweep was cancelled" "$work/out"
"$bin/luthier" --server "$address" sweep watch "${sweep#sweeps/}" >/dev/null 2>&1 || true
[[ $("$bin/luthier" --server "$address" sweep get "${sweep#sweeps/}") == *"2 CANCELLED"* ]]
