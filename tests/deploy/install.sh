#!/usr/bin/env bash
# What `cmake --install` puts into a folder runs from there, without the build folder and LibTorch's cache.
# Usage: install.sh BUILD-FOLDER
set -euo pipefail
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for component in server client worker; do
  cmake --install "$build" --component $component --prefix "$work/a" >/dev/null
done
# Elsewhere than it was installed: nothing may hold an absolute path.
mv "$work/a" "$work/b"
bin=$work/b/bin
[ "$(cd "$bin" && echo *)" = "luthier luthier-trainer luthier-worker luthierd" ] || { ls "$bin" >&2; exit 1; }
"$bin/luthierd" --version
"$bin/luthier-worker" --version
"$bin/luthier" version
"$bin/luthier-trainer" version
for library in libtorch_cpu.so libc10.so libcudart.so.13 libcupti.so.13; do
  ldd "$bin/luthier-trainer" | grep -F "$library => $work/b/" >/dev/null ||
    { echo "$library does not come from the installed folder:" >&2; ldd "$bin/luthier-trainer" >&2; exit 1; }
done
