"""Figure 4 of the paper in small: offline DPO, one round of online DPO, and DPO-Iter, over several seeds.

    .venv/bin/python benchmarks/learning.py [--out runs/learning] [--seeds 3] [--speeches FILE] [KEY=VALUE ...]

The methods start from one base model and take the same number of steps and pairs with the same optimizer and schedule:
`jobs/figure4.yaml`, with the reward training of `jobs/demo.yaml`, and overrides of both. Reward model A is trained on
one half of the packaged pairs and ranks the responses; offline DPO trains on the same half. Reward model B is trained
on the other half with another seed, and only judges the answers to held-out speeches, which nothing is trained on.

A second call continues and repeats nothing that is finished; every command has a log in `--out`. The intervals (95 %)
are a bootstrap over speeches and seeds; both reward models are trained once, so their seeds are not in them. `ours` and
`peer` are the win rates of DPO-Iter and offline DPO against the base model at the last checkpoint. It passes if the
mean rewards there have the paper's order: DPO-Iter, one round, offline, base. `learning.json` has all curves, and
`compare.html` of each seed draws them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.errors import INPUT_ERROR, InputError
from psyco_ray.config.training import Checkpoints, Job
from psyco_ray.data import preferences, splits

BAR = 1.0  # DPO-Iter wins against the base model at least as often as offline DPO
ROOT = Path(__file__).resolve().parent.parent
METHODS = {"offline": "file", "one round": "base", "DPO-Iter": "policy"}
"""The methods, from the paper's worst to its best, and `pairs_from` of their jobs."""

Record = dict[str, Any]
Records = list[Record]
"""The evaluation records of a run: the base model's, then one for each checkpoint."""


def jobs_of(out: Path, seeds: int, overrides: Sequence[str]) -> tuple[list[Job], list[dict[str, Job]]]:
    """The jobs of reward models A and B, and for each seed those of the methods.

    Raises:
        InputError: an override is invalid.
    """
    recipe, demo = (job_file.load_as(Job, ROOT / "jobs" / f"{name}.yaml", [*overrides]) for name in ("figure4", "demo"))
    rewards = []
    for seed, half in enumerate("ab"):
        reward = demo.reward.model_copy(update={"half": half})
        place = {"run_dir": str(out / f"reward-{half}"), "seed": seed}
        rewards.append(recipe.model_copy(update={**place, "reward": reward}))
    models = dict(zip(("reward_model", "heldout_model"), (f"{job.run_dir}/reward" for job in rewards), strict=True))
    changes: Record = {"scorers": recipe.scorers.model_copy(update=models), "checkpoints": Checkpoints(keep_last=1)}
    changes["data"] = recipe.data.model_copy(update={"leakage": "drop"})  # real speeches repeat each other
    policies = []
    for seed in range(seeds):
        jobs = {}
        for method, origin in METHODS.items():
            place = {"run_dir": str(out / f"seed-{seed}" / method.lower().replace(" ", "-")), "seed": seed}
            jobs[method] = recipe.model_copy(update={**changes, **place, "pairs_from": origin})
        pairs = changes["data"].model_copy(update={"pairs": str(out / "pairs-a.parquet")})
        jobs["offline"] = jobs["offline"].model_copy(update={"data": pairs})
        policies.append(jobs)
    return rewards, policies


def write_offline_pairs(job: Job, path: Path) -> int:
    """Writes the pairs that reward model A is trained on, and returns their number.

    Args:
        job: names all pairs and the held-out share.
        path: of the Parquet file, which has the released dataset's columns.

    Raises:
        InputError: the pairs do not answer client speeches.
    """
    pairs = preferences.read(job.data.pairs, job.data.dev_share).table
    rows = zip(pairs["split"].to_pylist(), pairs["asked"].to_pylist(), strict=True)
    half = pairs.filter(pa.array([split == "train" and splits.half(asked) == "a" for split, asked in rows]))
    if set(half["form"].to_pylist()) != {"speech"}:
        raise InputError(
            f"data.pairs {job.data.pairs} has prompts that are no speeches; take pairs with a question column"
        )
    columns = {"pair_id": "pair_id", "asked": "question"}
    columns |= {name: name for name in half.column_names if name.startswith(("chosen", "rejected"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(half.select(list(columns)).rename_columns(list(columns.values())), path)
    return int(half.num_rows)


def run(command: str, jobs: Sequence[Job]) -> None:
    """Runs a command on jobs at the same time, without those that are finished.

    Raises:
        InputError: the command failed.
    """
    began, processes = time.perf_counter(), []
    for job in jobs:
        root = Path(job.run_dir)
        if is_finished(job):
            print(f"{root}: finished before", flush=True)
            continue
        root.parent.mkdir(parents=True, exist_ok=True)
        root.with_suffix(".yaml").write_text(job_file.dump(job))
        arguments = [sys.executable, "-m", "psyco_ray.cli", command, str(root.with_suffix(".yaml")), "--resume"]
        with root.with_suffix(".log").open("a") as log:
            processes.append((root, subprocess.Popen(arguments, stdout=log, stderr=log)))
    codes = [process.wait() for _, process in processes]
    for (root, _), code in zip(processes, codes, strict=True):
        if code:
            log_file = root.with_suffix(".log")
            last = "\n".join(log_file.read_text().splitlines()[-10:])
            raise InputError(f"{command} ended with exit code {code}; {log_file} ends with\n{last}")
        for state in root.glob("iteration-*/state"):  # gigabytes, and a finished run does not continue
            shutil.rmtree(state)
        print(f"{root}: {time.perf_counter() - began:.0f} s", flush=True)


def is_finished(job: Job) -> bool:
    """Whether a run of this job has ended; the command itself refuses to continue a run of another job."""
    root = Path(job.run_dir)
    ended = (root / "summary.json").exists() or (root / "reward.json").exists()
    return ended and job_file.load_as(Job, root / "job.yaml") == job


def records_of(job: Job) -> Records:
    """The evaluation records of a finished run, with the `steps` and `pairs` of training until then."""
    records, steps, pairs = [], 0, 0
    for iteration in range(job.iterations + 1):
        stage = Path(job.run_dir) / f"iteration-{iteration:03d}"
        if iteration:
            steps += len(json.loads((stage / "train.json").read_text())["steps"])
            pairs += json.loads((stage / "pairs.json").read_text())["rows"]
        records.append({**json.loads((stage / "evaluate.json").read_text()), "steps": steps, "pairs": pairs})
    return records


def curves(runs: Mapping[str, Sequence[Records]]) -> tuple[dict[str, Records], Records]:
    """The curve of each method, and the final checkpoints compared.

    Args:
        runs: of each method, with the seeds in the same order.

    Returns:
        For each method a point per checkpoint, the base model's first: mean `reward`, `gain` and `win_rate` over the
        base model's answers to the same speeches with 95 % intervals (`…_ci95`), `steps`, `pairs`, `tokens`,
        `finished_share`, `distinct_ratio` to the base model, and `kl`, None where no run records it. And for methods
        `a` and `b` that follow each other the `difference` of their final rewards, a - b, with `ci95`.
    """
    records = [record for own in runs.values() for run in own for record in run]
    keys = sorted(set.intersection(*(set(record["heldout"]["scores"]) for record in records)))
    by_method: dict[str, Records] = {method: [] for method in runs}
    rewards: dict[str, np.ndarray] = {}  # at the last checkpoint: seeds x speeches
    bases = []
    for method, own in runs.items():
        scores = np.array([[[r["heldout"]["scores"][key] for key in keys] for r in run] for run in own])
        base = scores[:, 0]  # seeds x speeches x responses
        rewards[method] = scores[:, -1].mean(axis=-1)
        bases.append(base.mean(axis=-1))
        for k, of_seeds in enumerate(zip(*own, strict=True)):
            leads = scores[:, k, :, :, None] - base[:, :, None, :]
            values = {
                "reward": scores[:, k].mean(axis=-1),
                "gain": scores[:, k].mean(axis=-1) - base.mean(axis=-1),
                "win_rate": ((leads > 0) + (leads == 0) / 2).mean(axis=(-1, -2)),
            }
            point: Record = {name: float(each.mean()) for name, each in values.items()}
            point |= {f"{name}_ci95": interval(each) for name, each in values.items()}
            point |= {name: mean(of_seeds, name) for name in ("steps", "pairs", "finished_share")}
            point["tokens"] = mean(of_seeds, "mean_tokens")
            point["distinct_ratio"] = mean(of_seeds, "distinct_2") / mean([run[0] for run in own], "distinct_2")
            point["kl"] = mean(of_seeds, "kl") if all("kl" in r for r in of_seeds) else None
            by_method[method].append(point)
    ranked = [("base", np.mean(bases, axis=0)), *((method, rewards[method]) for method in METHODS)]
    return by_method, [
        {"a": a, "b": b, "difference": float((ours - theirs).mean()), "ci95": interval(ours - theirs)}
        for (b, theirs), (a, ours) in itertools.pairwise(ranked)
    ]


def mean(records: Sequence[Record], key: str) -> float:
    """The mean of a figure over records."""
    return float(np.mean([record[key] for record in records]))


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (seeds x speeches): draws seeds and speeches."""
    rng = np.random.default_rng(0)
    seeds, speeches = (rng.integers(size, size=(draws, size)) for size in values.shape)
    means = [values[np.ix_(rows, columns)].mean() for rows, columns in zip(seeds, speeches, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(by_method: Mapping[str, Records], differences: Records) -> str:
    """Curves and comparisons as text."""

    def number(value: float, bounds: tuple[float, float], factor: float = 1, digits: int = 2) -> str:
        low, high = (f"{factor * bound:.{digits}f}" for bound in bounds)
        return f"{factor * value:.{digits}f} [{low}, {high}]"

    heads = ("reward [95 %]", "gain [95 %]", "win rate % [95 %]")
    lines = ["method     steps  pairs" + "".join(f"{head:>22}" for head in heads) + "  tokens finished distinct    KL"]
    for method, points in by_method.items():
        for p in points:
            ours = [number(p[name], p[f"{name}_ci95"]) for name in ("reward", "gain")]
            ours.append(number(p["win_rate"], p["win_rate_ci95"], 100, 0))
            kl = "-" if p["kl"] is None else f"{p['kl']:.2f}"
            lines.append(
                f"{method:<10}{p['steps']:6.0f}{p['pairs']:7.0f}{''.join(f'{text:>22}' for text in ours)}"
                f"{p['tokens']:8.0f}{p['finished_share']:9.2f}{p['distinct_ratio']:9.2f}{kl:>6}"
            )
    return "\n".join([*lines, *(f"{d['a']} - {d['b']}: {number(d['difference'], d['ci95'])}" for d in differences)])


def result(by_method: Mapping[str, Records], differences: Records) -> Record:
    """The line that is printed last."""
    ours, peer = (by_method[method][-1]["win_rate"] for method in ("DPO-Iter", "offline"))
    facts = {"ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / max(peer, 1e-9), 3), "bar": BAR}
    return {"name": "learning", **facts, "pass": all(row["difference"] >= 0 for row in differences)}


def measure(options: argparse.Namespace) -> Record:
    """Trains what is missing, and compares."""
    out = options.out.resolve()
    speeches = [f"data.speeches={json.dumps(str(options.speeches.resolve()))}"] if options.speeches else []
    rewards, policies = jobs_of(out, options.seeds, [*options.overrides, *speeches])
    run("train-reward", rewards)
    count = write_offline_pairs(rewards[0], out / "pairs-a.parquet")
    print(f"offline DPO draws from {count} pairs", flush=True)
    for seed, jobs in enumerate(policies):
        for job in jobs.values():
            run("train-dpo" if job.pairs_from == "file" else "iterate", [job])
        command = [sys.executable, "-m", "psyco_ray.cli", "compare", *(job.run_dir for job in jobs.values())]
        subprocess.run([*command, "--out", str(out / f"seed-{seed}")], check=True, stdout=subprocess.DEVNULL)
    runs = {method: [records_of(jobs[method]) for jobs in policies] for method in METHODS}
    by_method, differences = curves(runs)
    results = {"curves": by_method, "differences": differences, "seeds": options.seeds}
    (out / "learning.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(by_method, differences), flush=True)
    return result(by_method, differences)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="directory of all runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    parser.add_argument("--speeches", type=Path, help="file of client speeches (default: the packaged ones)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the jobs, such as iterations=2")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        print(json.dumps(measure(options)))
    except InputError as error:
        print(f"learning.py: {error}", file=sys.stderr)
        return INPUT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
