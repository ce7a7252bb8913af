#!/usr/bin/env bash
# Builds the images of deploy/docker on a bare Debian and runs a job inside them, from the base model to the download, once. Takes buildah,
# which needs no Docker engine, and root. Half an hour to hours, and 10 GB of disk.
# Usage: images.sh SOURCE-FOLDER [TARGET …]      default: server worker worker-gpu
#   The caches of this machine (ccache, LibTorch, crates) serve the build as they serve scripts/build.
#   LUTHIER_IMAGES_FOLDER=FOLDER keeps what was built there, for the next try.
set -euo pipefail
cd "$1"; shift
source scripts/common.sh
source scripts/bare-debian.sh
[ $# -gt 0 ] || set -- server worker worker-gpu
[ "$(id -u)" -eq 0 ] || { echo "SKIPPED: building images without Docker needs root" >&2; exit 77; }
need_root_and debootstrap buildah

work=$(mktemp -d "${TMPDIR:-/var/tmp}/luthier-images-XXXXXX")
storage=${LUTHIER_IMAGES_FOLDER:-$work}
b() { buildah --root "$storage/storage" --runroot "$storage/run" --storage-driver "${LUTHIER_BUILDAH_DRIVER:-overlay}" "$@"; }
server='' worker=''
# The program that a background job runs in a container: below buildah's own processes, which hand no signal on.
program_of() { # PID
  local child
  child=$(pgrep -P "$1") || { echo "$1"; return; }
  program_of "$child"
}
# As `docker stop`: SIGTERM to the program itself. Returns its exit status.
stop() { # PID
  kill "$(program_of "$1")" && wait "$1"
}
clean_up() {
  local status=$?
  [ -z "$worker" ] || stop "$worker" || true
  [ -z "$server" ] || stop "$server" || true
  b umount --all >/dev/null 2>&1 || true
  b rm --all >/dev/null 2>&1 || true
  umount -l "$storage/storage/overlay" 2>/dev/null || true
  remove_bare_debian "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

readonly BASE=docker.io/library/debian:bookworm-slim
if ! b inspect --type image "$BASE" >/dev/null 2>&1; then
  say "importing a bare bookworm as the base image"
  mkdir "$work/debian"
  make_bare_debian "$work/debian"
  container=$(b from scratch)
  tar -C "$work/debian" --numeric-owner -c . | tar -C "$(b mount "$container")" --numeric-owner -x
  b commit --quiet "$container" "$BASE" >/dev/null
  b rm "$container" >/dev/null
fi

git clone --quiet . "$work/context"
mkdir -p "$CACHE" "$HOME/.cache/ccache" "$HOME/.cargo/registry"
for target in "$@"; do
  say "building the image $target"
  b bud --isolation=chroot --network=host --pull-never --layers --format docker --target "$target" --tag "luthier/$target" \
    --volume "$CACHE:/root/.cache/luthier" --volume "$HOME/.cache/ccache:/root/.cache/ccache" \
    --volume "$HOME/.cargo/registry:/root/.cargo/registry" \
    --file "$work/context/deploy/docker/Dockerfile" "$work/context" >"$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log" >&2; fail "the image $target could not be built" "Read the end of its log above."; }
  mount_point=$(b mount "$(b from --pull-never "luthier/$target")")
  say "luthier/$target: $(du -sm "$mount_point" | cut -f 1) MB"
  # Nothing in the images may need a library that they lack; only the driver's come from the host.
  for program in "$mount_point"/usr/local/bin/luthier*; do
    missing=$(chroot "$mount_point" ldd "/usr/local/bin/$(basename "$program")" | grep 'not found' || true)
    [ -z "$missing" ] || fail "$target: $(basename "$program") lacks: $missing" "Add it to deploy/docker/Dockerfile."
  done
done
if [[ " $* " == *" worker-gpu "* ]]; then
  gpu=$(b mount "$(b from --pull-never luthier/worker-gpu)")
  missing=$(chroot "$gpu" ldd /usr/local/lib/luthier/torch/lib/libtorch_cuda.so | grep 'not found' | grep -v -E 'libcuda\.so\.1|libnvidia-ml' || true)
  [ -z "$missing" ] || fail "worker-gpu: libtorch_cuda.so lacks: $missing" "Add the wheel to scripts/deps."
fi
if [[ " $* " != *" server "* || " $* " != *" worker "* ]]; then say "no job is run: that takes server and worker"; exit 0; fi

# run TARGET PORTS… -- COMMAND: in a container of its own, as the image's user, with the data folders and /share of this machine.
server_port=$(( 20000 + RANDOM % 10000 )) metrics_port=$(( 30000 + RANDOM % 1000 )) worker_port=$(( 31000 + RANDOM % 1000 ))
for folder in server-data worker-data share; do install -d -o 10001 -g 10001 "$work/$folder"; done
new_container() { # TARGET: prints its name
  local name
  name=$(b from --pull-never "luthier/$1")
  b config --env LUTHIER_SERVER=127.0.0.1:$server_port --env LUTHIER_LISTEN=127.0.0.1:$server_port \
    --env LUTHIER_METRICS_LISTEN=127.0.0.1:$metrics_port --env LUTHIER_WORKER_METRICS_LISTEN=127.0.0.1:$worker_port "$name" >&2
  echo "$name"
}
in_container() { # NAME COMMAND …
  local name=$1
  shift
  b run --isolation=chroot --network=host --volume "$work/server-data:/var/lib/luthier" \
    --volume "$work/worker-data:/var/lib/luthier-worker" --volume "$work/share:/share" "$name" -- "$@"
}
wait_until() { # WHAT COMMAND …
  local what=$1 tries=0
  shift
  until "$@" >"$work/last-check" 2>&1; do
    [ $((tries += 1)) -lt 120 ] || { cat "$work/last-check" >&2; fail "$what: not within two minutes" "The log is above."; }
    sleep 1
  done
}
health_of() { # TARGET NAME: the command that the image itself gives as its health check
  local -a check
  mapfile -t check < <(b inspect --type image "luthier/$1" |
    python3 -c 'import json, sys; print("\n".join(json.load(sys.stdin)["Docker"]["config"]["Healthcheck"]["Test"][1:]))')
  in_container "$2" "${check[@]}"
}

server_container=$(new_container server) worker_container=$(new_container worker)
for each in "$server_container" "$worker_container"; do
  [ "$(in_container "$each" id -u)" = 10001 ] || fail "the image does not run as user 10001" "Look at USER in deploy/docker/Dockerfile."
done
touch "$work/started"
in_container "$server_container" luthierd 2>"$work/luthierd.log" & server=$!
wait_until "the server's health check" health_of server "$server_container"
in_container "$worker_container" luthier-worker 2>"$work/worker.log" & worker=$!
wait_until "the worker's health check" health_of worker "$worker_container"

say "a job: base model, dataset, LoRA, download"
luthier() { in_container "$server_container" luthier "$@"; }
python3 - "$work/share" <<'P'
import json, pathlib, sys
share = pathlib.Path(sys.argv[1])
rows = [{"prompt": f"row {i}", "completion": "even" if i % 2 == 0 else "odd"} for i in range(24)]
(share / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
spec = {"protocol": 1, "base_model": "/share/empty", "init": "random", "tuning": "full", "dataset": {"train": "/share/train.jsonl"},
        "training": {"max_steps": 1, "loss_on": "all"}}
(share / "base.json").write_text(json.dumps(spec))
job = {"base_model": "base", "dataset": "rows", "task": "classification", "training": {"max_steps": 4, "epochs": 100}}
(share / "job.json").write_text(json.dumps(job))
P
# The shipped model's shape and tokenizer, with random weights: this test is about the images, not about what is learned.
cp -r examples/base/luthier-tiny "$work/share/empty" && rm -f "$work/share/empty"/*.safetensors
chown -R 10001:10001 "$work/share"
in_container "$worker_container" luthier-trainer run --spec /share/base.json --out /share/made >"$work/made.log" ||
  { tail -n 3 "$work/made.log" >&2; exit 1; }
luthier model import base /share/made/model
luthier dataset upload rows /share/train.jsonl
luthier job submit -f /share/job.json --id images --wait --timeout 30m
luthier model download images --to /share/adapter
[ -s "$work/share/adapter/adapter_model.safetensors" ] || { ls -R "$work/share/adapter" >&2; fail "there is no adapter" ""; }

say "a clean end, and a root that nothing was written to"
stop "$worker" || fail "the worker ended with $?" "Its log: $(tail -n 3 "$work/worker.log")"; worker=''
stop "$server" || fail "the server ended with $?" "Its log: $(tail -n 3 "$work/luthierd.log")"; server=''
for each in "$server_container" "$worker_container"; do
  written=$(find "$(b mount "$each")" -xdev -newer "$work/started" -type f -not -path '*/tmp/*' -not -path '*/var/lib/luthier*' | head)
  [ -z "$written" ] || fail "written into the image's root: $written" "It must run with a read-only root."
done
say "the images work"
