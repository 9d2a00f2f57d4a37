"""Wall time of one iteration with the actors up, against what one would script today.

.venv/bin/python benchmarks/iteration.py [--speeches 16 40] [--rounds 2] [KEY=VALUE ...]

The demo's job (`jobs/demo.yaml`, with overrides of it) without evaluation: sample, score, reference, train, save, sync.
Ours has its actors up, as every iteration but the first; the first one here is not counted. The peer is `scripted.py`:
vLLM, transformers and TRL in three processes one after the other, each of which loads its models and has all cores as
threads. It has the same speeches, base model, reward model (with a random head: the time is the same), engine settings
and optimizer settings. Ours is closed before the peer begins, so that neither shares the machine. Both are measured at
two numbers of speeches, by turns; `ratio` is the peer's seconds over ours at the larger one, medians over rounds.

What the peer gets to be fast: one engine with the KV cache and the sequences of all of ours, in-process, nothing
compiled, Intel's OpenMP (`--peer-omp gnu`: without); no gradient checkpointing, the reference computed once, the
policy written in bfloat16. `--peer-dtype`, `--peer-micro` and `--peer-attention` are TRL's. Only a quiet machine gives
a fair figure: where others hold a core, a script's threads wait for each other, which our actors of one do not.
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

# a token of this run's own, before Ray is imported: it would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import psutil
import ray
import sides  # noqa: F401 - takes this directory off the module path

from psyco_ray.config import job_file
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import fast_dtype
from psyco_ray.config.training import Job
from psyco_ray.data import speeches as speech_data
from psyco_ray.models import loading, reward_model
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import actor_environment
from psyco_ray.run import ray_session
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.training.orchestrator import Orchestrator
from psyco_ray.training.run_state import RunState

BAR = 3.0
STAGES = ("sample", "score", "train")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Iteration:
    """One iteration of a side."""

    speeches: int
    pairs: int
    wall: float  # seconds
    cpu: float  # CPU-seconds


Drawn = list[list[dict[str, Any]]]
"""The speeches of each iteration."""


def ours(job: Job, sizes: list[int], rounds: int) -> tuple[list[Iteration], Drawn]:
    """Iterations of our system with its actors up, each number of speeches by turns, behind one that is not counted."""
    began = time.perf_counter()
    ray_session.connect(None)
    ledger = Ledger(job, resume=False)
    telemetry = Telemetry(job, ledger)
    found: list[Iteration] = []
    rows = {row["speech_id"]: row for row in speech_data.load_speeches(job, job.model) if row["split"] == "train"}
    counts = [min(sizes), *sizes * rounds]
    drawn = [[rows[key] for key in speech_data.draw(list(rows), n, k, job.seed)] for k, n in enumerate(counts, 1)]
    with Orchestrator(job, ledger, telemetry, RunState(job, ledger)) as orchestrator:
        orchestrator.wait_ready()
        print(f"ours: start {time.perf_counter() - began:.1f} s, once for all iterations", flush=True)
        for iteration, chosen in enumerate(drawn, 1):
            before, moments = cpu_seconds(), [time.perf_counter()]
            paired = orchestrator.sample_pairs(iteration, chosen)
            moments.append(time.perf_counter())
            orchestrator.train(iteration, paired)
            moments.append(time.perf_counter())
            orchestrator.sync_weights()
            moments.append(time.perf_counter())
            found.append(Iteration(len(chosen), len(paired), moments[-1] - moments[0], cpu_seconds() - before))
            parts = [b - a for a, b in itertools.pairwise(moments)]
            named = zip(("sample, score and reference", "train and save", "sync"), parts, strict=True)
            told("ours" if iteration > 1 else "ours (not counted)", found[-1], [f"{n} {s:.1f} s" for n, s in named])
    telemetry.close()
    ray.shutdown()
    ledger.close()
    return found[1:], drawn[1:]


def theirs(job: Job, reward_model: str, drawn: Drawn, given: argparse.Namespace) -> list[Iteration]:
    """The same iterations as three processes each."""
    found: list[Iteration] = []
    prompt = load_prompt(job.prompts)
    with tempfile.TemporaryDirectory() as directory:
        settings = settings_of(job, reward_model, Path(directory), given)
        for number, rows in enumerate(drawn):
            settings["conversations"] = [prompt_messages(prompt, row["speech"]) for row in rows]
            settings["trained"] = f"{directory}/policy-{number}"
            Path(directory, "settings.json").write_text(json.dumps(settings))
            before, began, parts = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), []
            for stage in STAGES:
                start, work = apart(stage, f"{directory}/settings.json", environment_of(stage, job, given))
                parts.append(f"{stage}: start {start:.1f} s, work {work:.1f} s")
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            made = len(Path(settings["pairs"]).read_text().splitlines())
            found.append(Iteration(len(rows), made, wall, cpu))
            told("scripts", found[-1], parts)
            settings["policy"] = settings["trained"]
    return found


def settings_of(job: Job, reward_model: str, where: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What `scripted.py` reads: the job's settings in the names of vLLM, transformers and TRL."""
    how, engines, base = job.dpo.optimizer, job.rollouts, str(loading.resolve(job.model))
    assert how.schedule == "constant", "TRL is given a constant learning rate"
    pure = given.peer_dtype == "bfloat16"
    return {
        "base": base,
        "policy": base,
        "reward": reward_model,
        "sampled": str(where / "sampled.jsonl"),
        "pairs": str(where / "pairs.jsonl"),
        "threads": given.threads,
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
            "enable_chunked_prefill": False,  # with it and seeds vLLM dies on a CPU
            "max_num_batched_tokens": max(4096, engines.max_model_len),
            "seed": job.seed,
        },
        "score_dtype": job.scorers.dtype,
        "score_batch": given.score_batch,
        "trl": {
            "output_dir": str(where / "trl"),
            "use_cpu": True,
            "bf16": given.peer_dtype == "autocast",
            "beta": job.dpo.beta,
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "per_device_train_batch_size": given.peer_micro,
            "gradient_accumulation_steps": how.batch_size // given.peer_micro,
            "num_train_epochs": how.epochs,
            "learning_rate": how.learning_rate,
            "lr_scheduler_type": "constant",
            "adam_beta1": how.betas[0],
            "adam_beta2": how.betas[1],
            "weight_decay": how.weight_decay,
            "max_grad_norm": how.max_grad_norm,
            "max_length": None,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "model_init_kwargs": {
                "dtype": "bfloat16" if pure else "float32",
                "attn_implementation": given.peer_attention,
            },
        },
    }


def environment_of(stage: str, job: Job, given: argparse.Namespace) -> dict[str, str]:
    """The environment of a script: as many threads as given, and for vLLM what our engines have."""
    found = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false"}
    if stage == "sample":
        found |= {**placement.actor_environment(job.rollouts), **actor_environment(job.rollouts)}
        found["OMP_NUM_THREADS"] = str(given.threads)
    if given.peer_omp == "intel":
        found["LD_PRELOAD"] = str(Path(sys.prefix) / "lib" / "libiomp5.so")
    return found


def apart(stage: str, settings: str, variables: dict[str, str]) -> tuple[float, float]:
    """A script in its process: seconds until its models were loaded, and those behind that to its end."""
    # -P: a file of this directory bears the name of a standard module
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "scripted.py"), stage, settings]
    with tempfile.TemporaryDirectory() as cache:  # reference log-probabilities that were computed before are not used
        began = time.time()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**variables, "HF_DATASETS_CACHE": cache}
        )
        ended = time.time()
    if done.returncode:
        sys.exit(f"{stage} failed:\n{done.stderr[-3000:]}")
    loaded = json.loads(done.stdout.splitlines()[-1])["loaded"]
    return loaded - began, ended - loaded


def cpu_seconds() -> float:
    """CPU-seconds of this process and of all that it started and that still live."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def told(side: str, one: Iteration, parts: list[str]) -> None:
    """An iteration in a line."""
    print(
        f"{side}: {one.speeches} speeches, {one.pairs} pairs: {one.wall:.1f} s ({one.cpu:.1f} CPU): {'; '.join(parts)}",
        flush=True,
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The demo's iteration on both sides."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reward"
        asked = [f"run_dir={directory}/run", f"scorers.reward_model={path}", *given.overrides]
        job = job_file.load_as(Job, ROOT / "jobs" / "demo.yaml", asked)
        base = loading.resolve(job.model)
        tokenizer = loading.load_tokenizer(base)
        first = reward_model.new_model(base, tokenizer, "float32", seed=0)
        loading.save(path, first.state_dict(), first.config, tokenizer)
        del first
        sizes = sorted(given.speeches)
        mine, drawn = ours(job, sizes, given.rounds)
        other = theirs(job, str(path), drawn, given)
    a, b = fitted("ours", mine), fitted("scripts", other)
    if b[1] >= a[1]:
        print("a further speech takes the scripts no less than us: they never catch up")
    else:
        print(f"the scripts catch up at {(b[0] - a[0]) / (a[1] - b[1]):.0f} speeches an iteration, by these lines")
    seconds = [median(of, sizes[-1]) for of in (mine, other)]
    cpu = [statistics.median(one.cpu for one in of if one.speeches == sizes[-1]) for of in (mine, other)]
    print(f"{sizes[-1]} speeches by CPU-seconds: ours {cpu[0]:.1f}, scripts {cpu[1]:.1f}, ratio {cpu[1] / cpu[0]:.2f}")
    ratio = seconds[1] / seconds[0]
    facts = {"ours": round(seconds[0], 2), "peer": round(seconds[1], 2), "ratio": round(ratio, 3)}
    return {"name": "iteration", **facts, "bar": BAR, "pass": ratio >= BAR}


def median(of: list[Iteration], speeches: int) -> float:
    """Seconds of the iterations with so many speeches."""
    return statistics.median(one.wall for one in of if one.speeches == speeches)


def fitted(side: str, of: list[Iteration]) -> tuple[float, float]:
    """Seconds that an iteration takes however small it is, and those of each speech: a line through both sizes."""
    few, many = (choose(one.speeches for one in of) for choose in (min, max))
    each = (median(of, many) - median(of, few)) / (many - few)
    fixed = median(of, few) - each * few
    print(f"{side}: {fixed:.1f} s and {each:.3f} s a speech", flush=True)
    return fixed, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, nargs=2, default=[16, 40], help="of an iteration, two numbers")
    parser.add_argument("--rounds", type=int, default=2, help="iterations of each number")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each script")
    parser.add_argument("--score-batch", type=int, default=8, help="texts of a padded batch")
    best = "autocast" if fast_dtype({}) == "bfloat16" else "float32"
    parser.add_argument("--peer-dtype", choices=("autocast", "bfloat16", "float32"), default=best)
    parser.add_argument("--peer-micro", type=int, default=2, help="TRL's micro-batch, pairs")
    parser.add_argument("--peer-attention", default="sdpa", help="or eager")
    parser.add_argument("--peer-omp", choices=("intel", "gnu"), default="intel")
    parser.add_argument("overrides", nargs="*", help="of the demo's job")
    given = parser.parse_args()
    print(json.dumps(measure(given)))


if __name__ == "__main__":
    main()
