#!/usr/bin/env bash
# All checks: environment, format, linter, import layers, types, tests (real Ray, vLLM and DeepSpeed on the CPU).
# bash tests/run.sh [pytest arguments]     e.g. bash tests/run.sh tests/config -k unknown
# Tests marked long take minutes each (repeated kills, whole runs, comparisons with TRL, a real judge) and run with -m long,
# or together with all others with -m "". Run the long tests of what you change.
# Without arguments two processes share the test files, each with its own Ray: a test waits half of its time for others.
# One of them reads the allowed versions of vLLM, DeepSpeed and Ray from their wheels, once, into ~/.cache/psyco-ray/wheels
# (PSYCO_RAY_WHEELS names another directory; 400 MB are downloaded at a time, 170 MB stay).
# Report pages and the desk are tested in Chromium, which is installed where it is missing and apt-get may; elsewhere these tests
# skip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/environment.sh"
cd "$ROOT"

echo "psyco_ray tests: linter, import layers, types, then pytest without the tests marked long; under 20 minutes on 2 cores once installed"
prepare_environment dev
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    { [ "$(id -u)" = 0 ] && timeout 60 apt-get update -q && timeout 180 apt-get install -qy chromium; } >"$VENV/chromium.log" 2>&1 \
        || echo "no Chromium: the tests of pages in a browser are skipped; install it with apt-get install chromium"
fi
SECONDS=0
trap 'echo "psyco_ray tests took $((SECONDS / 60)) min $((SECONDS % 60)) s"' EXIT
.venv/bin/ruff format --check --quiet . || fail "some files are not formatted; run .venv/bin/ruff format ."
.venv/bin/ruff check --quiet .
.venv/bin/lint-imports --no-cache >"$VENV/imports.log" || { tail -n +15 "$VENV/imports.log"; fail "an import breaks the layers in pyproject.toml"; }
.venv/bin/mypy --no-error-summary >"$VENV/types.log" 2>&1 & # half a minute where it has no cache
types=$!
if [ $# -eq 0 ]; then
    export OMP_NUM_THREADS=1 # two processes with two threads each would wait for each other
    set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder
fi
failed=0
.venv/bin/python -m pytest "$@" || failed=$?
wait "$types" || { cat "$VENV/types.log"; fail "mypy found wrong types"; }
exit "$failed"
