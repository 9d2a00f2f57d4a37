#!/usr/bin/env bash
# All checks: environment, format, types, tests (real Ray, vLLM and DeepSpeed on the CPU).
# bash tests/run.sh [pytest arguments]     e.g. bash tests/run.sh tests/test_config.py -k unknown
# Tests marked long (many kills, whole runs that others cover in part, TRL step by step, a real judge) run with -m long, or
# all with -m "". Run those of what you change.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/environment.sh"
cd "$ROOT"

echo "psyco_ray tests: linter, types, then pytest; all but those marked long; under 25 minutes on 2 cores once installed"
prepare_environment cpu,dev
.venv/bin/ruff format --check --quiet . || fail "some files are not formatted; run .venv/bin/ruff format ."
.venv/bin/ruff check --quiet .
.venv/bin/lint-imports --no-cache >"$VENV/imports.log" || { tail -n +15 "$VENV/imports.log"; fail "an import crosses the layers of pyproject.toml"; }
.venv/bin/mypy --no-error-summary
.venv/bin/python -m pytest "$@"
