"""One GPU: MFU of the learner, seconds of a weight update, and rollouts against bare vLLM.

.venv/bin/python benchmarks/gpu.py --model 3b        the Llama-3.2-3B shape with random weights, 80 GB
.venv/bin/python benchmarks/gpu.py --model 8b        the Llama-3.1-8B shape; training needs more than 80 GB
.venv/bin/python benchmarks/gpu.py --model 135m      SmolLM2-135M with its own weights
.venv/bin/python benchmarks/gpu.py --model tiny      the same code in minutes, also on a CPU; without meaningful figures
.venv/bin/python benchmarks/gpu.py --all             tests/gpu, an iteration, sync, rollout and learner in 8 minutes

With --all the parts run one after another, each within its own time (`gpu_suite.py`): a failed or late part does not
stop the others. `--out FILE` (default gpu.json) gets their figures, and the rows for benchmarks/README.md are printed.
It takes any Python that has the packages of benchmarks/README.md, and needs no installation of psyco_ray.

Each measure runs in a process of its own and prints JSON lines. Measures that do not fit the GPU are reported and left
out. Figures are medians over rounds without the first.

learner   tokens/s of DPO steps of one worker on random pairs of one length, against the tokens/s at the GPU's dense
          bfloat16 peak; the ratio is the MFU. A step counts as three forward passes, each
              2 * (layers' matrix parameters * tokens + hidden * vocabulary * response tokens)
            + 4 * layers * heads * head size * attended token pairs;
          `shapes.py` lists what is not counted.
forward   the same for one forward pass, as for reference log-probabilities.
sync      seconds until the engine on the same GPU uses new weights, alternating between CUDA IPC and the object store,
          after an optimizer step each: gathering, sending, digests, loading and the probe on both sides. `handover_s`
          is separate: the learner's offload to the host, with IPC also its copy for engines that join later. The peer
          copies the same number of bytes on the device. The bar is on the seconds.
rollout   tokens/s of a rollout actor through the pool, against bare `vllm.LLM.generate` with the same settings; both
          engines are on the GPU and alternate. Random models end their answers after about 150 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - first: without an installation the package is only in this checkout
import gpu_suite
import ray
import shapes
import updates
from engines import Workload, alternate
from updates import learner_of, random_pairs

from psyco_ray.cli.plan import allocation
from psyco_ray.cli.plan.memory import CONTEXT_BYTES
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners, Rollouts, Sync
from psyco_ray.config.training import DpoConfig, Job, Optimizer, Sampling
from psyco_ray.learner import flops
from psyco_ray.learner.batching import plan_step
from psyco_ray.learner.memory import rank_memory
from psyco_ray.models import loading
from psyco_ray.models.shape import shape_of

MFU_BAR, ROLLOUT_BAR = 0.40, 0.97  # the MFU bar is for 3b, which fills the GPU
USABLE = 0.9  # share of the GPU's memory
CPU_PEAK = 1e12  # FLOP/s; a placeholder without a GPU

MEASURES = ("learner", "forward", "sync", "rollout")
KNOWN = {"135m": "smollm2-135m", "3b": "llama-3.2-3b", "8b": "llama-3.1-8b"}  # names in `psyco-ray plan`
MICRO = {"tiny": 256, "135m": 16384, "3b": 2304, "8b": 2304}  # tokens per pass of the learner; 2304 fits 80 GB
Line = dict[str, Any]


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    bytes: int

    @classmethod
    def here(cls) -> Gpu | None:
        """Returns None without a GPU."""
        import torch

        if not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(0)
        return cls(properties.name, properties.total_memory)


def peak_of(gpu: Gpu | None, override: float | None) -> float:
    """Peak FLOP/s of the device.

    Raises:
        InputError: the peak is unknown.
    """
    peak = override or (CPU_PEAK if gpu is None else flops.peak_flops(gpu.name))
    if peak is None:
        raise InputError(f"the peak of {gpu.name if gpu else 'this CPU'} is unknown; pass --peak in FLOP/s")
    return peak


def job_of(model: str, options: argparse.Namespace, on_gpu: bool) -> Job:
    """The job of all measures: an engine and a worker with half a GPU each."""
    each: dict[str, Any] = {"cpus": 0.5, "gpus": 0.5 if on_gpu else 0.0}
    if on_gpu:
        sizes: dict[str, Any] = {"max_num_seqs": 256, "kv_cache_gb": 12.0, "speeches_per_item": 32}
    else:
        sizes = {"max_num_seqs": 32, "kv_cache_gb": 0.2, "speeches_per_item": 4}
    optimizer = Optimizer(batch_size=len(lengths_of(options.model)), warmup_ratio=0.0, schedule="constant")
    return Job(
        model=model,
        colocated=on_gpu,
        sampling=Sampling(max_tokens=256 if on_gpu else 16),
        dpo=DpoConfig(optimizer=optimizer),
        rollouts=Rollouts(max_model_len=1024, enforce_eager=not on_gpu, **sizes, **each),
        learners=Learners(
            zero_stage=options.zero,
            micro_batch_tokens=options.micro or MICRO[options.model],
            gradient_checkpointing=options.checkpointing,
            **each,
        ),
        sync=Sync(max_gap=1.0),  # bfloat16 is imprecise on the low log-probabilities of random tokens
    )


def memory_shortage(job: Job, name: str, gpu: Gpu | None) -> str | None:
    """Says why the GPU cannot train a model; None if it can."""
    if gpu is None:
        return None
    needed = allocation.learner_bytes(job, shape_of(KNOWN[name]), 1, job.learners.zero_stage)
    if needed <= USABLE * gpu.bytes:
        return None
    return (
        f"learner and sync of {name} are left out: with gradients, float32 states and activations one worker needs "
        f"{needed / 1e9:.0f} GB, and {gpu.name} has {USABLE * gpu.bytes / 1e9:.0f}"
    )


def lengths_of(model: str) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected response of each pair of an optimizer step."""
    return [(24, 20, 20)] * 8 if model == "tiny" else [(256, 256, 256)] * 64


def learner(job: Job, options: argparse.Namespace) -> list[Line]:
    """Tokens/s and MFU of training."""
    group, lengths = learner_of(job), lengths_of(options.model)
    group.wait_ready()
    batches = [random_pairs(lengths, seed) for seed in range(options.rounds + 1)]
    seconds = []
    for step in group.train(batches, total_steps=len(batches)):
        seconds.append(step.seconds)
        print(f"step {step.step}: {step.tokens / step.seconds:.0f} tokens/s, loss {step.loss:.4f}", flush=True)
    group.close()
    line = mfu_line("learner", options, shapes.training_flops(shapes.of(job.model), lengths), seconds)
    return [line | ({"planned_gb": {"train": planned_gb(job, options)}} if job.learners.gpus else {})]


def planned_gb(job: Job, options: argparse.Namespace) -> float:
    """What `psyco-ray plan` calculates for the learner's worker, alone on its GPU."""
    shape = shape_of(KNOWN.get(options.model, job.model))
    rank = rank_memory(shape, job.learners, max(map(sum, lengths_of(options.model))))
    return round((rank.training + CONTEXT_BYTES) / 1e9, 1)


def forward(job: Job, options: argparse.Namespace) -> list[Line]:
    """Tokens/s and MFU of log-probabilities."""
    import torch

    from psyco_ray.models.packing import ResponseLogprobs, pack

    torch.set_num_threads(job.learners.threads)
    device = torch.device("cuda" if job.learners.gpus else "cpu")
    plain = loading.load_causal_lm(loading.resolve(job.model), job.learners.dtype)
    policy = ResponseLogprobs(plain, job.learners.logit_rows, job.learners.attention).to(device)
    lengths = lengths_of(options.model)
    [passes] = plan_step(random_pairs(lengths, 0), 1, job.learners.micro_batch_tokens)
    seconds = []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        for micro in passes:
            packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(device)
            with torch.no_grad():
                policy(packed).tolist()  # waits for the GPU
        seconds.append(time.perf_counter() - start)
    return [mfu_line("forward", options, shapes.forward_flops(shapes.of(job.model), lengths), seconds)]


def mfu_line(measure: str, options: argparse.Namespace, flop_count: int, seconds: list[float]) -> Line:
    """The result line with tokens/s, tokens/s at the peak, and MFU."""
    tokens, median_s = sum(map(sum, lengths_of(options.model))), statistics.median(seconds[1:])
    peak = peak_of(Gpu.here(), options.peak)
    mfu, bar = flop_count / median_s / peak, MFU_BAR if (measure, options.model) == ("learner", "3b") else None
    return {
        "name": f"gpu {measure} {options.model}",
        "ours": round(tokens / median_s, 1),
        "peer": round(tokens * peak / flop_count, 1),
        "ratio": round(mfu, 4),
        "bar": bar,
        "pass": bar is None or mfu >= bar,
        "peak": peak,
    }


def rollout(job: Job, options: argparse.Namespace) -> list[Line]:
    """Tokens/s of a rollout actor and of a bare engine."""
    settings, name = job.rollouts, f"gpu rollout {options.model}"
    speeches = 4 * settings.speeches_per_item
    work = Workload(speeches, job.sampling.responses, job.sampling.max_tokens, options.rounds)
    line = alternate(name, job.model, settings, work)
    return [{**line, "bar": ROLLOUT_BAR, "pass": line["ratio"] >= ROLLOUT_BAR}]


def sync(job: Job, options: argparse.Namespace) -> list[Line]:
    """Seconds of weight updates by each transport."""
    return updates.by_transport(options.model, job, options.rounds)


def run_measure(options: argparse.Namespace, measure: str, directory: str) -> None:
    """Runs one measure in this process and prints its lines, or writes the model."""
    gpu = Gpu.here()
    model = KNOWN["135m"] if options.model == "135m" else f"{directory}/model"
    if measure == "write":
        shapes.write(options.model, model)
        if options.write:
            shapes.write_reward_model(model, f"{directory}/reward")
        return
    work = {"learner": learner, "forward": forward, "sync": sync, "rollout": rollout}[measure]
    job = job_of(model, options, on_gpu=gpu is not None)
    if measure != "forward":
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    lines = work(job, options)
    ray.shutdown()
    for line in lines:
        print(json.dumps({**line, "device": gpu.name if gpu else "CPU"}), flush=True)


def run_all(options: argparse.Namespace) -> int:
    """Runs each measure in a process of its own and returns the exit code."""
    gpu = Gpu.here()
    if gpu is None and options.model != "tiny":
        raise InputError(f"--model {options.model} needs an NVIDIA GPU; --model tiny runs on the CPU")
    peak_of(gpu, options.peak)
    measures, failed = list(options.measures), False
    if options.model in KNOWN and (
        reason := memory_shortage(job_of(KNOWN[options.model], options, gpu is not None), options.model, gpu)
    ):
        print(reason, flush=True)
        measures = [measure for measure in measures if measure in ("forward", "rollout")]
    # a token of this run, set before the import: Ray would write one into the home directory
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HF_HUB_OFFLINE": "1"}
    environment["RAY_ENABLE_AUTO_CONNECT"] = "0"  # threads of a failed process must not join another Ray
    with tempfile.TemporaryDirectory() as temporary:
        directory, written = options.models or temporary, options.models and not options.write
        if options.write:
            measures = []
        for measure in [*(["write"] if options.model in shapes.LLAMAS and not written else []), *measures]:
            command = [sys.executable, __file__, *sys.argv[1:], "--alone", measure, directory]
            if subprocess.run(command, env={**os.environ, **environment}, check=False).returncode:
                print(f"{measure} of {options.model} failed", file=sys.stderr, flush=True)
                failed = True
                if measure == "write":
                    break
    return int(failed)


def run_suite(options: argparse.Namespace) -> int:
    """Runs all parts, writes the JSON file and prints the rows; returns the exit code."""
    gpu = Gpu.here()
    model, device = ("tiny", "CPU") if gpu is None else (options.model, gpu.name)
    more = [] if options.peak is None else ["--peak", str(options.peak)]
    with tempfile.TemporaryDirectory() as directory:
        parts = gpu_suite.parts(model, directory, gpu is not None, more)
        outcomes = gpu_suite.run_all(parts, options.limit)
    print(gpu_suite.report(outcomes, device, options.out), flush=True)
    return int(any(outcome.problem for outcome in outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MICRO), default="3b")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, help="dense bfloat16 FLOP/s of the device; known for common GPUs")
    parser.add_argument("--micro", type=int, help="tokens per pass of the learner")
    parser.add_argument("--zero", type=int, default=2, choices=(1, 2, 3), help="ZeRO stage of the learner")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--all", action="store_true", help="all checks of a GPU; without one with the model tiny")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results of --all")
    parser.add_argument("--limit", type=float, default=gpu_suite.LIMIT_S, help="seconds of --all")
    parser.add_argument("--models", help=argparse.SUPPRESS)  # directory of written models, of --all
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)  # write them and a reward model
    parser.add_argument("--alone", nargs=2, metavar=("MEASURE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.alone:
            run_measure(options, *options.alone)
        elif options.all:
            sys.exit(run_suite(options))
        else:
            sys.exit(run_all(options))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
