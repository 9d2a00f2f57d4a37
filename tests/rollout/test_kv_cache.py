"""The size of an engine's KV cache on a GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.models.shape import SHAPES
from psyco_ray.rollout import kv_cache

EIGHT, TOTAL = SHAPES["llama-3.1-8b"], 84.9e9


def test_the_cache_is_what_weights_and_working_memory_leave_of_an_engines_part() -> None:
    settings = Rollouts(gpus=1)
    alone = kv_cache.cache_bytes(EIGHT, settings, free=84e9, total=TOTAL)
    taken = 2 * EIGHT.parameters + kv_cache.working_bytes(EIGHT, settings) + kv_cache.GRAPH_BYTES
    assert alone == pytest.approx(84e9 - 0.1 * TOTAL - taken, rel=1e-3)
    assert alone / kv_cache.token_bytes(EIGHT, settings) > 256 * 1000, "every sequence has a thousand tokens"
    beside = kv_cache.cache_bytes(EIGHT, Rollouts(gpus=0.4), free=44e9, total=TOTAL, shared=True)
    assert beside == pytest.approx(alone - 40e9, rel=1e-3), "a scorer is on the GPU; the learner rank leaves it"
    eager = kv_cache.cache_bytes(EIGHT, Rollouts(gpus=1, enforce_eager=True), free=84e9, total=TOTAL)
    assert eager - alone == pytest.approx(kv_cache.GRAPH_BYTES, rel=1e-3)
    half = kv_cache.cache_bytes(EIGHT, Rollouts(gpus=0.5), free=84e9, total=TOTAL)
    assert half == pytest.approx(0.9 * TOTAL / 2 - taken, rel=1e-3), "another engine may come"
    assert kv_cache.cache_bytes(EIGHT, Rollouts(gpus=1, kv_cache_gb=3), free=1, total=1) == 3 * 2**30


def test_an_engine_without_room_for_a_cache_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"an engine has 21.2 GB of a GPU, .* give it more of the GPU \(rollouts.gpus\)"
    ):
        kv_cache.cache_bytes(EIGHT, Rollouts(gpus=0.25), free=84e9, total=TOTAL)


def test_a_token_of_a_cache_has_the_keys_and_values_of_all_layers() -> None:
    assert kv_cache.token_bytes(EIGHT, Rollouts(gpus=1)) == 2 * 32 * 8 * 128 * 2
    assert kv_cache.token_bytes(EIGHT, Rollouts(gpus=4, tensor_parallel=4)) == 2 * 32 * 2 * 128 * 2


def test_an_engine_takes_the_size_when_it_starts(tmp_path: Path, monkeypatch) -> None:
    text = SimpleNamespace(
        num_hidden_layers=32,
        hidden_size=4096,
        vocab_size=128_256,
        intermediate_size=14_336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(84e9), int(TOTAL)))
    sized = kv_cache.sized(Rollouts(gpus=1), tmp_path, text, shared=False)
    assert sized.kv_cache_gb is not None
    assert 60 < sized.kv_cache_gb < 75
    named = Rollouts(gpus=1, kv_cache_gb=2)
    assert kv_cache.sized(named, tmp_path, text, shared=False) is named
