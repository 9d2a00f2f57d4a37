"""DPO training against TRL's DPOTrainer: pairs/s and peak memory.

.venv/bin/python benchmarks/learner.py [--pairs sample] [--steps 8] [--fp32] [--prompt 512 --response 64]

Our learner with one worker and TRL's trainer alternate steps on the same pairs in the same order, with the same
number of threads. Both have precomputed reference log-probabilities and no gradient checkpointing. The first step of
each is a warm-up and not counted. Ratios are medians over steps by wall time, with CPU-seconds beside them. Ours runs
in the environment of a job's actors, TRL's in a plain one.

The dtypes of each side, by `--dtype` (default: bfloat16 on a CPU that has it, else float32):
  float32    both: weights, gradients and Adam's moments in float32. Losses must agree within 1e-3 (`--fp32` the same).
  bfloat16   ours: weights and gradients in bfloat16, master weights and moments in float32 (ZeRO-2).
             TRL, `--peer autocast`: weights, gradients and moments in float32, matrix products in bfloat16;
             `--peer pure`: everything in bfloat16, which loses small updates and is TRL's fastest and smallest.
With `--prompt` or `--response` the pairs are random words with this many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import ray
from alternation import OnDemand, alternate, check_losses, conversations, first_pairs, peak, result

from psyco_ray.config.resources import Learners, fast_dtype
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, templates
from psyco_ray.run.types import PreferencePair, ScoreRequest

SPEED_BAR, MEMORY_BAR = 2.0, 0.7
LEARNING_RATE = 5e-7
BETAS = (0.9, 0.999)  # TRL's default


class Trl(OnDemand):
    """TRL's DPOTrainer."""

    def __init__(self, model: str, pairs: list[dict[str, Any]], options: argparse.Namespace) -> None:
        import datasets
        import torch
        from transformers import AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        torch.set_num_threads(options.threads)
        pure = options.dtype == "bfloat16" and options.peer == "pure"
        settings = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=options.dtype == "bfloat16" and not pure,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=options.peer_micro,
            gradient_accumulation_steps=options.batch // options.peer_micro,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            model_init_kwargs={
                "dtype": "bfloat16" if pure else "float32",
                "attn_implementation": options.peer_attention,
            },
        )
        self.begin(
            DPOTrainer,
            settings,
            model=model,
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(model),
        )


def train(model: str, requests: list[ScoreRequest], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Alternates steps of both sides; returns the result lines of speed and memory."""
    tokenizer = loading.load_tokenizer(Path(model))
    examples = [example(tokenizer, request) for request in requests]
    print(f"{len(examples)} pairs of {sum(e.tokens for e in examples) / len(examples):.0f} tokens", flush=True)
    settings = Learners(
        threads=options.threads,
        dtype=options.dtype,
        zero_stage=0 if options.dtype == "float32" else 2,
        micro_batch_tokens=options.micro,
    )
    spec = WorkerSpec(
        model,
        DpoObjective(DpoConfig()),
        settings,
        Optimizer(
            learning_rate=LEARNING_RATE, batch_size=options.batch, betas=BETAS, warmup_ratio=0.0, schedule="constant"
        ),
        seed=0,
        deadlines=Deadlines(start_s=600, step_s=3600),
    )
    learner = LearnerGroup(spec)
    learner.wait_ready()
    examples = [replace(e, reference=v) for e, v in zip(examples, learner.evaluate_pairs(examples), strict=True)]
    peer = ray.remote(Trl).options(num_cpus=options.threads).remote(model, conversations(requests), options)
    ray.get(peer.ready.remote(), timeout=3600)
    batches = [examples[i : i + options.batch] for i in range(0, len(examples), options.batch)]
    ours, peers = alternate(learner, batches, peer)
    memory = ray.get([learner.workers[0].__ray_call__.remote(peak), peer.peak.remote()])
    learner.close()
    if options.dtype == "float32":
        check_losses(ours, peers)
    share = memory[0] / memory[1]
    return [
        {
            "name": "learner memory",
            "ours": round(memory[0], 2),
            "peer": round(memory[1], 2),
            "ratio": round(share, 3),
            "bar": MEMORY_BAR,
            "pass": share <= MEMORY_BAR,
        },
        result("learner", options.batch, ours, peers, SPEED_BAR),
    ]


def example(tokenizer: Any, request: ScoreRequest) -> PreferencePair:
    """Splits a pair where TRL does: before the tokens of the assistant's turn, all of which are trained."""
    prompt = templates.conversation_ids(tokenizer, list(request.messages))
    whole = [
        templates.conversation_ids(tokenizer, [*request.messages, {"role": "assistant", "content": text}])
        for text in request.responses
    ]
    assert all(ids[: len(prompt)] == prompt for ids in whole), (
        "the template must render a prompt independently of the response"
    )
    return PreferencePair(request.key, tuple(prompt), *(tuple(ids[len(prompt) :]) for ids in whole))


def random_pairs(tokenizer: Any, count: int, prompt: int, response: int) -> list[ScoreRequest]:
    """Pairs of random words with exactly this many tokens per prompt and response, template included."""
    rng = random.Random(0)
    vocabulary = tokenizer.get_vocab()  # rebuilt at each call
    words = [
        token[1:]
        for token in sorted(vocabulary)
        if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha() and token[1:] in vocabulary
    ]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    bare = example(tokenizer, ScoreRequest("", ({"role": "user", "content": "a"},), ("a", "a")))
    around, after = len(bare.prompt_ids) - 1, len(bare.chosen_ids) - 1
    pairs = []
    for number in range(count):
        messages = ({"role": "user", "content": text(prompt - around)},)
        pairs.append(ScoreRequest(str(number), messages, (text(response - after), text(response - after))))
        pair = example(tokenizer, pairs[-1])
        lengths = (len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids))
        assert lengths == (prompt, response, response), f"got {lengths} tokens"
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--prompt", type=int, help="tokens of random prompts")
    parser.add_argument("--response", type=int, help="tokens of random responses")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="pairs per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--fp32", dest="dtype", action="store_const", const="float32")
    parser.add_argument("--micro", type=int, default=300, help="our micro-batch, tokens")
    parser.add_argument("--peer", choices=("autocast", "pure"), default="autocast")
    parser.add_argument("--peer-micro", type=int, default=2, help="TRL's micro-batch, pairs")
    parser.add_argument("--peer-attention", default="sdpa", help="or eager")
    options = parser.parse_args()
    options.dtype = options.dtype or fast_dtype({})
    model = loading.resolve(options.model)
    count = options.steps * options.batch
    if options.prompt or options.response:
        tokenizer = loading.load_tokenizer(model)
        requests = random_pairs(tokenizer, count, options.prompt or 64, options.response or 256)
    else:
        requests = first_pairs(options.pairs, count)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    lines = train(str(model), requests, options)
    ray.shutdown()
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
