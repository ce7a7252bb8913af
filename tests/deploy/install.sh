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

# The man page, without a complaint of the formatter, and the completions where shells look for them.
share=$work/b/share
if command -v man >/dev/null; then
  page=$(MANWIDTH=80 man --warnings -E UTF-8 -l "$share/man/man1/luthier.1" 2>"$work/warnings" | col -b)
  [ ! -s "$work/warnings" ] || { cat "$work/warnings" >&2; exit 1; }
  grep -q -- '--lora.rank' <<<"$page" && grep -q 'EXIT STATUS' <<<"$page"
fi
! command -v mandoc >/dev/null || mandoc -T lint -W error "$share/man/man1/luthier.1"
[ "$(bash -c 'PATH=$1:$PATH; source "$2"; COMP_LINE="luthier queue sh"; COMP_POINT=${#COMP_LINE}
              COMP_WORDS=(luthier queue sh); COMP_CWORD=2; _luthier; echo "${COMPREPLY[@]}"' \
  bash "$bin" "$share/bash-completion/completions/luthier")" = show ]
if command -v zsh >/dev/null; then zsh -n "$share/zsh/site-functions/_luthier"; fi
if command -v fish >/dev/null; then
  PATH=$bin:$PATH fish -c "source '$share/fish/vendor_completions.d/luthier.fish'; complete -C 'luthier queue sh'" | grep -x show
fi
