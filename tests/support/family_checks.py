"""What must hold for every family: a checkpoint is whole, the engine computes it alike, and its turns end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors import safe_open

from psyco_ray.config.resources import Rollouts
from psyco_ray.models import loading, saving
from psyco_ray.models.stop_tokens import stop_tokens
from psyco_ray.models.weight_codec import as_array, digest
from psyco_ray.models.weight_files import WeightFiles, persistent_tensors
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.run.types import PreferencePair, Prompt, PromptBatch, Weights
from support import families

CONFIGURED = {
    "temperature": 0.1,
    "top_p": 0.2,
    "repetition_penalty": 1.3,
    "eos_token_id": [families.EOS, *range(40, 80)],
}
"""A generation config that would change every sample, with many stop tokens, so that random models meet them."""
PROMPT = [families.BOS, *random.Random(0).choices(range(5, 260), k=12)]
RESPONSE = random.Random(1).choices(range(5, 260), k=30)


def write_base(name: str, path: Path) -> Path:
    """Write a family's base model with a generation config and files of a processor."""
    families.write(name, path, in_vllm=True)
    (path / "generation_config.json").write_text(json.dumps(CONFIGURED))
    (path / "preprocessor_config.json").write_text('{"size": 16}')
    return path


def move(model: Any) -> None:
    """Change every tensor that a checkpoint must hold, as a training would."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, tensor in persistent_tensors(model):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=draw) * 0.05)


def load(path: Path) -> Any:
    """Load a policy as the project does."""
    return loading.load_causal_lm(path, "float32")


def file_shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a model directory's files."""
    shapes: dict[str, list[int]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return shapes


def alone(path: Path) -> float:
    """The probe's log-probability under a model directory, by transformers alone, in nats."""
    return families.logprob(load(path), PROMPT, RESPONSE)


def saved(base: Path, target: Path) -> tuple[float, float]:
    """Load a base, change it, save it, and load the checkpoint; the probe's log-probability before and after."""
    model = load(base)
    move(model)
    before = families.logprob(model, PROMPT, RESPONSE)
    saving.save_loaded(target, model, loading.load_tokenizer(base), base)
    return before, alone(target)


def start(name: str, path: Path) -> Any:
    """Start a rollout actor with a family's model."""
    settings = Rollouts(
        actors=1, cpus=0.5, dtype=families.FAMILIES[name].dtype, max_model_len=256, max_num_seqs=8, kv_cache_gb=0.1
    )
    options = placement.pool_options(settings, actor_environment(settings))
    actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", str(path), settings, 0)
    ray.get(actor.ready.remote(), timeout=300)
    return actor


def bound(name: str) -> float:
    """Largest difference of the probe's log-probability between engine and transformers that rounding explains."""
    return {"float32": 5e-3, "bfloat16": 0.3}[families.FAMILIES[name].dtype]


def engine_logprob(actor: Any) -> float:
    """The probe's log-probability under the weights that an engine has."""
    arguments = tuple(PROMPT), tuple(RESPONSE)
    probe = actor.__ray_call__.remote(lambda own, *ids: own._thread.call(own._engine.logprobs, [ids])[0], *arguments)
    return ray.get(probe, timeout=120)


def synced_logprob(actor: Any, path: Path) -> float:
    """Send a model's weights, as a learner does, to an engine of the same family; returns the engine's probe.

    Other weights go first: a model's first reload is watched, and those after it fill embeddings in place.
    """
    model = load(path)
    probe = PreferencePair("probe", tuple(PROMPT), tuple(RESPONSE), tuple(RESPONSE[::-1]))

    def send(version: int, factor: float) -> float:
        tensors = WeightFiles(model, path).converted(persistent_tensors(model))
        scaled = ((name, tensor * factor if tensor.is_floating_point() else tensor) for name, tensor in tensors)
        bucket = {name: as_array(tensor.detach()) for name, tensor in scaled}
        size = sum(array.nbytes for array, _ in bucket.values())
        weights = Weights(version, digest([bucket]), (ray.put(bucket),), size)
        ray.get(actor.load_weights.remote(weights, probe), timeout=120)
        return ray.get(actor.probe_logprobs.remote(), timeout=120)[0]

    send(0, 1.1)
    return send(1, 1.0)


def unstopped(actor: Any, path: Path, version: int) -> str:
    """Sample responses; returns what is wrong with their ends, or nothing."""
    stops = set(stop_tokens(loading.load_tokenizer(path)))
    # vLLM samples the responses to a prompt with consecutive seeds
    item = PromptBatch("stops", tuple(Prompt(f"s{seed}", tuple(PROMPT), seed) for seed in range(0, 400, 100)))
    request = SamplingRequest(item, version, 8, 1.0, 1.0, 32)
    found = map(ray.get, actor.sample.options(num_returns="streaming").remote(request))
    sampled = [group for groups in found for group, _ in groups]
    responses = [response.token_ids for group in sampled for response in group.responses]
    if any(stops & set(ids[:-1]) for ids in responses):
        return "goes on after a stop token"
    if any(len(ids) < 32 and ids[-1] not in stops for ids in responses):
        return "ends without a stop token"
    if len(set(responses)) < 0.5 * len(responses):  # one prompt, so that nearly greedy responses would be equal
        return "the generation config's temperature acts"
    return "" if any(ids[-1] in stops for ids in responses) else "no stop token was sampled"
