#!/usr/bin/env bash
# clients/python: the wheel is built and installed into a folder of the test's own, its types are checked, its tests run.
# Usage: python_client.sh SOURCE-FOLDER BIN-FOLDER      needs LUTHIER_CLIENT_PYTHON, as scripts/test sets it
set -euo pipefail
if [ -z "${LUTHIER_CLIENT_PYTHON:-}" ]; then
  echo "SKIPPED: LUTHIER_CLIENT_PYTHON names no Python with the tools of clients/python; run scripts/test, or scripts/client-python" >&2
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$1/clients/python"
"$LUTHIER_CLIENT_PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
"$LUTHIER_CLIENT_PYTHON" -m pip install --quiet --no-deps --target "$work/site" "$work"/luthier-*.whl
export LUTHIER_BIN=$2 PYTHONPATH=$work/site PYTHONDONTWRITEBYTECODE=1
unset LUTHIER_SERVER LUTHIER_TOKEN LUTHIER_TOKEN_FILE LUTHIER_TLS_CA LUTHIER_TLS_CERT LUTHIER_TLS_KEY
"$LUTHIER_CLIENT_PYTHON" -m mypy --cache-dir "$work/mypy"
# A channel, stream or file that is left open is a warning, and here an error.
"$LUTHIER_CLIENT_PYTHON" -X dev -m pytest -q -W error -p no:cacheprovider --durations=3 tests
