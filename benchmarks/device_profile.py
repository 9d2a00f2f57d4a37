"""Measures how fast this device samples, scores, trains and moves weights: a profile for `psyco-ray plan`.

.venv/bin/python benchmarks/device_profile.py [--name cpu-mine] [--gpus 1] [--model smollm2-135m] [--out profile.yaml]

Real engines, scorers and learner ranks work at a small size, one role at a time. CPU actors are measured in CPU
seconds, which exclude other load, GPU actors in wall time. `psyco-ray plan JOB.yaml --device profile.yaml` uses the
file. The last line has the ratio of predicted to measured seconds, the worst of all measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import numpy as np
import ray
import scipy.optimize
import yaml

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Learners, Rollouts, Scorers, Sync
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer, Prompts
from psyco_ray.files import records
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, reward_model, saving, templates
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.rollout.scorer import GroupBatch, ScorerActor
from psyco_ray.run.types import Group, PreferencePair, Prompt, PromptBatch
from psyco_ray.training import weight_sync

BAR = 0.9
SPEECHES, RESPONSES, MAX_TOKENS = 10, 4, 64  # of one work item of an engine
SMALL, LARGE = 4, 12  # pairs of an optimizer step


def process_time(_: Any) -> float:
    return time.process_time()


@dataclass
class Meter:
    """Measures the seconds that actors work: CPU time for actors on the CPU, wall time on a GPU."""

    on_gpu: bool
    measured: list[tuple[str, float, float]] = field(default_factory=list)  # name, measured and predicted seconds

    def measure(self, actors: list[Any], work: Callable[[], Any]) -> tuple[Any, float]:
        """Returns the result of `work` and the seconds of the slowest actor."""
        before, start = self.cpu_seconds(actors), time.perf_counter()
        result = work()
        elapsed = time.perf_counter() - start
        if self.on_gpu:
            return result, elapsed
        return result, max(b - a for a, b in zip(before, self.cpu_seconds(actors), strict=True))

    def cpu_seconds(self, actors: list[Any]) -> list[float]:
        """CPU-seconds of each actor so far."""
        return ray.get([actor.__ray_call__.remote(process_time) for actor in actors])

    def fit(self, name: str, counts: list[tuple[float, ...]], seconds: list[float]) -> list[float]:
        """Fits non-negative seconds per unit to the measured counts and seconds."""
        rates = scipy.optimize.nnls(np.array(counts), np.array(seconds))[0]
        for count, measured in zip(counts, seconds, strict=True):
            self.measured.append((name, measured, float(np.dot(count, rates))))
            print(f"{name}: {measured:.2f} s for {count}, {self.measured[-1][2]:.2f} by the rates", flush=True)
        return [float(rate) for rate in rates]


@dataclass
class Bench:
    """The actors and their inputs."""

    rollouts: ActorPool
    scorers: ActorPool
    learner: LearnerGroup
    messages: dict[str, list[dict[str, str]]]
    prompts: list[Prompt]
    meter: Meter

    def start(self) -> float:
        """Waits for all actors and returns the seconds that an engine takes to start."""
        start = time.perf_counter()
        self.rollouts.wait_ready()
        elapsed = time.perf_counter() - start
        self.scorers.wait_ready()
        self.learner.wait_ready()
        return elapsed if self.meter.on_gpu else max(self.meter.cpu_seconds(self.rollouts.actors))

    def measure_sampling(self, rounds: int) -> tuple[dict[str, float], list[Group]]:
        """Returns seconds per prompt token, decode step and decoded token, and the last groups."""
        actors = self.rollouts.actors
        items = [
            PromptBatch(str(i), tuple(self.prompts[i * SPEECHES : (i + 1) * SPEECHES])) for i in range(len(actors))
        ]
        counts: list[tuple[float, ...]] = []
        seconds: list[float] = []
        groups: list[Group] = []
        for number in range(rounds + 1):
            for responses, max_tokens in ((1, 1), (1, MAX_TOKENS), (RESPONSES, MAX_TOKENS)):
                requests = [SamplingRequest(item, 0, responses, 1.0, 1.0, max_tokens) for item in items]
                groups, measured = self.meter.measure(actors, lambda requests=requests: list(self.sample(requests)))
                if number:  # the first round warms up
                    lengths = [len(r.token_ids) for g in groups for r in g.responses]
                    prompt_tokens = sum(len(g.prompt.token_ids) for g in groups)
                    counts.append((prompt_tokens / len(actors), max(lengths), sum(lengths) / len(actors)))
                    seconds.append(measured)
        prompt_s, step_s, token_s = self.meter.fit("sampling", counts, seconds)
        return {"prompt_token_s": prompt_s, "decode_step_s": step_s, "decode_token_s": token_s}, groups

    def sample(self, requests: list[SamplingRequest]) -> Iterator[Group]:
        """Yields the groups of all requests as they complete."""
        for group, _ in self.rollouts.stream(
            RolloutActor.sample, requests, identity=lambda result: result[0].prompt.speech_id
        ):
            yield group

    def measure_scoring(self, rounds: int, groups: list[Group], pairs: list[PreferencePair]) -> dict[str, float]:
        """Returns seconds per token for scores and for reference log-probabilities."""
        work: dict[str, list[Any]] = {
            "score": [GroupBatch(((group, self.messages[group.prompt.speech_id]),), ("reward",)) for group in groups],
            "reference": [[pair] for pair in pairs],
        }
        tokens = {
            "score": sum(len(g.prompt.token_ids) + sum(len(r.token_ids) for r in g.responses) for g in groups),
            "reference": sum(pair.tokens for pair in pairs),
        }
        rates = {}
        methods = {"score": ScorerActor.score, "reference": ScorerActor.reference_logprobs}
        for name, items in work.items():
            seconds = []
            for number in range(rounds + 1):
                actors = self.scorers.actors
                before, start = self.meter.cpu_seconds(actors), time.perf_counter()
                list(self.scorers.stream(methods[name], items))
                elapsed = (time.perf_counter() - start) * len(actors)
                # idle actors take the next item, so the work of all actors counts
                cpu_seconds = sum(self.meter.cpu_seconds(actors)) - sum(before)
                if number:
                    seconds.append(elapsed if self.meter.on_gpu else cpu_seconds)
            [rates[f"{name}_token_s"]] = self.meter.fit(name, [(tokens[name],)] * rounds, seconds)
        return rates

    def measure_training(self, rounds: int, pairs: list[PreferencePair], parameters: int) -> dict[str, float]:
        """Returns seconds per trained token and optimizer step, and bytes/s of saving and of a weight update."""
        sizes = [SMALL, LARGE] * (rounds + 1)  # the first two warm up
        batches = [pairs[:size] for size in sizes]
        ranks = self.learner.workers
        steps = self.learner.train(batches, total_steps=len(batches))
        counts, seconds = [], []
        for number, batch in enumerate(batches):
            _, measured = self.meter.measure(ranks, lambda: next(steps))
            if number > 1:
                counts.append((sum(pair.tokens for pair in batch) / len(ranks), 1.0))
                seconds.append(measured)
        token_s, step_s = self.meter.fit("training", counts, seconds)
        with tempfile.TemporaryDirectory() as directory:
            _, save_s = self.meter.measure(ranks, lambda: self.learner.save_model(f"{directory}/model"))
            _, state_s = self.meter.measure(ranks, lambda: self.learner.save_state(f"{directory}/state"))
        both = [*ranks, *self.rollouts.actors]
        before = self.meter.cpu_seconds(both)
        pushed = weight_sync.push_weights(self.learner, self.rollouts, 1, pairs[0], Sync(max_gap=10.0))
        pushed.verify()
        cpu_seconds = [b - a for a, b in zip(before, self.meter.cpu_seconds(both), strict=True)]
        # learner and engines work at the same time, but may share cores
        sync_s = max(cpu_seconds[: len(ranks)]) + max(cpu_seconds[len(ranks) :])
        sync_s = pushed.export_s + pushed.load_s if self.meter.on_gpu else sync_s
        print(f"saving {save_s:.2f} + {state_s:.2f} s, sync {sync_s:.2f} s", flush=True)
        return {
            "train_token_s": token_s,
            "optimizer_step_s": step_s,
            "save_bytes_per_s": 6 * parameters / (save_s + state_s),  # bfloat16 model, float32 state
            "sync_bytes_per_s": pushed.bytes / sync_s,
        }


def conversations(model: str, count: int) -> Iterator[tuple[Prompt, list[dict[str, str]]]]:
    """Yields `count` rendered speeches, cycling through the packaged ones."""
    tokenizer = loading.load_tokenizer(loading.resolve(model))
    prompt = load_prompt(Prompts(respond="respond-small"))
    rows = records.read_rows("sample", "pairs")
    for index in range(count):
        messages = prompt_messages(prompt, rows[index % len(rows)]["question"])
        ids = templates.conversation_ids(tokenizer, messages)
        yield Prompt(f"speech-{index}", tuple(ids), seed=1000 * index), messages


def start_actors(options: argparse.Namespace, reward_model: str, meter: Meter) -> Bench:
    """Starts the actors as a run does."""
    cpus = {"cpus": 0.1, "gpus": options.gpus}
    rollouts = Rollouts(**cpus, max_model_len=1024, max_num_seqs=SPEECHES * RESPONSES, kv_cache_gb=options.kv_gb)
    scorers = Scorers(**cpus)
    learners = Learners(**cpus, actors=options.actors, zero_stage=options.zero, micro_batch_tokens=options.micro)
    deadlines = Deadlines(start_s=1800, item_s=1800)
    rollout, scorer = ray.remote(RolloutActor), ray.remote(ScorerActor)
    rendered = list(conversations(options.model, options.actors * SPEECHES))
    return Bench(
        ActorPool(
            "rollout",
            lambda index: rollout.options(**placement.pool_options(rollouts, actor_environment(rollouts))).remote(
                f"rollout-{index}", options.model, rollouts, 0
            ),
            options.actors,
            deadlines,
        ),
        ActorPool(
            "scorer",
            lambda index: scorer.options(**placement.pool_options(scorers)).remote(
                f"scorer-{index}", {"reward": reward_model}, options.model, scorers
            ),
            options.actors,
            deadlines,
        ),
        LearnerGroup(
            WorkerSpec(
                options.model,
                DpoObjective(DpoConfig()),
                learners,
                Optimizer(batch_size=LARGE, schedule="constant"),
                seed=0,
                deadlines=Deadlines(start_s=1800, step_s=1800),
            )
        ),
        {prompt.speech_id: messages for prompt, messages in rendered},
        [prompt for prompt, _ in rendered],
        meter,
    )


def measure_rates(options: argparse.Namespace, meter: Meter) -> tuple[dict[str, float], int]:
    """Measures all rates; returns them and the number of the model's parameters."""
    base = loading.resolve(options.model)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = loading.load_tokenizer(base)
        model = reward_model.new_model(base, tokenizer, "float32", seed=0)
        parameters = model.num_parameters()
        saving.save_loaded(f"{directory}/reward", model, tokenizer, base)
        del model
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        bench = start_actors(options, f"{directory}/reward", meter)
        rates = {"start_s": bench.start()}
        sampling, groups = bench.measure_sampling(options.rounds)
        pairs = [
            PreferencePair(
                g.prompt.speech_id,
                g.prompt.token_ids,
                g.responses[0].token_ids,
                g.responses[1].token_ids,
                (-99.0, -99.0),
            )
            for g in groups
        ]
        rates |= sampling | bench.measure_scoring(options.rounds, groups, pairs)
        rates |= bench.measure_training(options.rounds, pairs, parameters)
        bench.rollouts.close()
        bench.scorers.close()
        bench.learner.close()
        ray.shutdown()
    return {key: float(f"{value:.3g}") for key, value in rates.items()}, parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="this device", help="the device in words")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--actors", type=int, default=2, help="actors of each role, usually one per core or GPU")
    parser.add_argument(
        "--gpus", type=float, default=0.0, help="GPUs of each actor; the actors of all three roles must fit"
    )
    parser.add_argument("--memory-gb", type=float, help="memory of one GPU")
    parser.add_argument("--kv-gb", type=float, default=0.6, help="KV cache of an engine")
    parser.add_argument("--zero", type=int, default=1, help="ZeRO stage of the learner")
    parser.add_argument("--micro", type=int, default=400, help="micro-batch of the learner, tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("profile.yaml"))
    options = parser.parse_args()
    meter = Meter(options.gpus > 0)
    rates, parameters = measure_rates(options, meter)
    profile = {
        "device": options.name,
        "kind": "gpu" if options.gpus else "cpu",
        "estimated": False,
        "memory_gb": options.memory_gb,
        "model": options.model,
        "parameters": parameters,
        **rates,
    }
    options.out.write_text(yaml.safe_dump(profile, sort_keys=False))
    measured = [(seconds, predicted) for _, seconds, predicted in meter.measured]
    ratio = sum(predicted for _, predicted in measured) / sum(seconds for seconds, _ in measured)
    worst = min(min(predicted / seconds, seconds / predicted) for seconds, predicted in measured if seconds > 1)
    print(f"profile: {options.out}, {rates}; the rates predict {100 * ratio:.0f} % of all measured seconds")
    print(
        json.dumps(
            {
                "name": "profile",
                "ours": rates["decode_step_s"],
                "peer": None,
                "ratio": round(worst, 3),
                "bar": BAR,
                "pass": worst >= BAR,
            }
        )
    )


if __name__ == "__main__":
    main()
