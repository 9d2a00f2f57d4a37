"""Training a Bradley-Terry reward model on preference pairs (paper §4.1)."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

from psyco_ray import models, placement
from psyco_ray.config import Job
from psyco_ray.crew import show_steps
from psyco_ray.data import speeches as speech_data
from psyco_ray.evaluate import stats
from psyco_ray.learner import LearnerGroup
from psyco_ray.ledger import Ledger, key_of
from psyco_ray.logprobs import branch
from psyco_ray.losses import BradleyTerry
from psyco_ray.records import Example
from psyco_ray.telemetry import Telemetry


def train_reward(jobs: dict[str, Job], ledger: Ledger, telemetry: Telemetry) -> dict[str, dict[str, Any]]:
    """Train reward models side by side, each under its name: on the pairs whose speeches are not held out.

    Returns:
        Each one's record: accuracy on the held-out pairs with its interval, losses, sizes.

    Raises:
        ValueError: the pairs or the model do not do, or the loss became NaN.
    """
    missing = {name: job for name, job in jobs.items() if ledger.record(name) is None}
    for job in missing.values():
        phase = placement.reward_phase(job, groups=len(missing))
        placement.check("reward training", phase, placement.cluster_nodes())
    prepared = {name: (job, examples(job), _learner(job, name)) for name, job in missing.items()}
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(prepared)))
    running = [pool.submit(_train, name, *parts, ledger, telemetry) for name, parts in prepared.items()]
    try:
        for one in concurrent.futures.as_completed(running):
            one.result()
    finally:
        for _, _, learner in prepared.values():
            learner.close()
        pool.shutdown(wait=False)
    return {name: ledger.record(name) or {} for name in jobs}


def _learner(job: Job, name: str) -> LearnerGroup:
    return LearnerGroup(
        job.model,
        BradleyTerry(),
        job.reward.learners,
        job.reward.optimizer,
        seed=int(key_of(job.seed, name), 16) % 2**31,
        start_s=job.deadlines.start_s,
        step_s=job.deadlines.step_s,
    )


def _train(
    name: str,
    job: Job,
    parts: tuple[list[Example], list[Example]],
    learner: LearnerGroup,
    ledger: Ledger,
    telemetry: Telemetry,
) -> None:
    """Train one reward model, test it on the held-out pairs, save and record it."""
    began = time.time()
    train, dev = parts
    learner.wait_ready()
    telemetry.say(f"{name}: {len(train)} pairs to train on, {len(dev)} held out")
    steps = list(show_steps(learner.train(train, seed=job.seed), telemetry, name))
    margins = [chosen - rejected for chosen, rejected in learner.values(dev)]
    right = sum(margin > 0 for margin in margins)
    learner.save_model(ledger.path(name))
    telemetry.say(f"{name}: {right} of {len(dev)} held-out pairs in the right order")
    ledger.finish(
        name,
        began,
        pairs=len(train),
        tokens=sum(step.tokens for step in steps),
        heldout_pairs=len(dev),
        accuracy=right / len(dev) if dev else None,
        accuracy_ci95=stats.wilson(right, len(dev)),
        steps=[{"loss": s.loss, "lr": s.learning_rate, "grad_norm": s.grad_norm, **s.metrics} for s in steps],
    )


def examples(job: Job) -> tuple[list[Example], list[Example]]:
    """The job's pairs as token ids: those to train on (of the wanted half), and the first held-out ones.

    Raises:
        ValueError: a wrong file, or nothing to train on.
    """
    prompt = speech_data.load_prompt(job.prompts)
    tokenizer = models.load_tokenizer(models.resolve(job.model))
    train: list[Example] = []
    dev: list[Example] = []
    rows = sorted(speech_data.load_pairs(job.data), key=lambda row: speech_data.speech_id(row["question"]))
    for row in rows:
        speech = row["question"]
        split = speech_data.split_of(row, speech, job.data.dev_share)
        if split == "test":
            continue
        held_out = split == "dev"
        if not held_out and job.reward.half not in (None, speech_data.half(speech)):
            continue
        asked = speech_data.messages(prompt, speech)
        sides = [
            models.conversation_ids(tokenizer, [*asked, {"role": "assistant", "content": row[side]}])
            for side in ("chosen", "rejected")
        ]
        shared, (chosen, rejected) = branch(sides)
        example = Example(row["prefID"], tuple(shared), tuple(chosen), tuple(rejected))
        (dev if held_out else train).append(example)
    if not train:
        raise ValueError(f"pairs file {job.data.pairs} leaves no pair to train on; look at data.dev_share")
    return train, dev[: job.evaluation.speeches]
