"""How a family of `families` is computed, and how far that is from transformers with each conversation alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import DpoConfig
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.models import loading, selftest
from psyco_ray.models.packing import ResponseLogprobs, pack
from psyco_ray.models.sharing import Tree
from support import families


@dataclass(frozen=True)
class Computed:
    """The way that the self-test chose for a family, and what it costs in exactness."""

    way: str  # packed, plain or refused
    reason: str  # of plain or refused
    difference: float = 0.0  # largest one of a response's log-probability from that of the conversation alone, relative
    margin: float = 0.0  # largest one of a first DPO step, whose policy is the reference


def computed(name: str, path: Path) -> Computed:
    """Write a family's model to a directory, load it as learner and scorer do, and compare log-probabilities."""
    families.write(name, path)
    try:
        module = ResponseLogprobs(loading.load_causal_lm(path, "float32"), logit_rows=7)
        choice = selftest.choose(module, name)
    except InputError as error:
        return Computed("refused", str(error))
    oracle = families.load(path, families.FAMILIES[name].kind)
    pairs = _pairs()
    with torch.no_grad():
        values = module(pack(pairs))
        reference = [module(pack([pair])).tolist() for pair in pairs]  # a scorer takes a pair at a time
    alone = torch.tensor([families.logprob(oracle, prompt, own) for prompt, responses in pairs for own in responses])
    lengths = [[float(len(own)) for own in responses] for _, responses in pairs]
    inputs = torch.cat((torch.tensor(reference), torch.tensor(lengths)), 1)
    _, metrics = DpoObjective(DpoConfig())(values.view(-1, 2), inputs, 1.0)
    return Computed(
        "plain" if choice.plain else "packed",
        choice.reason,
        ((values - alone).abs() / alone.abs()).max().item(),
        metrics["margin"].abs().max().item(),
    )


def _pairs() -> list[Tree]:
    """Three pairs, longer than the windows and chunks of the families."""
    draw = random.Random(2)
    tokens = range(5, 250)
    sizes = ((9, 14, 21), (3, 24, 8), (15, 5, 5))
    return [(draw.choices(tokens, k=p), [draw.choices(tokens, k=own) for own in owns]) for p, *owns in sizes]
