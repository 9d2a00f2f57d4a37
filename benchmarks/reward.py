"""Reward training against TRL's RewardTrainer, and scoring against a padded transformers loop.

.venv/bin/python benchmarks/reward.py [--model smollm2-135m] [--pairs sample] [--steps 5] [--texts 64] [--fp32]

Both sides start from the same weights and head, have the same pairs in the same order and the same number of threads,
and alternate, so other load affects both alike. The first turn of each is a warm-up and not counted. The ratios are
medians over turns of our rate to the peer's by wall time, with CPU-seconds beside them. With --fp32 both compute in
float32 and the benchmark fails unless losses and scores agree.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import ray
from alternation import (
    OnDemand,
    Turn,
    alternate,
    check_losses,
    conversations,
    first_pairs,
    format_turns,
    peak,
    result,
    timed,
)

from psyco_ray.config.resources import Learners, Scorers
from psyco_ray.config.training import Deadlines, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, reward_model, saving
from psyco_ray.models.encoding import encode
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.types import PreferencePair, ScoreRequest

BAR = 1.5
BATCH = 8
LEARNING_RATE = 9e-6
TRL_MICRO = 2  # pairs; larger micro-batches have more padding


class Trl(OnDemand):
    """TRL's RewardTrainer, one step per call.

    Its fastest settings on a CPU: no checkpointing, weights and Adam's moments in bfloat16, eager attention. Ours keeps
    float32 master weights, which small updates need.
    """

    def __init__(self, model: str, pairs: list[dict[str, Any]], fp32: bool, threads: int) -> None:
        import datasets
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from trl import RewardConfig, RewardTrainer

        torch.set_num_threads(threads)
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
        self.begin(
            RewardTrainer,
            settings,
            model=AutoModelForSequenceClassification.from_pretrained(
                model, dtype="float32" if fp32 else "bfloat16", attn_implementation="sdpa" if fp32 else "eager"
            ),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(model),
        )


def train(model: str, requests: list[ScoreRequest], options: argparse.Namespace) -> dict[str, Any]:
    """Alternates steps of both trainers."""
    tokenizer = loading.load_tokenizer(Path(model))
    examples = []
    for request in requests:
        encoded = encode(tokenizer, request.messages, request.responses, None)
        examples.append(PreferencePair(request.key, encoded.prompt_ids, *encoded.response_ids))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    spec = WorkerSpec(
        model,
        BradleyTerryObjective(),
        Learners(
            threads=options.threads,
            dtype="float32" if options.fp32 else "bfloat16",
            zero_stage=0 if options.fp32 else 1,
            micro_batch_tokens=1400,  # fewer passes, each of which reads and writes all gradients
        ),
        Optimizer(
            learning_rate=LEARNING_RATE, batch_size=BATCH, betas=(0.9, 0.999), warmup_ratio=0.0, schedule="constant"
        ),
        seed=0,
        deadlines=Deadlines(start_s=600, step_s=600),
    )
    learner = LearnerGroup(spec)
    peer = ray.remote(Trl).options(num_cpus=1).remote(model, conversations(requests), options.fp32, options.threads)
    learner.wait_ready()
    ray.get(peer.ready.remote(), timeout=600)
    batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    ours, peers = alternate(learner, batches, peer)
    memory = ray.get([learner.workers[0].__ray_call__.remote(peak), peer.peak.remote()])
    print(f"peak memory: ours {memory[0]:.2f} GiB, TRL {memory[1]:.2f} GiB")
    learner.close()
    ray.shutdown()
    if options.fp32:
        check_losses(ours, peers)
    return result("reward training", BATCH, ours, peers, BAR)


def score(model: str, requests: list[ScoreRequest], options: argparse.Namespace) -> dict[str, Any]:
    """Alternates scoring all texts on both sides."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dtype = "float32" if options.fp32 else "bfloat16"
    scorer = ScorerActor("scorer", {"reward": model}, None, Scorers(dtype=dtype, threads=options.threads))
    scorer.ready()
    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    scores: dict[str, list[float]] = {}

    def through_actor() -> float:
        [(scored, _)] = scorer.score_many(("reward", tuple(requests)))
        scores["ours"] = [value for result in scored for value in result.values or ()]
        return 0.0

    def padded_loop() -> float:
        texts = [
            tokenizer.apply_chat_template([*request.messages, {"role": "assistant", "content": text}], tokenize=False)
            for request in requests
            for text in request.responses
        ]
        scores["peers"] = []
        for i in range(0, len(texts), options.peer_batch):
            batch = tokenizer(
                texts[i : i + options.peer_batch], padding=True, add_special_tokens=False, return_tensors="pt"
            )
            with torch.inference_mode():
                scores["peers"] += classifier(**batch).logits[:, 0].float().tolist()
        return 0.0

    ours: list[Turn] = []
    peers: list[Turn] = []
    for number in range(options.rounds + 1):
        ours.append(timed(through_actor))
        peers.append(timed(padded_loop))
        print(f"round {number}: {format_turns(ours[-1], peers[-1], 'loop')}")
    gap = max(abs(a - b) for a, b in zip(scores["ours"], scores["peers"], strict=True))
    spread = statistics.pstdev(scores["peers"])
    print(f"scores differ by {gap:.5f} at most, their standard deviation is {spread:.3f}")
    if options.fp32:
        assert gap <= 1e-3, "scores differ from those of transformers"
    return result("reward scoring", len(scores["ours"]), ours, peers, BAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--steps", type=int, default=5, help=f"of {BATCH} pairs")
    parser.add_argument("--texts", type=int, default=64, help="to score")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of scoring all texts")
    parser.add_argument("--peer-batch", type=int, default=8, help="texts of a padded batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp32", action="store_true", help="compute in float32 and compare losses and scores")
    options = parser.parse_args()
    base = loading.resolve(options.model)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reward"
        tokenizer = loading.load_tokenizer(base)
        first = reward_model.new_model(base, tokenizer, "float32", seed=0)
        saving.save_loaded(path, first, tokenizer, base)
        trained = train(str(path), first_pairs(options.pairs, options.steps * BATCH), options)
        scored = score(str(path), first_pairs(options.pairs, options.texts // 2), options)
    print(json.dumps(trained))
    print(json.dumps(scored))


if __name__ == "__main__":
    main()
