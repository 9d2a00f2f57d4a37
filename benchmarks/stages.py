"""One iteration as a run streams it, against its stages one after another, over simulated actors.

.venv/bin/python benchmarks/stages.py [--speeches 240]

The actors sleep as long as real ones take by `psyco-ray plan` with the paper's settings for Llama-3.1-8B on 8 GPUs of
the profile `h100` (an estimate): this measures the order of work, not speed. Item
times are log-normal with a long tail (sigma 0.5). Pools, streams and files are those of a run. The peer does the same
work with the same actors; each stage starts after the one before has ended. Training, saving and sync take the same
time on both sides. `ratio` is our seconds over the peer's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray

from psyco_ray.cli.plan import allocation, cost_model, devices, lengths
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Evaluation, Job
from psyco_ray.models.shape import shape_of
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import SamplingRequest
from psyco_ray.rollout.scorer import REFERENCE, GroupBatch, GroupScores, PairReference
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, PreferencePair, PromptBatch, Response
from psyco_ray.training import pairs
from psyco_ray.training.pipeline import SamplingPipeline

BAR = 0.8
SIGMA = 0.5
HELD_OUT = 200  # speeches of an iteration of 6,400


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of work of one actor, and the number of actors."""

    roles: cost_model.GpuSplit
    sample: float  # a speech
    answer: float  # to a held-out speech
    score: float  # a response
    reference: float  # a pair
    after: float  # training, saving and sync of the iteration
    held_out: int


def forecast_rates(count: int) -> Rates:
    """The rates of `plan`; costs per iteration are scaled from 6,400 speeches to `count`."""
    job = Job(evaluation=Evaluation(speeches=HELD_OUT))
    profile, shape = devices.profile_of("h100"), shape_of("llama-3.1-8b")
    tokens = float(lengths.RESPONSE_TOKENS)
    roles = allocation.allocate(job, shape, profile, 8, tokens)
    work = cost_model.Scenario(job, shape, profile, roles, tokens)
    forecast = cost_model.forecast(work)
    speeches, held_out = job.speeches_per_iteration, HELD_OUT
    return Rates(
        roles,
        sample=work.sampling(speeches, job.sampling.responses).total / speeches,
        answer=work.sampling(held_out, 1).total / held_out,
        score=work.scoring(1, job.sampling.responses, 1) / job.sampling.responses,
        reference=work.reference / speeches,
        after=sum(forecast.stages[name] for name in ("train", "save", "sync")) * count / speeches,
        held_out=math.ceil(held_out * count / speeches),
    )


class Simulated:
    """A rollout actor or scorer that sleeps as long as a real one works and returns fixed results."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._responses = [Response("word " * 190 + str(i), tuple(range(1000, 1256)), True) for i in range(8)]

    def ready(self) -> None:
        """Nothing to load."""

    def sample(self, request: SamplingRequest) -> Iterator[tuple[Group, float]]:
        """Yields an item's groups in the second half of its time: all are sampled together."""
        prompts = request.item.prompts
        each = self._rates.sample if request.responses > 1 else self._rates.answer
        factor = random.Random(prompts[0].speech_id).lognormvariate(-SIGMA * SIGMA / 2, SIGMA)  # mean 1
        half = factor * each * len(prompts) / 2
        time.sleep(half)
        for prompt in prompts:
            time.sleep(half / len(prompts))
            yield Group(prompt, tuple(self._responses[: request.responses]), request.version), 2 * half / len(prompts)

    def score(self, batch: GroupBatch) -> list[GroupScores]:
        """Returns the scores of the groups."""
        seconds = [self._rates.score * len(group.responses) * len(batch.names) for group, _ in batch.groups]
        time.sleep(sum(seconds))
        return [
            GroupScores(
                group.prompt.speech_id,
                dict.fromkeys(batch.names, tuple(map(float, range(len(group.responses))))),
                each,
            )
            for (group, _), each in zip(batch.groups, seconds, strict=True)
        ]

    def reference_logprobs(self, pairs: Sequence[PreferencePair]) -> list[PairReference]:
        """Returns the pairs' log-probabilities."""
        time.sleep(self._rates.reference * len(pairs))
        return [PairReference(pair.key, (-100.0, -100.0), self._rates.reference) for pair in pairs]


def measure(count: int) -> dict[str, Any]:
    """Measures an iteration over simulated actors, streamed and stage by stage."""
    rates = forecast_rates(count)
    print(f"simulated: {rates}", flush=True)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    actor = ray.remote(Simulated).options(num_cpus=0)
    deadlines = Deadlines(start_s=600, item_s=600)
    rollouts = ActorPool("rollout", lambda _: actor.remote(rates), rates.roles.rollouts, deadlines)
    scorers = ActorPool("scorer", lambda _: actor.remote(rates), rates.roles.scorers, deadlines)
    rollouts.wait_ready()
    scorers.wait_ready()
    rows = [{"speech_id": f"speech-{i}", "speech": "word " * 60, "prompt_ids": range(150)} for i in range(count)]
    dev = [{**row, "speech_id": f"held-out-{i}"} for i, row in enumerate(rows[: rates.held_out])]
    with tempfile.TemporaryDirectory() as directory:
        job = Job(run_dir=directory, rollouts=Rollouts(speeches_per_item=8))
        ledger = Ledger(job, resume=False)
        pipeline = SamplingPipeline(job, ledger, Telemetry(job, ledger), rollouts, scorers, ("reward",))
        ours = streamed(pipeline, rows, dev, rates)
        ledger.close()
    peer = one_after_another(rollouts, scorers, pipeline, rows, dev, rates)
    rollouts.close()
    scorers.close()
    ray.shutdown()
    ratio = ours / peer
    facts = {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ratio, 3)}
    return {"name": "stages", **facts, "bar": BAR, "pass": ratio <= BAR}


def streamed(pipeline: SamplingPipeline, rows: list[Any], dev: list[Any], rates: Rates) -> float:
    """Seconds of an iteration as a run streams it."""
    start = time.perf_counter()
    candidates = (pairs.pair_of(group) for group in pipeline.samples(1, rows, 0))
    paired = pipeline.reference("simulated", ([pair] for pair in candidates if pair is not None))
    assert len(paired) == len(rows), "a pair was lost"
    time.sleep(rates.after)
    assert len(list(pipeline.answers(1, dev, 0))) == len(dev), "an answer was lost"
    return time.perf_counter() - start


def one_after_another(
    rollouts: ActorPool, scorers: ActorPool, pipeline: SamplingPipeline, rows: list[Any], dev: list[Any], rates: Rates
) -> float:
    """Seconds of the same work when each stage starts after the one before."""

    def scored(name: str, rows: list[Any], responses: int, models: tuple[str, ...] = ("reward",)) -> list[Group]:
        prompts = [pipeline._prompt_of(row, (name, 1)) for row in rows]
        items = [PromptBatch(str(i), tuple(prompts[i : i + 8])) for i in range(0, len(prompts), 8)]
        requests = [SamplingRequest(item, 0, responses, 1.0, 1.0, 256) for item in items]
        moments.append(time.perf_counter())
        sampled = rollouts.stream(Simulated.sample, requests, identity=lambda result: result[0].prompt.speech_id)
        groups = [group for group, _ in sampled]
        moments.append(time.perf_counter())
        batches = [GroupBatch(((group, []),), models) for group in groups]
        found = {scored.key: scored.scores for scored in scorers.stream(Simulated.score, batches)}
        return [replace(group, scores=found[group.prompt.speech_id]) for group in groups]

    moments: list[float] = []
    paired = [pair for group in scored("samples", rows, 8) if (pair := pairs.pair_of(group)) is not None]
    moments.append(time.perf_counter())
    referenced = list(scorers.stream(Simulated.reference_logprobs, ([pair] for pair in paired)))
    assert len(referenced) == len(rows), "a pair was lost"
    moments.append(time.perf_counter())
    time.sleep(rates.after)
    assert len(scored("dev", dev, 1, ("reward", REFERENCE))) == len(dev), "an answer was lost"
    moments.append(time.perf_counter())
    names = ("sample", "score", "reference", "train, save and sync", "answer", "score answers")
    seconds = [b - a for a, b in itertools.pairwise(moments)]
    print("one after another: " + ", ".join(f"{n} {s:.1f} s" for n, s in zip(names, seconds, strict=True)), flush=True)
    return moments[-1] - moments[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=240)
    print(json.dumps(measure(parser.parse_args().speeches)))


if __name__ == "__main__":
    main()
