#!/usr/bin/env bash
# systemd's own tool checks the units.
# Usage: systemd_units.sh SOURCE-FOLDER BIN-FOLDER
set -euo pipefail
source_folder=$1 bin_folder=$2
if ! command -v systemd-analyze >/dev/null; then
  echo "SKIPPED: this machine has no systemd-analyze (Debian: systemd)" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$source_folder/deploy/systemd"
# It wants to see the programs, which are not installed here.
for unit in *.service; do sed "s|/usr/local/bin|$bin_folder|" "$unit" >"$work/$unit"; done
systemd-analyze verify "$work"/*.service 2>&1 | tee "$work/verify"
# For a key that it does not know it ends with 0, but says so.
[ ! -s "$work/verify" ]
