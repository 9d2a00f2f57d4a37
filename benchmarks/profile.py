"""How fast this device samples, scores, trains and moves weights: the profile that `psyco-ray plan` forecasts with.

.venv/bin/python benchmarks/profile.py [--name cpu-mine] [--gpus 1] [--model smollm2-135m] [--out profile.yaml]

The real engines, scorers and learner ranks work at a small size, as many of each as are asked for, one role at a time.
On a CPU their CPU-seconds count, so that what else the machine does is left out; on a GPU the time that passes.
`psyco-ray plan JOB.yaml --device profile.yaml` uses the file. The last line says how well the rates give the measured
seconds back.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# the standard library has a module of this file's name too, and workers would find this one before it
sys.path.remove(str(Path(__file__).resolve().parent))
# a token of this run's own, before Ray is imported: it would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import numpy as np
import ray
import scipy.optimize
import yaml

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Learners, Rollouts, Scorers, Sync
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer, Prompts
from psyco_ray.data import tables
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, reward_model
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.types import Group, PreferencePair, Prompt, PromptBatch
from psyco_ray.training import weight_sync

BAR = 0.9
SPEECHES, RESPONSES, MAX_TOKENS = 10, 4, 64  # of an engine's item
SMALL, LARGE = 4, 12  # pairs of an optimizer step


def cpu_seconds(_: Any) -> float:
    return time.process_time()


@dataclass
class Meter:
    """Seconds that actors worked: by their CPU time where they compute on the CPU, else by the clock."""

    on_gpu: bool
    measured: list[tuple[str, float, float]] = field(default_factory=list)  # what, seconds, seconds by the rates

    def take(self, actors: list[Any], work: Callable[[], Any]) -> tuple[Any, float]:
        """What the work gave, and the seconds of the actor that worked longest."""
        before, began = self.spent(actors), time.perf_counter()
        found = work()
        passed = time.perf_counter() - began
        if self.on_gpu:
            return found, passed
        return found, max(b - a for a, b in zip(before, self.spent(actors), strict=True))

    def spent(self, actors: list[Any]) -> list[float]:
        """CPU-seconds of each actor so far."""
        return ray.get([actor.__ray_call__.remote(cpu_seconds) for actor in actors])

    def fit(self, what: str, counts: list[tuple[float, ...]], seconds: list[float]) -> list[float]:
        """Seconds of each thing that was counted, none below 0."""
        found = scipy.optimize.nnls(np.array(counts), np.array(seconds))[0]
        for count, took in zip(counts, seconds, strict=True):
            self.measured.append((what, took, float(np.dot(count, found))))
            print(f"{what}: {took:.2f} s for {count}, {self.measured[-1][2]:.2f} by the rates", flush=True)
        return [float(value) for value in found]


@dataclass
class Bench:
    """The actors, and what they work on."""

    rollouts: ActorPool
    scorers: ActorPool
    learner: LearnerGroup
    messages: dict[str, list[dict[str, str]]]
    prompts: list[Prompt]
    meter: Meter

    def starting(self) -> float:
        """Wait for all actors; the seconds that an engine needs."""
        began = time.perf_counter()
        self.rollouts.wait_ready()
        passed = time.perf_counter() - began
        self.scorers.wait_ready()
        self.learner.wait_ready()
        return passed if self.meter.on_gpu else max(self.meter.spent(self.rollouts.actors))

    def sampling(self, rounds: int) -> tuple[dict[str, float], list[Group]]:
        """Seconds of a prompt's token, of a step of all sequences, and of a token more in it; the last groups."""
        actors = self.rollouts.actors
        items = [
            PromptBatch(str(i), tuple(self.prompts[i * SPEECHES : (i + 1) * SPEECHES])) for i in range(len(actors))
        ]
        counts: list[tuple[float, ...]] = []
        seconds: list[float] = []
        groups: list[Group] = []
        for number in range(rounds + 1):
            for responses, longest in ((1, 1), (1, MAX_TOKENS), (RESPONSES, MAX_TOKENS)):
                requests = [SamplingRequest(item, 0, responses, 1.0, 1.0, longest) for item in items]
                groups, took = self.meter.take(actors, lambda requests=requests: list(self.sampled(requests)))
                if number:  # the first round warms up
                    lengths = [len(r.token_ids) for g in groups for r in g.responses]
                    read = sum(len(g.prompt.token_ids) for g in groups)
                    counts.append((read / len(actors), max(lengths), sum(lengths) / len(actors)))
                    seconds.append(took)
        prompt_s, step_s, token_s = self.meter.fit("sampling", counts, seconds)
        return {"prompt_token_s": prompt_s, "decode_step_s": step_s, "decode_token_s": token_s}, groups

    def sampled(self, requests: list[SamplingRequest]) -> Iterator[Group]:
        """The groups of all requests, as they come."""
        for group, _ in self.rollouts.stream(
            RolloutActor.sample, requests, identity=lambda found: found[0].prompt.speech_id
        ):
            yield group

    def scoring(self, rounds: int, groups: list[Group], pairs: list[PreferencePair]) -> dict[str, float]:
        """Seconds of a token that is scored, and of one that gets its reference log-probability."""
        work: dict[str, list[Any]] = {
            "score": [(group, self.messages[group.prompt.speech_id], ("reward",)) for group in groups],
            "reference": list(pairs),
        }
        tokens = {
            "score": sum(len(g.prompt.token_ids) + sum(len(r.token_ids) for r in g.responses) for g in groups),
            "reference": sum(pair.tokens for pair in pairs),
        }
        found = {}
        methods = {"score": ScorerActor.score, "reference": ScorerActor.reference_logprobs}
        for name, items in work.items():
            seconds = []
            for number in range(rounds + 1):
                actors = self.scorers.actors
                before, began = self.meter.spent(actors), time.perf_counter()
                list(self.scorers.stream(methods[name], items))
                passed = (time.perf_counter() - began) * len(actors)
                # members share the items as they get free, so all of their work counts
                worked = sum(self.meter.spent(actors)) - sum(before)
                if number:
                    seconds.append(passed if self.meter.on_gpu else worked)
            [found[f"{name}_token_s"]] = self.meter.fit(name, [(tokens[name],)] * rounds, seconds)
        return found

    def training(self, rounds: int, pairs: list[PreferencePair], parameters: int) -> dict[str, float]:
        """Seconds of a trained token on one rank, of an optimizer step, and of what is written and sent."""
        sizes = [SMALL, LARGE] * (rounds + 1)  # the first two warm up
        batches = [pairs[:size] for size in sizes]
        ranks = self.learner.workers
        steps = self.learner.train(batches, total_steps=len(batches))
        counts, seconds = [], []
        for number, batch in enumerate(batches):
            _, took = self.meter.take(ranks, lambda: next(steps))
            if number > 1:
                counts.append((sum(pair.tokens for pair in batch) / len(ranks), 1.0))
                seconds.append(took)
        token_s, step_s = self.meter.fit("training", counts, seconds)
        with tempfile.TemporaryDirectory() as directory:
            _, save_s = self.meter.take(ranks, lambda: self.learner.save_model(f"{directory}/model"))
            _, state_s = self.meter.take(ranks, lambda: self.learner.save_state(f"{directory}/state"))
        both = [*ranks, *self.rollouts.actors]
        before = self.meter.spent(both)
        report = weight_sync.push_weights(self.learner, self.rollouts, 1, pairs[0], Sync(max_gap=10.0))
        worked = [b - a for a, b in zip(before, self.meter.spent(both), strict=True)]
        # the learner writes first, then the engines read
        sync_s = max(worked[: len(ranks)]) + max(worked[len(ranks) :])
        sync_s = report.export_s + report.load_s if self.meter.on_gpu else sync_s
        print(f"saving {save_s:.2f} + {state_s:.2f} s, sync {sync_s:.2f} s", flush=True)
        return {
            "train_token_s": token_s,
            "optimizer_step_s": step_s,
            "save_bytes_per_s": 6 * parameters / (save_s + state_s),  # bfloat16 model, float32 state
            "sync_bytes_per_s": report.bytes / sync_s,
        }


def conversations(model: str, count: int) -> Iterator[tuple[Prompt, list[dict[str, str]]]]:
    """The first packaged speeches, rendered, again and again."""
    tokenizer = loading.load_tokenizer(loading.resolve(model))
    prompt = load_prompt(Prompts(respond="respond-small"))
    rows = tables.read_table("sample", "pairs").to_pylist()
    for index in range(count):
        messages = prompt_messages(prompt, rows[index % len(rows)]["question"])
        ids = loading.conversation_ids(tokenizer, messages)
        yield Prompt(f"speech-{index}", tuple(ids), seed=1000 * index), messages


def bench(given: argparse.Namespace, reward_model: str) -> Bench:
    """Start the actors, as a run does."""
    cpus = {"cpus": 0.1, "gpus": given.gpus}
    rollouts = Rollouts(**cpus, max_model_len=1024, max_num_seqs=SPEECHES * RESPONSES, kv_cache_gb=given.kv_gb)
    scorers = Scorers(**cpus)
    learners = Learners(**cpus, actors=given.actors, zero_stage=given.zero, micro_batch_tokens=given.micro)
    deadlines = Deadlines(start_s=1800, item_s=1800)
    rollout, scorer = ray.remote(RolloutActor), ray.remote(ScorerActor)
    found = list(conversations(given.model, given.actors * SPEECHES))
    return Bench(
        ActorPool(
            "rollout",
            lambda index: rollout.options(**placement.pool_options(rollouts, actor_environment(rollouts))).remote(
                f"rollout-{index}", given.model, rollouts, 0
            ),
            given.actors,
            deadlines,
        ),
        ActorPool(
            "scorer",
            lambda index: scorer.options(**placement.pool_options(scorers)).remote(
                f"scorer-{index}", {"reward": reward_model}, given.model, scorers
            ),
            given.actors,
            deadlines,
        ),
        LearnerGroup(
            WorkerSpec(
                given.model,
                DpoObjective(DpoConfig()),
                learners,
                Optimizer(batch_size=LARGE, schedule="constant"),
                seed=0,
                start_s=1800,
                step_s=1800,
            )
        ),
        {prompt.speech_id: messages for prompt, messages in found},
        [prompt for prompt, _ in found],
        Meter(given.gpus > 0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="this device", help="the device, in words")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--actors", type=int, default=2, help="of each role; as many as there are cores or GPUs")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each actor; three roles must fit")
    parser.add_argument("--memory-gb", type=float, help="of one GPU")
    parser.add_argument("--kv-gb", type=float, default=0.6, help="KV cache of an engine")
    parser.add_argument("--zero", type=int, default=1, help="ZeRO stage of the learner")
    parser.add_argument("--micro", type=int, default=400, help="micro-batch of the learner, tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("profile.yaml"))
    given = parser.parse_args()
    base = loading.resolve(given.model)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = loading.load_tokenizer(base)
        first = reward_model.new_model(base, tokenizer, "float32", seed=0)
        parameters = first.num_parameters()
        loading.save(f"{directory}/reward", first.state_dict(), first.config, tokenizer)
        del first
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        real = bench(given, f"{directory}/reward")
        rates = {"start_s": real.starting()}
        sampled, groups = real.sampling(given.rounds)
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
        rates |= sampled | real.scoring(given.rounds, groups, pairs)
        rates |= real.training(given.rounds, pairs, parameters)
        real.rollouts.close()
        real.scorers.close()
        real.learner.close()
        ray.shutdown()
    rounded = {key: float(f"{value:.3g}") for key, value in rates.items()}
    profile = {
        "device": given.name,
        "kind": "gpu" if given.gpus else "cpu",
        "estimated": False,
        "memory_gb": given.memory_gb,
        "model": given.model,
        "parameters": parameters,
        **rounded,
    }
    given.out.write_text(yaml.safe_dump(profile, sort_keys=False))
    ratio = sum(by for _, _, by in real.meter.measured) / sum(took for _, took, _ in real.meter.measured)
    worst = min(min(by / took, took / by) for _, took, by in real.meter.measured if took > 1)
    print(f"profile: {given.out}, {rounded}; the rates give {100 * ratio:.0f} % of all measured seconds back")
    print(
        json.dumps(
            {
                "name": "profile",
                "ours": rounded["decode_step_s"],
                "peer": None,
                "ratio": round(worst, 3),
                "bar": BAR,
                "pass": worst >= BAR,
            }
        )
    )


if __name__ == "__main__":
    main()
