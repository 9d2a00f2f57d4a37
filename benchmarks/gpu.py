"""One GPU: how much of its peak the learner uses, how fast weights get to the engine, what rollouts cost over vLLM.

.venv/bin/python benchmarks/gpu.py --model 3b        the Llama-3.2-3B shape with random weights, 80 GB
.venv/bin/python benchmarks/gpu.py --model 8b        the Llama-3.1-8B shape; training needs more than 80 GB
.venv/bin/python benchmarks/gpu.py --model 135m      SmolLM2-135M with its own weights
.venv/bin/python benchmarks/gpu.py --model tiny      the same code in minutes, also on a CPU; its figures mean nothing

Each measure has a process of its own, which ends with its JSON lines; what does not fit the GPU is said and left out.
Figures are medians over rounds, the first not counted.

learner   tokens/s of DPO steps of one rank on made-up pairs of one length, against those with which the matrix products
          alone would take the GPU's dense bfloat16 peak; the ratio is the MFU. A step counts three forward passes, each
              2 * (layers' matrix parameters * tokens + hidden * vocabulary * response tokens)
            + 4 * layers * heads * head size * pairs of a token and one that it sees;
          `shapes.py` says what is left out: the embedding, recomputation, padding, what is masked.
forward   the same for one forward pass, as it gives reference log-probabilities.
sync      seconds that the engine on the same GPU needs to have new weights of the learner in use, by CUDA IPC and
          through the object store by turns, an optimizer step before each: gathering, sending, digests, loading and
          the probe on both sides. Not in it but beside it (`handover_s`): the learner's way to the host, behind which
          with IPC it also writes the copy for who joins later. The peer copies as many bytes on the device. The bar
          is on the seconds.
rollout   tokens/s of a rollout actor through the pool, against bare `vllm.LLM.generate` with the same settings, by
          turns, both engines on the GPU.
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
from typing import Any

import ray
import shapes
import updates
from engines import by_turns
from updates import learner_of, made_up

from psyco_ray.cli.plan import cost_model
from psyco_ray.config.resources import Learners, Rollouts, Sync
from psyco_ray.config.training import DpoConfig, Job, Optimizer, Sampling
from psyco_ray.learner import flops
from psyco_ray.learner.batching import plan_step
from psyco_ray.models import loading

MFU_BAR, ROLLOUT_BAR = 0.40, 0.97  # the first for 3b, which fills a GPU and fits it
USABLE = 0.9  # share of the GPU's memory
CPU_PEAK = 1e12  # operations a second that stand in for the peak where there is no GPU

MEASURES = ("learner", "forward", "sync", "rollout")
KNOWN = {"135m": "smollm2-135m", "3b": "llama-3.2-3b", "8b": "llama-3.1-8b"}  # their names for `psyco-ray plan`
MICRO = {"tiny": 256, "135m": 16384, "3b": 2304, "8b": 2304}  # tokens of a learner's pass: 2304 leaves 80 GB some room
Line = dict[str, Any]


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    bytes: int

    @classmethod
    def here(cls) -> Gpu | None:
        """None where there is none."""
        import torch

        if not torch.cuda.is_available():
            return None
        found = torch.cuda.get_device_properties(0)
        return cls(found.name, found.total_memory)


def peak_of(gpu: Gpu | None, given: float | None) -> float:
    """Operations a second of the device.

    Raises:
        ValueError: nobody knows them.
    """
    found = given or (CPU_PEAK if gpu is None else flops.peak_flops(gpu.name))
    if found is None:
        raise ValueError(f"the peak of {gpu.name if gpu else 'this CPU'} is not known; name it with --peak, in FLOP/s")
    return found


def job_of(model: str, given: argparse.Namespace, on_gpu: bool) -> Job:
    """The settings of all measures: an engine and a rank, half a GPU each."""
    each: dict[str, Any] = {"cpus": 0.5, "gpus": 0.5 if on_gpu else 0.0}
    if on_gpu:
        sizes: dict[str, Any] = {"max_num_seqs": 256, "kv_cache_gb": 12.0, "speeches_per_item": 32}
    else:
        sizes = {"max_num_seqs": 32, "kv_cache_gb": 0.2, "speeches_per_item": 4}
    how = Optimizer(batch_size=len(lengths_of(given.model)), warmup_ratio=0.0, schedule="constant")
    return Job(
        model=model,
        colocated=on_gpu,
        sampling=Sampling(max_tokens=256 if on_gpu else 16),
        dpo=DpoConfig(optimizer=how),
        rollouts=Rollouts(max_model_len=1024, enforce_eager=not on_gpu, **sizes, **each),
        learners=Learners(
            zero_stage=given.zero,
            micro_batch_tokens=given.micro or MICRO[given.model],
            gradient_checkpointing=given.checkpointing,
            **each,
        ),
        sync=Sync(max_gap=1.0),  # random tokens are far from what bfloat16 tells apart well
    )


def lacking(job: Job, name: str, gpu: Gpu | None) -> str | None:
    """Why a model cannot be trained on the GPU; None where it can."""
    if gpu is None:
        return None
    needed = cost_model.learner_bytes(job, cost_model.shape_of(KNOWN[name]), 1, job.learners.zero_stage)
    if needed <= USABLE * gpu.bytes:
        return None
    return (
        f"learner and sync of {name} are left out: with gradients, float32 states and activations one rank needs "
        f"{needed / 1e9:.0f} GB, and {gpu.name} gives {USABLE * gpu.bytes / 1e9:.0f}"
    )


def lengths_of(model: str) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected of the pairs of an optimizer step."""
    return [(24, 20, 20)] * 8 if model == "tiny" else [(256, 256, 256)] * 64


def learner(job: Job, given: argparse.Namespace) -> list[Line]:
    """Tokens/s of training, and the share of the peak that is."""
    group, lengths = learner_of(job), lengths_of(given.model)
    group.wait_ready()
    batches = [made_up(lengths, seed) for seed in range(given.rounds + 1)]
    seconds = []
    for step in group.train(batches, steps=len(batches)):
        seconds.append(step.seconds)
        print(f"step {step.step}: {step.tokens / step.seconds:.0f} tokens/s, loss {step.loss:.4f}", flush=True)
    group.close()
    return [share("learner", given, shapes.training_flops(shapes.of(job.model), lengths), seconds)]


def forward(job: Job, given: argparse.Namespace) -> list[Line]:
    """Tokens/s of log-probabilities, and the share of the peak that is."""
    import torch

    from psyco_ray.models.packing import ResponseLogprobs, pack

    torch.set_num_threads(job.learners.threads)
    device = torch.device("cuda" if job.learners.gpus else "cpu")
    plain = loading.load_causal_lm(loading.resolve(job.model), job.learners.dtype)
    policy, lengths = ResponseLogprobs(plain, job.learners.logit_rows).to(device), lengths_of(given.model)
    [passes] = plan_step(made_up(lengths, 0), 1, job.learners.micro_batch_tokens)
    seconds = []
    for _ in range(given.rounds + 1):
        began = time.perf_counter()
        for micro in passes:
            packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(device)
            with torch.no_grad():
                policy(packed).tolist()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return [share("forward", given, shapes.forward_flops(shapes.of(job.model), lengths), seconds)]


def share(measure: str, given: argparse.Namespace, operations: int, seconds: list[float]) -> Line:
    """The line of a measure that computes: its tokens/s, those of the peak, and the share."""
    tokens, took = sum(map(sum, lengths_of(given.model))), statistics.median(seconds[1:])
    peak = peak_of(Gpu.here(), given.peak)
    used, bar = operations / took / peak, MFU_BAR if (measure, given.model) == ("learner", "3b") else None
    return {
        "name": f"gpu {measure} {given.model}",
        "ours": round(tokens / took, 1),
        "peer": round(tokens * peak / operations, 1),
        "ratio": round(used, 4),
        "bar": bar,
        "pass": bar is None or used >= bar,
        "peak": peak,
    }


def rollout(job: Job, given: argparse.Namespace) -> list[Line]:
    """Tokens/s of a rollout actor and of a bare engine."""
    how, name = job.rollouts, f"gpu rollout {given.model}"
    sampled = 4 * how.speeches_per_item, job.sampling.responses, job.sampling.max_tokens
    line = by_turns(name, job.model, how, *sampled, given.rounds)
    return [{**line, "bar": ROLLOUT_BAR, "pass": line["ratio"] >= ROLLOUT_BAR}]


def syncs(job: Job, given: argparse.Namespace) -> list[Line]:
    """Seconds of weight updates by every transport."""
    return updates.by_transport(given.model, job, given.rounds)


def alone(given: argparse.Namespace, measure: str, directory: str) -> None:
    """What one process does: write the model, or take a measure and print its lines."""
    gpu = Gpu.here()
    model = KNOWN["135m"] if given.model == "135m" else f"{directory}/model"
    if measure == "write":
        shapes.write(given.model, model)
        return
    work = {"learner": learner, "forward": forward, "sync": syncs, "rollout": rollout}[measure]
    job = job_of(model, given, on_gpu=gpu is not None)
    if measure != "forward":
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    lines = work(job, given)
    ray.shutdown()
    for line in lines:
        print(json.dumps({**line, "device": gpu.name if gpu else "CPU"}), flush=True)


def all_of_them(given: argparse.Namespace) -> int:
    """Every measure, each in a process of its own; the exit code."""
    gpu = Gpu.here()
    if gpu is None and given.model != "tiny":
        raise ValueError(f"--model {given.model} needs an NVIDIA GPU and there is none; --model tiny runs on the CPU")
    peak_of(gpu, given.peak)
    measures, failed = list(given.measures), False
    if given.model in KNOWN and (
        reason := lacking(job_of(KNOWN[given.model], given, gpu is not None), given.model, gpu)
    ):
        print(reason, flush=True)
        measures = [one for one in measures if one in ("forward", "rollout")]
    # a token of this run's own, before Ray is imported: it would write one into the home directory
    apart = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HF_HUB_OFFLINE": "1"}
    apart["RAY_ENABLE_AUTO_CONNECT"] = "0"  # where one fails, its threads shall not join another Ray of this machine
    with tempfile.TemporaryDirectory() as directory:
        for measure in [*(["write"] if given.model in shapes.LLAMAS else []), *measures]:
            command = [sys.executable, __file__, *sys.argv[1:], "--alone", measure, directory]
            if subprocess.run(command, env={**os.environ, **apart}, check=False).returncode:
                print(f"{measure} of {given.model} failed", file=sys.stderr, flush=True)
                failed = True
                if measure == "write":
                    break
    return int(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MICRO), default="3b")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, help="FLOP/s of the device in dense bfloat16; known for common GPUs")
    parser.add_argument("--micro", type=int, help="tokens of the learner's pass")
    parser.add_argument("--zero", type=int, default=2, choices=(1, 2, 3), help="ZeRO stage of the learner")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--alone", nargs=2, metavar=("MEASURE", "DIRECTORY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.alone:
            alone(given, *given.alone)
        else:
            sys.exit(all_of_them(given))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
