"""What holds for each family of models: how it is computed, saved, served and stopped; prints a Markdown table.

`python benchmarks/families.py` takes ten minutes on two cores; `--only NAME ...` takes some families, `--no-engine`
leaves vLLM out. The models are tiny and random (tests/support/families.py), their weights float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import ray
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import families, family_checks, family_paths  # noqa: E402

HEADER = ["family", "kind", "computed", "saved = reloaded", "vLLM = transformers", "stops"]


def computed(name: str, directory: Path) -> str:
    """Packed or plain, as the self-test at load chooses; wrong ones are marked."""
    if families.FAMILIES[name].kind == "encoder":
        return "padded"
    found = family_paths.computed(name, directory)
    way = f"{found.way}: {found.reason}" if found.reason else found.way
    return way if found.way == "refused" or max(found.difference, found.margin) < 1e-5 else f"**wrong** {way}"


def gap(value: float, expected: float, bound: float) -> str:
    """`yes`, or the difference in nats."""
    return "yes" if abs(value - expected) <= bound else f"**{value - expected:+.3f}**"


def in_engine(base: Path, target: Path, expected: float, name: str) -> list[str]:
    """Whether vLLM computes a checkpoint and a synced policy as transformers, and whether responses end."""
    if name in families.NOT_IN_VLLM:
        return [f"no: {families.NOT_IN_VLLM[name]}", "–"]
    actor, bound, why = None, family_checks.bound(name), families.FAMILIES[name].why
    try:
        actor = family_checks.start(name, target)
        loaded = gap(family_checks.engine_logprob(actor), expected, bound)
        synced = gap(family_checks.synced_logprob(actor, base), family_checks.alone(base), bound)
        both = "yes" if loaded == synced == "yes" else f"loaded {loaded}, synced {synced}"
        return [f"{both}, {why}" if why else both, family_checks.unstopped(actor, target, version=1) or "yes"]
    except ray.exceptions.RayError as error:
        return [f"does not run: {str(error).strip().splitlines()[-1][:80]}", "–"]
    finally:
        if actor is not None:
            ray.kill(actor)


def row(name: str, directory: Path, engine: bool) -> list[str]:
    """The table's row of a family."""
    kind, way = families.FAMILIES[name].traits, computed(name, directory / "computed")
    if families.FAMILIES[name].kind == "encoder":
        return [name, kind, way, "not trained", "not sampled", "–"]
    base, target = family_checks.write_base(name, directory / "base"), directory / "saved"
    before, after = family_checks.saved(base, target)
    whole = family_checks.file_shapes(base) == family_checks.file_shapes(target)
    served = in_engine(base, target, after, name) if engine else ["–", "–"]
    return [name, kind, way, gap(after, before, 1e-5) if whole else "**other tensors**", *served]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=families.FAMILIES, metavar="NAME", help="families to try")
    parser.add_argument("--no-engine", action="store_true", help="leave vLLM out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.no_engine:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for name in options.only or families.FAMILIES:
        if not families.available(name):
            print(f"| {name} | {families.FAMILIES[name].traits} | not in this transformers | – | – | – |")
            continue
        with tempfile.TemporaryDirectory() as directory:
            print(f"| {' | '.join(row(name, Path(directory), not options.no_engine))} |", flush=True)


if __name__ == "__main__":
    main()
