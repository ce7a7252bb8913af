# Sourced by the scripts beside it: where things are, and how to speak.
# shellcheck shell=bash disable=SC2034
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Shared by all clones of a user, so that the second clone does not download 530 MB again.
CACHE=${LUTHIER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/luthier}
TORCH_HOME=$CACHE/libtorch-2.11.0
TORCH_DIR=${LUTHIER_TORCH_DIR:-$TORCH_HOME/torch}

say() { printf '==> %s\n' "$*" >&2; }

# fail WHAT REMEDY
fail() {
  printf 'error: %s\n%s\n' "$1" "${2:-}" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "installing packages needs root" "Run this as root, install sudo, or install by hand what 'scripts/deps --check' lists."
  fi
}
