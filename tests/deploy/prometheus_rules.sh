#!/usr/bin/env bash
# Prometheus' own tool checks and tests the rules.
# Usage: prometheus_rules.sh SOURCE-FOLDER      needs LUTHIER_PROMETHEUS, as scripts/test sets it
set -euo pipefail
if [ -z "${LUTHIER_PROMETHEUS:-}" ]; then
  echo "SKIPPED: LUTHIER_PROMETHEUS names no Prometheus; run scripts/test, or set it to \$(scripts/tools prometheus)" >&2
  exit 77
fi
promtool=$(dirname "$LUTHIER_PROMETHEUS")/promtool
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$1/deploy/prometheus"
"$promtool" check config prometheus.yml
"$promtool" check rules rules/*.yml
"$promtool" test rules tests/*.yml
# The tests would notice: an alert that can never fire must not pass.
cp -r . "$work/prometheus"
sed -i 's/luthier_agent_connected == 0/luthier_agent_connected == 2/' "$work/prometheus/rules/alerts.yml"
if (cd "$work/prometheus" && "$promtool" test rules tests/*.yml >/dev/null 2>&1); then
  echo "the tests of the rules pass with an alert that cannot fire" >&2
  exit 1
fi
