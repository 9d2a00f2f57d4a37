"""Reward training against TRL's RewardTrainer, and scoring against a padded transformers loop.

.venv/bin/python benchmarks/reward.py [--model smollm2-135m] [--pairs sample] [--steps 5] [--texts 64] [--fp32]

Both sides start from the same weights and head, see the same pairs in the same order and have as many threads; they
take turns, so that what else the machine does hits both alike. The first turn of each is a warm-up and not counted.
The ratios are medians over turns of our rate to the peer's, by wall clock; CPU-seconds stand beside them. With --fp32
both compute in float32 and the benchmark ends with an error unless losses and scores agree.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# a token of this run's own, before Ray is imported: it would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import ray

from psyco_ray import config, models, reward
from psyco_ray.data import preferences, speeches
from psyco_ray.encode import encode
from psyco_ray.learner import LearnerGroup
from psyco_ray.losses import BradleyTerry
from psyco_ray.records import Asked, Example
from psyco_ray.scorer import ScorerActor

BAR = 1.5
BATCH = 8
LEARNING_RATE = 9e-6
TRL_MICRO = 2  # pairs; more are padded more


@dataclass(frozen=True)
class Turn:
    """What one turn of a side took, and the loss of its step."""

    wall: float  # seconds
    cpu: float  # CPU-seconds
    loss: float = 0.0  # nats a pair


class Trl:
    """TRL's RewardTrainer; it takes a step when it is told to.

    Its best on a CPU: no checkpointing, weights and Adam's moments in bfloat16, plain attention. Ours keeps float32
    master weights, as small updates need.
    """

    def __init__(self, model: str, pairs: list[dict[str, Any]], fp32: bool, threads: int) -> None:
        import datasets
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
        from trl import RewardConfig, RewardTrainer

        torch.set_num_threads(threads)
        go: queue.Queue[None] = queue.Queue()
        done: queue.Queue[float] = queue.Queue()
        losses: list[float] = []

        class Recording(RewardTrainer):
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
                return loss

        class OnDemand(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                go.get()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.put(statistics.mean(losses))
                losses.clear()

        settings = RewardConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=TRL_MICRO,
            gradient_accumulation_steps=BATCH // TRL_MICRO,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_length=None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Recording(
            model=AutoModelForSequenceClassification.from_pretrained(
                model, dtype="float32" if fp32 else "bfloat16", attn_implementation="sdpa" if fp32 else "eager"
            ),
            args=settings,
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[OnDemand()],
        )
        self._go, self._done = go, done
        threading.Thread(target=trainer.train, daemon=True).start()

    def ready(self) -> None:
        """Answer once the trainer is there."""

    def step(self) -> Turn:
        """Train on the next batch."""
        return timed(self._step)

    def _step(self) -> float:
        self._go.put(None)
        return self._done.get(timeout=600)

    def peak(self) -> float:
        """Peak memory of this process, GiB."""
        return peak(self)


def timed(work: Callable[[], float]) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = work()
    return Turn(time.perf_counter() - wall, time.process_time() - cpu, loss)


def peak(_: Any) -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_seconds(_: Any) -> float:
    return time.process_time()


def train(model: str, asked: list[Asked], given: argparse.Namespace) -> dict[str, Any]:
    """Steps of both trainers by turns."""
    tokenizer = models.load_tokenizer(Path(model))
    examples = []
    for one in asked:
        found = encode(tokenizer, one.messages, one.responses, None)
        examples.append(Example(one.key, found.prompt_ids, *found.response_ids))
    rows = [
        {
            "prompt": list(one.messages),
            **{
                side: [{"role": "assistant", "content": text}]
                for side, text in zip(("chosen", "rejected"), one.responses, strict=True)
            },
        }
        for one in asked
    ]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    learner = LearnerGroup(
        model,
        BradleyTerry(),
        config.Learners(
            threads=given.threads,
            dtype="float32" if given.fp32 else "bfloat16",
            zero_stage=0 if given.fp32 else 1,
            micro_batch_tokens=1400,  # fewer passes, of which each moves all gradients
        ),
        config.Optimizer(
            learning_rate=LEARNING_RATE, batch_size=BATCH, betas=(0.9, 0.999), warmup_ratio=0.0, schedule="constant"
        ),
        seed=0,
        start_s=600,
        step_s=600,
    )
    peer = ray.remote(Trl).options(num_cpus=1).remote(model, rows, given.fp32, given.threads)
    learner.wait_ready()
    ray.get(peer.ready.remote(), timeout=600)
    batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    steps = learner.train(batches, steps=len(batches))
    ours: list[Turn] = []
    theirs: list[Turn] = []
    for number in range(len(batches)):
        before = ray.get(learner.ranks[0].__ray_call__.remote(cpu_seconds))
        began = time.perf_counter()
        loss = next(steps).loss
        wall = time.perf_counter() - began
        ours.append(Turn(wall, ray.get(learner.ranks[0].__ray_call__.remote(cpu_seconds)) - before, loss))
        theirs.append(ray.get(peer.step.remote()))
        print(f"step {number}: {described(ours[-1], theirs[-1], 'TRL')}, loss {loss:.5f} and {theirs[-1].loss:.5f}")
    memory = ray.get([learner.ranks[0].__ray_call__.remote(peak), peer.peak.remote()])
    print(f"peak memory: ours {memory[0]:.2f} GiB, TRL {memory[1]:.2f} GiB")
    learner.close()
    ray.shutdown()
    if given.fp32:
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert abs(a.loss - b.loss) <= 1e-3 * b.loss, f"step {step}: loss {a.loss} is not TRL's {b.loss}"
    return result("reward training", BATCH, ours, theirs)


def score(model: str, asked: list[Asked], given: argparse.Namespace) -> dict[str, Any]:
    """All texts scored by both, by turns."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dtype = "float32" if given.fp32 else "bfloat16"
    scorer = ScorerActor("scorer", {"reward": model}, None, config.Scorers(dtype=dtype, threads=given.threads))
    scorer.ready()
    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: dict[str, list[float]] = {}

    def through_actor() -> float:
        [(scored, _)] = scorer.score_many(("reward", tuple(asked)))
        found["ours"] = [value for one in scored for value in one.values or ()]
        return 0.0

    def padded_loop() -> float:
        texts = [
            tokenizer.apply_chat_template([*one.messages, {"role": "assistant", "content": text}], tokenize=False)
            for one in asked
            for text in one.responses
        ]
        found["theirs"] = []
        for i in range(0, len(texts), given.peer_batch):
            batch = tokenizer(
                texts[i : i + given.peer_batch], padding=True, add_special_tokens=False, return_tensors="pt"
            )
            with torch.inference_mode():
                found["theirs"] += classifier(**batch).logits[:, 0].float().tolist()
        return 0.0

    ours: list[Turn] = []
    theirs: list[Turn] = []
    for number in range(given.rounds + 1):
        ours.append(timed(through_actor))
        theirs.append(timed(padded_loop))
        print(f"round {number}: {described(ours[-1], theirs[-1], 'loop')}")
    gap = max(abs(a - b) for a, b in zip(found["ours"], found["theirs"], strict=True))
    spread = statistics.pstdev(found["theirs"])
    print(f"scores differ by {gap:.5f} at most, their standard deviation is {spread:.3f}")
    if given.fp32:
        assert gap <= 1e-3, "scores are not those of transformers"
    return result("reward scoring", len(found["ours"]), ours, theirs)


def described(ours: Turn, theirs: Turn, peer: str) -> str:
    return (
        f"ours {ours.wall:.2f} s ({ours.cpu:.2f} CPU), {peer} {theirs.wall:.2f} s ({theirs.cpu:.2f} CPU), "
        f"ratio {theirs.wall / ours.wall:.2f} ({theirs.cpu / ours.cpu:.2f} by CPU)"
    )


def result(name: str, count: int, ours: list[Turn], theirs: list[Turn]) -> dict[str, Any]:
    """The last line's facts, of all turns but the first."""
    pairs = list(zip(ours, theirs, strict=True))[1:]
    ratio = statistics.median(b.wall / a.wall for a, b in pairs)
    print(f"{name}: {statistics.median(b.cpu / a.cpu for a, b in pairs):.2f} times as fast by CPU-seconds")
    return {
        "name": name,
        "ours": round(statistics.median(count / a.wall for a, _ in pairs), 2),
        "peer": round(statistics.median(count / b.wall for _, b in pairs), 2),
        "ratio": round(ratio, 3),
        "bar": BAR,
        "pass": ratio >= BAR,
    }


def asked_of(pairs: str, count: int) -> list[Asked]:
    """The first pairs of a file, chosen before rejected."""
    prompt = speeches.load_prompt(config.Prompts())
    rows = preferences.read(pairs).table.slice(0, count).to_pylist()
    return [
        Asked(
            row["pair_id"],
            tuple(preferences.conversation(row["form"], row["asked"], prompt)),
            (row["chosen"], row["rejected"]),
        )
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--steps", type=int, default=5, help=f"of {BATCH} pairs")
    parser.add_argument("--texts", type=int, default=64, help="to score")
    parser.add_argument("--rounds", type=int, default=3, help="of scoring all texts")
    parser.add_argument("--peer-batch", type=int, default=8, help="texts of a padded batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp32", action="store_true", help="compute in float32 and compare losses and scores")
    given = parser.parse_args()
    base = models.resolve(given.model)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reward"
        tokenizer = models.load_tokenizer(base)
        first = reward.new_model(base, tokenizer, "float32", seed=0)
        models.save(path, first.state_dict(), first.config, tokenizer)
        trained = train(str(path), asked_of(given.pairs, given.steps * BATCH), given)
        scored = score(str(path), asked_of(given.pairs, given.texts // 2), given)
    print(json.dumps(trained))
    print(json.dumps(scored))


if __name__ == "__main__":
    main()
