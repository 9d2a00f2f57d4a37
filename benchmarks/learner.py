"""DPO training against TRL's DPOTrainer: pairs/s and peak memory.

.venv/bin/python benchmarks/learner.py [--pairs sample] [--steps 8] [--fp32] [--prompt 512 --response 64]

Our learner of one rank and TRL's trainer take steps by turns over the same pairs in the same order, with as many
threads. Both have the reference's log-probabilities beforehand, without gradient checkpointing. The first step of each
is a warm-up and not counted. Ratios are medians over steps, by wall clock; CPU-seconds stand beside them. Ours runs as
in a job, with what its actors' environment sets; TRL's in a plain environment.

What each side holds, by `--dtype` (default: bfloat16 where this CPU multiplies it, float32 elsewhere):
  float32    both: weights, gradients and Adam's moments in float32. Losses must agree within 1e-3 (`--fp32` the same).
  bfloat16   ours: weights and gradients in bfloat16, master weights and moments in float32 (ZeRO-2).
             TRL, `--peer autocast`: weights, gradients and moments in float32, matrix products in bfloat16;
             `--peer pure`: everything in bfloat16, which loses small updates and is TRL's fastest and smallest.
With `--prompt` or `--response` the pairs are made up, with as many tokens each.
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

# a token of this run's own, before Ray is imported: it would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import ray
from sides import OnDemand, asked_of, by_turns, check_losses, conversations, peak, result

from psyco_ray.config.resources import Learners, fast_dtype
from psyco_ray.config.training import DpoConfig, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading
from psyco_ray.run.types import PreferencePair, ScoreRequest

SPEED_BAR, MEMORY_BAR = 2.0, 0.7
LEARNING_RATE = 5e-7
BETAS = (0.9, 0.999)  # TRL's default


class Trl(OnDemand):
    """TRL's DPOTrainer."""

    def __init__(self, model: str, pairs: list[dict[str, Any]], given: argparse.Namespace) -> None:
        import datasets
        import torch
        from transformers import AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        torch.set_num_threads(given.threads)
        pure = given.dtype == "bfloat16" and given.peer == "pure"
        settings = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=given.dtype == "bfloat16" and not pure,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=given.peer_micro,
            gradient_accumulation_steps=given.batch // given.peer_micro,
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
                "attn_implementation": given.peer_attention,
            },
        )
        self.begin(
            DPOTrainer,
            settings,
            model=model,
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(model),
        )


def train(model: str, asked: list[ScoreRequest], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of both by turns; what is to be printed of speed and of memory."""
    tokenizer = loading.load_tokenizer(Path(model))
    examples = [example(tokenizer, one) for one in asked]
    print(f"{len(examples)} pairs of {sum(e.tokens for e in examples) / len(examples):.0f} tokens", flush=True)
    settings = Learners(
        threads=given.threads,
        dtype=given.dtype,
        zero_stage=0 if given.dtype == "float32" else 2,
        micro_batch_tokens=given.micro,
    )
    spec = WorkerSpec(
        model,
        DpoObjective(DpoConfig()),
        settings,
        Optimizer(
            learning_rate=LEARNING_RATE, batch_size=given.batch, betas=BETAS, warmup_ratio=0.0, schedule="constant"
        ),
        seed=0,
        start_s=600,
        step_s=3600,
    )
    learner = LearnerGroup(spec)
    learner.wait_ready()
    examples = [replace(e, reference=v) for e, v in zip(examples, learner.evaluate_pairs(examples), strict=True)]
    peer = ray.remote(Trl).options(num_cpus=given.threads).remote(model, conversations(asked), given)
    ray.get(peer.ready.remote(), timeout=3600)
    batches = [examples[i : i + given.batch] for i in range(0, len(examples), given.batch)]
    ours, theirs = by_turns(learner, batches, peer)
    memory = ray.get([learner.workers[0].__ray_call__.remote(peak), peer.peak.remote()])
    learner.close()
    if given.dtype == "float32":
        check_losses(ours, theirs)
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
        result("learner", given.batch, ours, theirs, SPEED_BAR),
    ]


def example(tokenizer: Any, one: ScoreRequest) -> PreferencePair:
    """A pair split where TRL splits it: before what the assistant's turn adds, all of which is trained."""
    prompt = loading.conversation_ids(tokenizer, list(one.messages))
    whole = [
        loading.conversation_ids(tokenizer, [*one.messages, {"role": "assistant", "content": text}])
        for text in one.responses
    ]
    assert all(ids[: len(prompt)] == prompt for ids in whole), "the template writes a prompt as it writes it alone"
    return PreferencePair(one.key, tuple(prompt), *(tuple(ids[len(prompt) :]) for ids in whole))


def made_up(tokenizer: Any, count: int, prompt: int, response: int) -> list[ScoreRequest]:
    """Pairs of random words, with as many tokens in each prompt and in each response, template included."""
    rng = random.Random(0)
    vocabulary = tokenizer.get_vocab()  # made anew at each call
    words = [
        token[1:]
        for token in sorted(vocabulary)
        if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha() and token[1:] in vocabulary
    ]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    bare = example(tokenizer, ScoreRequest("", ({"role": "user", "content": "a"},), ("a", "a")))
    around, after = len(bare.prompt_ids) - 1, len(bare.chosen_ids) - 1
    found = []
    for number in range(count):
        messages = ({"role": "user", "content": text(prompt - around)},)
        found.append(ScoreRequest(str(number), messages, (text(response - after), text(response - after))))
        made = example(tokenizer, found[-1])
        lengths = (len(made.prompt_ids), len(made.chosen_ids), len(made.rejected_ids))
        assert lengths == (prompt, response, response), f"{lengths} tokens were made"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--prompt", type=int, help="tokens of made-up prompts")
    parser.add_argument("--response", type=int, help="tokens of made-up responses")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--fp32", dest="dtype", action="store_const", const="float32")
    parser.add_argument("--micro", type=int, default=300, help="our micro-batch, tokens")
    parser.add_argument("--peer", choices=("autocast", "pure"), default="autocast")
    parser.add_argument("--peer-micro", type=int, default=2, help="TRL's micro-batch, pairs")
    parser.add_argument("--peer-attention", default="sdpa", help="or eager")
    given = parser.parse_args()
    given.dtype = given.dtype or fast_dtype({})
    model = loading.resolve(given.model)
    count = given.steps * given.batch
    if given.prompt or given.response:
        tokenizer = loading.load_tokenizer(model)
        asked = made_up(tokenizer, count, given.prompt or 64, given.response or 256)
    else:
        asked = asked_of(given.pairs, count)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    lines = train(str(model), asked, given)
    ray.shutdown()
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
