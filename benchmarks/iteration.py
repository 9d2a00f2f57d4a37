"""Wall time of one iteration with running actors, against separate scripts.

.venv/bin/python benchmarks/iteration.py [--speeches 16 40] [--rounds 2] [KEY=VALUE ...]

The demo's job (`jobs/demo.yaml`, with overrides of it) without evaluation: sample, score, reference, train, sync; the
policy of the iteration before is saved meanwhile. Ours has running actors, as in every iteration but a run's first;
one uncounted iteration goes before. The peer is `scripted.py`: vLLM, transformers and TRL in three processes one
after another, each of which loads its models and uses all cores. It has the same speeches, base model, reward model
(with a random head, which takes the same time), engine and optimizer settings. Ours stops before the peer starts, so
each has the whole machine. Both are measured at two numbers of speeches, alternating; `ratio` is the peer's seconds
over ours at the larger one, medians over rounds.

The peer's fast settings: one engine with the KV cache and sequences of all our engines, in-process, not compiled, with
Intel's OpenMP (`--peer-omp gnu`: without); no gradient checkpointing, the reference computed once, the policy saved in
bfloat16. `--peer-dtype`, `--peer-micro` and `--peer-attention` are TRL's. Measure on a quiet machine: under other load
the threads of a script wait for each other, while actors with one thread do not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import psutil
import ray

from psyco_ray.config import job_file
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import fast_dtype
from psyco_ray.config.training import Job
from psyco_ray.data.speech_rows import draw, train_and_dev
from psyco_ray.data.speeches import prepare
from psyco_ray.models import loading, reward_model, saving
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import actor_environment
from psyco_ray.run import ray_session
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.training.orchestrator import Orchestrator
from psyco_ray.training.run_state import RunState

BAR = 3.0 if fast_dtype({}) == "bfloat16" else 2.2
STAGES = ("sample", "score", "train")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Iteration:
    """One iteration of a side."""

    speeches: int
    pairs: int
    wall: float  # seconds
    cpu: float  # CPU-seconds


Draws = list[list[dict[str, Any]]]
"""The speeches of each iteration."""


def ours(job: Job, sizes: list[int], rounds: int) -> tuple[list[Iteration], Draws]:
    """Runs iterations with running actors, alternating the numbers of speeches, after one that is not counted."""
    start = time.perf_counter()
    ray_session.connect(None)
    ledger = Ledger(job, resume=False)
    telemetry = Telemetry(job, ledger)
    iterations: list[Iteration] = []
    train, _ = train_and_dev(ledger.table("speeches", SPEECHES, lambda: prepare(job)))
    counts = [min(sizes), *sizes * rounds]
    picks = draw(len(train), max(counts), len(counts), job.seed)
    draws = [list(train[drawn[:count]]) for count, drawn in zip(counts, picks, strict=True)]
    with Orchestrator(job, ledger, telemetry, RunState(job, ledger)) as orchestrator:
        orchestrator.wait_ready()
        print(f"ours: start {time.perf_counter() - start:.1f} s, once for all iterations", flush=True)
        for iteration, chosen in enumerate(draws, 1):
            before, moments = cpu_seconds(), [time.perf_counter()]
            paired = orchestrator.sample_pairs(iteration, chosen)
            moments.append(time.perf_counter())
            orchestrator.train(iteration, paired)
            moments.append(time.perf_counter())
            orchestrator.sync_weights()
            moments.append(time.perf_counter())
            iterations.append(Iteration(len(chosen), len(paired), moments[-1] - moments[0], cpu_seconds() - before))
            parts = [b - a for a, b in itertools.pairwise(moments)]
            named = zip(("sample, score and reference", "train", "sync"), parts, strict=True)
            print_iteration(
                "ours" if iteration > 1 else "ours (not counted)", iterations[-1], [f"{n} {s:.1f} s" for n, s in named]
            )
    telemetry.close()
    ray.shutdown()
    ledger.close()
    return iterations[1:], draws[1:]


def scripts(job: Job, reward_model: str, draws: Draws, options: argparse.Namespace) -> list[Iteration]:
    """Runs the same iterations as three processes each."""
    iterations: list[Iteration] = []
    prompt = load_prompt(job.prompts)
    with tempfile.TemporaryDirectory() as directory:
        settings = settings_of(job, reward_model, Path(directory), options)
        for number, rows in enumerate(draws):
            settings["conversations"] = [prompt_messages(prompt, row["speech"]) for row in rows]
            settings["trained"] = f"{directory}/policy-{number}"
            Path(directory, "settings.json").write_text(json.dumps(settings))
            before, began, parts = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), []
            for stage in STAGES:
                start, work = run_script(stage, f"{directory}/settings.json", environment_of(stage, job, options))
                parts.append(f"{stage}: start {start:.1f} s, work {work:.1f} s")
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            pair_count = len(Path(settings["pairs"]).read_text().splitlines())
            iterations.append(Iteration(len(rows), pair_count, wall, cpu))
            print_iteration("scripts", iterations[-1], parts)
            settings["policy"] = settings["trained"]
    return iterations


def settings_of(job: Job, reward_model: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The job's settings by the names of vLLM, transformers and TRL, for `scripted.py`."""
    optimizer, engines, base = job.dpo.optimizer, job.rollouts, str(loading.resolve(job.model))
    assert optimizer.schedule == "constant", "TRL has a constant learning rate"
    pure = options.peer_dtype == "bfloat16"
    return {
        "base": base,
        "policy": base,
        "reward": reward_model,
        "sampled": str(directory / "sampled.jsonl"),
        "pairs": str(directory / "pairs.jsonl"),
        "threads": options.threads,
        "responses": job.sampling.responses,
        "temperature": job.sampling.temperature,
        "max_tokens": job.sampling.max_tokens,
        "engine": {
            "dtype": engines.dtype,
            "max_model_len": engines.max_model_len,
            "max_num_seqs": engines.max_num_seqs * engines.actors,
            "kv_cache_memory_bytes": int(engines.kv_cache_gb * engines.actors * 2**30),
            "block_size": 32,
            "enforce_eager": engines.enforce_eager,
            "enable_chunked_prefill": False,  # with it, seeds crash vLLM on a CPU
            "max_num_batched_tokens": max(4096, engines.max_model_len),
            "seed": job.seed,
        },
        "score_dtype": job.scorers.dtype,
        "score_batch": options.score_batch,
        "trl": {
            "output_dir": str(directory / "trl"),
            "use_cpu": True,
            "bf16": options.peer_dtype == "autocast",
            "beta": job.dpo.beta,
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "per_device_train_batch_size": options.peer_micro,
            "gradient_accumulation_steps": optimizer.batch_size // options.peer_micro,
            "num_train_epochs": optimizer.epochs,
            "learning_rate": optimizer.learning_rate,
            "lr_scheduler_type": "constant",
            "adam_beta1": optimizer.betas[0],
            "adam_beta2": optimizer.betas[1],
            "weight_decay": optimizer.weight_decay,
            "max_grad_norm": optimizer.max_grad_norm,
            "max_length": None,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "model_init_kwargs": {
                "dtype": "bfloat16" if pure else "float32",
                "attn_implementation": options.peer_attention,
            },
        },
    }


def environment_of(stage: str, job: Job, options: argparse.Namespace) -> dict[str, str]:
    """The environment of a script: its threads, and for vLLM the environment of our engines."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    if stage == "sample":
        environment |= {**placement.actor_environment(job.rollouts), **actor_environment(job.rollouts)}
        environment["OMP_NUM_THREADS"] = str(options.threads)
    if options.peer_omp == "intel":
        environment["LD_PRELOAD"] = str(Path(sys.prefix) / "lib" / "libiomp5.so")
    return environment


def run_script(stage: str, settings: str, variables: dict[str, str]) -> tuple[float, float]:
    """Runs a script; returns the seconds until its models are loaded and from then to its end."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scripted.py"), stage, settings]
    with tempfile.TemporaryDirectory() as cache:  # a new cache: TRL must not reuse reference log-probabilities
        start = time.time()
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**variables, "HF_DATASETS_CACHE": cache}
        )
        ended = time.time()
    if process.returncode:
        sys.exit(f"{stage} failed:\n{process.stderr[-3000:]}")
    loaded = json.loads(process.stdout.splitlines()[-1])["loaded"]
    return loaded - start, ended - loaded


def cpu_seconds() -> float:
    """CPU-seconds of this process and its living children."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [this, *this.children(recursive=True)])


def print_iteration(side: str, iteration: Iteration, parts: list[str]) -> None:
    """Prints an iteration in a line."""
    print(
        f"{side}: {iteration.speeches} speeches, {iteration.pairs} pairs: {iteration.wall:.1f} s "
        f"({iteration.cpu:.1f} CPU): {'; '.join(parts)}",
        flush=True,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the demo's iteration on both sides."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reward"
        # the scripts rank cut responses like the others, and a round of TRL knows no schedule over a run
        ours_alike = [f"run_dir={directory}/run", f"scorers.reward_model={path}", "sampling.unfinished=allow"]
        ours_alike += ["dpo.optimizer.schedule=constant", "dpo.schedule_over=iteration"]
        overrides = [*ours_alike, *options.overrides]
        job = job_file.load_as(Job, ROOT / "jobs" / "demo.yaml", overrides)
        base = loading.resolve(job.model)
        tokenizer = loading.load_tokenizer(base)
        first = reward_model.new_model(base, tokenizer, "float32", seed=0)
        saving.save_loaded(path, first, tokenizer, base)
        del first
        sizes = sorted(options.speeches)
        our_iterations, draws = ours(job, sizes, options.rounds)
        peer_iterations = scripts(job, str(path), draws, options)
    a, b = fit_line("ours", our_iterations), fit_line("scripts", peer_iterations)
    if b[1] >= a[1]:
        print("a further speech takes the scripts no less time: they never catch up")
    else:
        print(f"the scripts catch up at {(b[0] - a[0]) / (a[1] - b[1]):.0f} speeches an iteration, by these lines")
    seconds = [median(side, sizes[-1]) for side in (our_iterations, peer_iterations)]
    cpu = [
        statistics.median(iteration.cpu for iteration in side if iteration.speeches == sizes[-1])
        for side in (our_iterations, peer_iterations)
    ]
    print(f"{sizes[-1]} speeches by CPU-seconds: ours {cpu[0]:.1f}, scripts {cpu[1]:.1f}, ratio {cpu[1] / cpu[0]:.2f}")
    ratio = seconds[1] / seconds[0]
    facts = {"ours": round(seconds[0], 2), "peer": round(seconds[1], 2), "ratio": round(ratio, 3)}
    return {"name": "iteration", **facts, "bar": BAR, "pass": ratio >= BAR}


def median(iterations: list[Iteration], speeches: int) -> float:
    """Median seconds of the iterations with this number of speeches."""
    return statistics.median(iteration.wall for iteration in iterations if iteration.speeches == speeches)


def fit_line(side: str, iterations: list[Iteration]) -> tuple[float, float]:
    """Fits fixed seconds and seconds per speech through both sizes."""
    few, many = (choose(iteration.speeches for iteration in iterations) for choose in (min, max))
    each = (median(iterations, many) - median(iterations, few)) / (many - few)
    fixed = median(iterations, few) - each * few
    print(f"{side}: {fixed:.1f} s and {each:.3f} s a speech", flush=True)
    return fixed, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, nargs=2, default=[16, 40], help="speeches of an iteration, two numbers")
    parser.add_argument("--rounds", type=int, default=2, help="iterations per number")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each script")
    parser.add_argument("--score-batch", type=int, default=8, help="texts of a padded batch")
    best = "autocast" if fast_dtype({}) == "bfloat16" else "float32"
    parser.add_argument("--peer-dtype", choices=("autocast", "bfloat16", "float32"), default=best)
    parser.add_argument("--peer-micro", type=int, default=2, help="TRL's micro-batch, pairs")
    parser.add_argument("--peer-attention", default="sdpa", help="or eager")
    parser.add_argument("--peer-omp", choices=("intel", "gnu"), default="intel")
    parser.add_argument("overrides", nargs="*", help="overrides of the demo's job")
    options = parser.parse_args()
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
