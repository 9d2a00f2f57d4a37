"""Families in vLLM: a checkpoint and a synced policy compute as in transformers, and turns end at every stop token."""

import importlib.util
from pathlib import Path

import pytest
import ray
from support import families, family_checks

from psyco_ray.config.errors import InputError

QUICK = {"glm4-moe", "gpt-oss"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in families.CAUSAL]
)
def test_the_engine_computes_as_transformers_and_stops(local_ray, name: str, tmp_path: Path) -> None:
    reason = families.NOT_IN_VLLM.get(name)
    if reason:
        pytest.skip(reason)
    base, target = family_checks.write_base(name, tmp_path / "base"), tmp_path / "saved"
    _, expected = family_checks.saved(base, target)
    actor = family_checks.start(name, target)
    try:
        assert family_checks.engine_logprob(actor) == pytest.approx(expected, abs=family_checks.bound(name))
        assert family_checks.synced_logprob(actor, base) == pytest.approx(
            family_checks.alone(base), abs=family_checks.bound(name)
        )
        assert family_checks.unstopped(actor, target, version=1) == ""
    finally:
        ray.kill(actor)


@pytest.mark.slow
@pytest.mark.long
def test_a_model_of_images_is_refused_without_torchvision(local_ray, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    base = family_checks.write_base("qwen2.5-vl", tmp_path)
    with pytest.raises(InputError, match=r"needs torchvision \(No module named 'torchvision'\); install"):
        family_checks.start("qwen2.5-vl", base)
