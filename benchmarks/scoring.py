"""Scoring as a run does it, in batches, against one group or pair a call: the same scorers, groups and pairs.

.venv/bin/python benchmarks/scoring.py [--speeches 40] [--held-out 80] [--rounds 3]

What two scorers do in an iteration of the demo, through the pipeline, the pools and the files of a run: they score
groups of four packaged answers and compute the reference log-probabilities of each group's pair; then they score an
answer to each held-out speech with two reward models and the reference. All models are of SmolLM2-135M's size. The
answers are there from the start. The sides alternate; the ratio is the median over rounds of the groups/s of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts, Scorers
from psyco_ray.config.training import Deadlines, Job, Prompts, Sampling
from psyco_ray.files import records
from psyco_ray.models import loading, reward_model, saving, templates
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import SamplingRequest
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, Response, Row
from psyco_ray.training import pipeline
from psyco_ray.training.pair_stage import PairStage

BAR = 1.3
BATCHES = pipeline._BATCHES
NAMES = ("reward", "heldout")
MODEL = "smollm2-135m"
PROMPTS, RESPONSES, MAX_TOKENS = Prompts(respond="respond-few-shot"), 4, 96  # the demo's


class Sampled:
    """A pool of rollout actors whose answers are there from the start: those of the packaged pairs, cut."""

    def __init__(self, answers: list[str]) -> None:
        tokenizer = loading.load_tokenizer(loading.resolve(MODEL))
        rng = random.Random(0)
        self._responses = []
        for answer in answers:
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            ids = ids[: min(MAX_TOKENS, round(rng.lognormvariate(4.2, 0.45)))]
            self._responses.append(Response(tokenizer.decode(ids), tuple(ids), True))

    def stream(self, method: Any, requests: Iterator[SamplingRequest], **_: Any) -> Iterator[tuple[Group, float]]:
        """Yields the groups of all requests."""
        for request in requests:
            for prompt in request.item.prompts:
                start = int(prompt.speech_id) * request.responses
                found = itertools.islice(itertools.cycle(self._responses), start, start + request.responses)
                yield Group(prompt, tuple(found), request.version), 0.0


def rows_of(count: int) -> list[Row]:
    """The first packaged speeches, rendered for the policy."""
    tokenizer = loading.load_tokenizer(loading.resolve(MODEL))
    prompt = load_prompt(PROMPTS)
    rows = records.read_rows("sample", "pairs")[:count]
    return [
        {
            "speech_id": f"{number:016d}",
            "speech": row["question"],
            "prompt_ids": templates.conversation_ids(tokenizer, prompt_messages(prompt, row["question"])),
        }
        for number, row in enumerate(rows)
    ]


def scorers_of(settings: Scorers, reward: Path) -> ActorPool[ScorerActor]:
    """Starts the scorers as a run does."""
    actor = ray.remote(ScorerActor)

    def create(index: int) -> Any:
        options = placement.pool_options(settings)
        rewards = dict.fromkeys(NAMES, str(reward))
        return actor.options(**options).remote(f"scorer-{index}", rewards, MODEL, settings)

    return ActorPool("scorer", create, settings.actors, Deadlines(start_s=900, item_s=900))


def groups_per_s(
    job: Job, rows: list[Row], held_out: list[Row], rollouts: Sampled, scorers: Any, batches: int
) -> float:
    """Scores all groups and computes the reference of their pairs, with so many batches at a scorer."""
    pipeline._BATCHES = batches
    with tempfile.TemporaryDirectory() as directory:
        job = job.model_copy(update={"run_dir": directory})
        ledger = Ledger(job, resume=False)
        try:
            scoring = pipeline.SamplingPipeline(job, ledger, Telemetry(job, ledger), rollouts, scorers, NAMES)
            stage = PairStage(job, ledger, Progress(), scoring.reference)
            start = time.perf_counter()
            facts = stage.make_sampled(1, rows, scoring.samples(1, rows, 0))
            answers = list(scoring.answers(1, held_out, 1))
            seconds = time.perf_counter() - start
        finally:
            ledger.close()
    assert facts["rows"] == len(rows), "a pair was lost"
    assert len(answers) == len(held_out), "an answer was lost"
    return (len(rows) + len(held_out)) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--row-tokens", type=int, default=Scorers().row_tokens)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = Scorers(actors=2, cpus=0.15, row_tokens=options.row_tokens)
    job = Job(
        prompts=PROMPTS,
        sampling=Sampling(responses=RESPONSES, max_tokens=MAX_TOKENS, unfinished="allow"),
        rollouts=Rollouts(speeches_per_item=10),
        scorers=settings,
    )
    one_a_call = job.model_copy(update={"scorers": settings.model_copy(update={"row_tokens": 1})})
    rows = rows_of(options.speeches + options.held_out)
    held_out = [rows.pop() for _ in range(options.held_out)]
    answers = [row[side] for row in records.read_rows("sample", "pairs") for side in ("chosen", "rejected")]
    rollouts = Sampled(answers)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as directory:
        base = loading.resolve(MODEL)
        tokenizer = loading.load_tokenizer(base)
        model = reward_model.new_model(base, tokenizer, "float32", seed=0)
        saving.save_loaded(f"{directory}/reward", model, tokenizer, base)
        del model
        scorers = scorers_of(settings, Path(directory) / "reward")
        scorers.wait_ready()
        rates = []
        for number in range(options.rounds + 1):  # the first round warms up
            ours = groups_per_s(job, rows, held_out, rollouts, scorers, BATCHES)
            peer = groups_per_s(one_a_call, rows, held_out, rollouts, scorers, 1)
            rates.append((ours, peer))
            print(f"round {number}: {ours:.2f} groups/s in batches, {peer:.2f} one a call", flush=True)
        scorers.close()
    ray.shutdown()
    ours, peer = (round(statistics.median(side), 2) for side in zip(*rates[1:], strict=True))
    ratio = round(statistics.median(a / b for a, b in rates[1:]), 3)
    print(json.dumps({"name": "scoring", "ours": ours, "peer": peer, "ratio": ratio, "bar": BAR, "pass": ratio >= BAR}))


if __name__ == "__main__":
    main()
