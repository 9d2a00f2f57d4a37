"""Contexts of several turns against each conversation in a row of its own: pairs/s of a learner step and of a scorer.

.venv/bin/python benchmarks/conversations.py [--dialogues 1] [--contexts 1] [--pairs 2] [--rounds 3]

Histories of six client turns and five replies, written from packaged texts, each with four responses: the best with
the worst, and the two between. Both sides compute the same float32 model of SmolLM2-135M's size with one thread, in
this process, alternating; the first turn of each is a warm-up. Ratios are medians over rounds by wall time.

learner   a step of the learner's rank (DPO, learning rate 0), as it plans its passes; the peer is the same rank with
          each conversation in a row of its own, by transformers' forward, one pair a pass. The losses must be those
          of each response computed alone, within 1e-5.
scorer    rewards and reference log-probabilities of groups in batches; the peer gives the scorer one response a call.
With --contexts 3 the histories are those of a dialogue's turns 4, 5 and 6. With --pairs 6 all responses are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu")

import torch
from alternation import Turn, format_turns, result, timed

from psyco_ray.config.resources import Learners, Scorers
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer
from psyco_ray.files import records
from psyco_ray.learner.batching import MicroBatch, plan_step
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.rendezvous import address_of, listen
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.learner.worker import LearnerWorker
from psyco_ray.models import loading, reward_model, saving, templates
from psyco_ray.rollout.scorer import REFERENCE, GroupBatch, ScorerActor
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response

BAR, LOSS_TOLERANCE = 2.0, 1e-5
MODEL, TURNS = "smollm2-135m", 6
SIDES = [(0, 3), (1, 2), (0, 1), (0, 2), (1, 3), (2, 3)]  # of ranked responses
NAMES = ("reward", REFERENCE)


@dataclass(frozen=True)
class Context:
    """A history that ends with the client, and four responses to it."""

    key: str
    messages: list[dict[str, str]]
    group: Group


def contexts_of(options: argparse.Namespace) -> list[Context]:
    """The last contexts of some dialogues, each of packaged speeches and replies."""
    tokenizer = loading.load_tokenizer(loading.resolve(MODEL))
    rows = itertools.cycle(records.read_rows("sample", "pairs"))
    made = []
    for dialogue in range(options.dialogues):
        turns = list(itertools.islice(rows, TURNS))
        messages = [
            {"role": role, "content": row[field]}
            for row in turns
            for role, field in (("user", "question"), ("assistant", "chosen"))
        ]
        for turn in range(TURNS - options.contexts, TURNS):
            asked, others = messages[: 2 * turn + 1], list(itertools.islice(rows, 2))
            texts = [row[side] for side in ("chosen", "rejected") for row in others]
            prompt = tuple(templates.conversation_ids(tokenizer, asked))
            ended = [
                Response(text, (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id), True)
                for text in texts
            ]
            key = f"{dialogue}-{turn + 1}"
            made.append(Context(key, asked, Group(Prompt(key, prompt, 0), tuple(ended), 0)))
    return made


def pairs_of(contexts: list[Context], count: int) -> list[PreferencePair]:
    """Pairs of each context's responses."""
    return [
        PreferencePair(f"{context.key}-{number}", context.group.prompt.token_ids, *(ids[side] for side in sides))
        for context in contexts
        for ids in [[response.token_ids for response in context.group.responses]]
        for number, sides in enumerate(SIDES[:count])
    ]


def rank() -> LearnerWorker:
    """A learner of one rank in this process."""
    spec = WorkerSpec(
        str(loading.resolve(MODEL)),
        DpoObjective(DpoConfig()),
        Learners(threads=1, dtype="float32", zero_stage=0),
        Optimizer(learning_rate=1e-9, schedule="constant", warmup_ratio=0.0),
        seed=0,
        deadlines=Deadlines(start_s=600, step_s=3600),
    )
    worker = LearnerWorker(0, 1)
    worker._listener = listen("127.0.0.1")
    worker.start(address_of(worker._listener), spec, None)
    return worker


def learner(pairs: list[PreferencePair], rounds: int) -> dict[str, Any]:
    """Alternates steps; returns the result line."""
    worker = rank()
    module = worker._engine.module
    [shared] = plan_step(pairs, 1, Learners().micro_batch_tokens, module.computed(torch.device("cpu")))
    found = dict(zip((pair.key for one in shared for pair in one), worker.evaluate(shared), strict=True))
    alone = values_alone(worker, pairs)
    pairs = [replace(pair, reference=(alone[pair.key][0] - 1, alone[pair.key][1] + 2)) for pair in pairs]
    difference = loss_difference(pairs, found, alone)
    print(f"learner: losses differ by at most {difference:.1e}", flush=True)
    by_key = {pair.key: pair for pair in pairs}
    sides: list[tuple[bool, list[MicroBatch]]] = [
        (False, [[by_key[pair.key] for pair in one] for one in shared]),
        (True, [[pair] for pair in pairs]),
    ]
    mean = sum(len(pair.chosen_ids) for pair in pairs) / len(pairs)

    def step(plain: bool, passes: list[MicroBatch]) -> Turn:
        module.set_plain(plain)
        return timed(lambda: worker.step(passes, len(pairs), mean, 0.0, 0)["loss"] / len(pairs))

    turns = []
    for number in range(rounds + 1):
        turns.append(tuple(step(*side) for side in sides))
        ours, alone = turns[-1]
        print(
            f"step {number}: {format_turns(ours, alone, 'alone')}, loss {ours.loss:.6f}, {alone.loss:.6f}", flush=True
        )
    line = result("conversations learner", len(pairs), *map(list, zip(*turns, strict=True)), BAR)
    return {**line, "pass": line["pass"] and difference <= LOSS_TOLERANCE}


def values_alone(worker: LearnerWorker, pairs: list[PreferencePair]) -> dict[str, tuple[float, float]]:
    """The log-probabilities of each pair's responses, each computed alone with the same kernels."""
    module, device = worker._engine.module, torch.device("cpu")
    with torch.no_grad():
        return {
            pair.key: tuple(
                module(module.pack([(pair.prompt_ids, [ids])], (), device)).item()
                for ids in (pair.chosen_ids, pair.rejected_ids)
            )
            for pair in pairs
        }


def loss_difference(
    pairs: list[PreferencePair], found: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]]
) -> float:
    """The largest difference of a pair's loss."""
    objective = DpoObjective(DpoConfig())
    inputs = torch.tensor(objective.loss_inputs(pairs))
    one, other = (
        objective(torch.tensor([values[pair.key] for pair in pairs]), inputs, 1.0)[0] for values in (found, expected)
    )
    return (one - other).abs().max().item()


def scorer(contexts: list[Context], rounds: int) -> dict[str, Any]:
    """Alternates batches and single responses; returns the result line."""
    base = loading.resolve(MODEL)
    tokenizer = loading.load_tokenizer(base)
    with tempfile.TemporaryDirectory() as directory:
        model = reward_model.new_model(base, tokenizer, "float32", seed=0)
        saving.save_loaded(Path(directory), model, tokenizer, base)
        del model
        actor = ScorerActor("scorer-0", {"reward": directory}, str(base), Scorers(dtype="float32", threads=1))
        actor.ready()
    together = [GroupBatch(tuple((context.group, context.messages) for context in contexts), NAMES)]
    alone = [
        GroupBatch(((replace(context.group, responses=(response,)), context.messages),), NAMES)
        for context in contexts
        for response in context.group.responses
    ]

    def values(batches: list[GroupBatch]) -> tuple[Turn, list[float]]:
        scored: list[float] = []

        def score() -> float:
            groups = [group for batch in batches for group in actor.score(batch)]
            scored.extend(value for name in NAMES for group in groups for value in group.scores[name])
            return 0.0

        return timed(score), scored

    turns = []
    for number in range(rounds + 1):
        (ours, found), (peer, expected) = values(together), values(alone)
        turns.append((ours, peer))
        difference = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, expected, strict=True))
        print(f"scores {number}: {format_turns(ours, peer, 'alone')}, relative difference {difference:.1e}", flush=True)
        assert difference <= 1e-4, "scores and log-probabilities agree"
    return result("conversations scorer", len(contexts) * 2, *map(list, zip(*turns, strict=True)), BAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=1)
    parser.add_argument("--contexts", type=int, default=1, help="of a dialogue, its last ones")
    parser.add_argument("--pairs", type=int, default=2, help="of four responses, at most 6")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    contexts = contexts_of(options)
    pairs = pairs_of(contexts, options.pairs)
    history = sum(len(context.group.prompt.token_ids) for context in contexts) / len(contexts)
    response = sum(len(r.token_ids) for c in contexts for r in c.group.responses) / len(contexts) / 4
    print(
        f"{len(contexts)} histories of {history:.0f} tokens, responses of {response:.0f}, {len(pairs)} pairs",
        flush=True,
    )
    lines = [scorer(contexts, options.rounds), learner(pairs, options.rounds)]
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
