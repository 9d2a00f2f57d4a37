"""DeepSpeed training of one model over several ranks, one Ray actor each.

What is minimised is given (`losses.Dpo` for a policy, `losses.BradleyTerry` for a reward model): one code path.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from psyco_ray.config import Learners, Optimizer
from psyco_ray.records import Example, Weights

if TYPE_CHECKING:
    import torch

    from psyco_ray.losses import Objective

Micro = list[Example]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports: means over the pairs of its batch."""

    step: int
    steps: int
    loss: float  # nats a pair
    learning_rate: float
    grad_norm: float | None  # before clipping; None where DeepSpeed does not tell
    metrics: dict[str, float]
    tokens: int
    seconds: float


class LearnerRank:
    """One rank: a DeepSpeed engine in a process of its own."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def address(self) -> tuple[str, int]:
        """This process's host address and a free port, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(
        self,
        meeting: tuple[str, int],
        model: str,
        objective: Objective,
        settings: Learners,
        optimizer: Optimizer,
        seed: int,
        state: str | None,
        timeout_s: float,
    ) -> None:
        """Join the other ranks and build the engine.

        Args:
            meeting: address and port of rank 0.
            model: name or directory of the base model.
            objective: what is minimised; it also says which head the model gets.
            settings: dtype, ZeRO stage, sizes.
            optimizer: AdamW's numbers.
            seed: of a new reward head.
            state: a float32 state written by `save_state`, to continue from.
            timeout_s: deadline of a collective.
        """
        os.environ.update(
            MASTER_ADDR=meeting[0],
            MASTER_PORT=str(meeting[1]),
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world),
            LOCAL_RANK="0",
            LOCAL_SIZE="1",
        )
        on_gpu = settings.gpus > 0
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        from psyco_ray import models, reward
        from psyco_ray.logprobs import ResponseLogprobs, ResponseScores

        torch.set_num_threads(settings.threads)
        torch.manual_seed(seed)
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._objective, self._settings = objective, settings
        # DeepSpeed's own CPU collectives are compiled on first use (a killed build blocks every later one) and leave
        # their shared memory behind; gloo does
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
        )
        config = _deepspeed_config(settings, optimizer, self.world)
        # transformers loads a ZeRO-3 model in shards while this object lives
        self._zero3 = HfDeepSpeedConfig(config) if settings.zero_stage == 3 else None
        path = models.resolve(model)
        self._tokenizer = models.load_tokenizer(path)
        if objective.head == "reward":
            language_model = reward.new_model(path, self._tokenizer, settings.dtype, seed, settings.gpus)
            module: torch.nn.Module = ResponseScores(language_model)
        else:
            language_model = models.load_causal_lm(path, settings.dtype, settings.gpus)
            module = ResponseLogprobs(language_model, settings.logit_rows)
        if settings.gradient_checkpointing:
            language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model = language_model
        self._optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(model=module.train(), optimizer=self._optimizer, config=config)
        if state:
            self._restore(Path(state))

    def step(self, micros: list[Micro], pairs: int, learning_rate: float) -> dict[str, float]:
        """One optimizer step over this rank's share of a batch.

        Args:
            micros: this rank's pairs, one list for each forward and backward pass; all ranks have as many.
            pairs: pairs in the whole batch, over all ranks.
            learning_rate: of this step.

        Returns:
            Sums over this rank's pairs: loss, metrics; `grad_norm` is the whole model's.

        Raises:
            ValueError: the loss is not a number.
        """

        from psyco_ray.logprobs import pack

        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: dict[str, float] = {"loss": 0.0}
        for index, micro in enumerate(micros):
            packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(self._device)
            values = self._engine(packed).view(-1, 2)
            losses, metrics = self._objective(values, self._reference(micro))
            for example, loss in zip(micro, losses.tolist(), strict=True):
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the loss of pair {example.key} is {loss}; lower the learning rate or look at that pair"
                    )
            self._engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
            # DeepSpeed takes the mean over ranks; the mean over the batch's pairs is wanted
            self._engine.backward(losses.sum() * (self.world / pairs), scale_wrt_gas=False)
            sums["loss"] += losses.sum().item()
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + metric.sum().item()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return sums if norm is None else {**sums, "grad_norm": float(norm)}

    def values(self, micros: list[Micro]) -> list[tuple[float, float]]:
        """Scores or log-probabilities (chosen, rejected) of pairs under the current weights, without training."""
        import torch

        from psyco_ray.logprobs import pack

        found: list[tuple[float, float]] = []
        with torch.no_grad():
            for micro in micros:
                packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(self._device)
                found += [(a, b) for a, b in self._engine(packed).view(-1, 2).tolist()]
        return found

    def reset_optimizer(self) -> None:
        """Forget Adam's moments and step count, as a new optimizer over the same weights would."""
        self._optimizer.state.clear()

    def export(self, bucket_bytes: int) -> tuple[list[ray.ObjectRef], str, int]:
        """Put the weights into the object store in the compute dtype; ranks other than 0 only take part.

        Returns:
            References to buckets of ``{name: (array, dtype)}``, their digest, bytes.
        """
        from psyco_ray.sync import Bucket, as_array, digest

        refs: list[ray.ObjectRef] = []
        buckets: list[Bucket] = []
        bucket: dict[str, tuple[np.ndarray, str]] = {}
        total = filled = 0
        for name, tensor in self._full_parameters():
            if self.rank:
                continue
            array, dtype = as_array(tensor.cpu())
            if bucket and filled + array.nbytes > bucket_bytes:
                refs.append(ray.put(bucket))
                buckets.append(ray.get(refs[-1]))
                bucket, filled = {}, 0
            bucket[name] = (array, dtype)
            filled += array.nbytes
            total += array.nbytes
        if bucket:
            refs.append(ray.put(bucket))
            buckets.append(bucket)
        return refs, digest(buckets), total

    def save_model(self, path: str) -> None:
        """Write the weights in the compute dtype as a model directory (rank 0; the others take part)."""
        from psyco_ray import models

        state = {name: tensor.detach().cpu().clone() for name, tensor in self._full_parameters() if not self.rank}
        if not self.rank:
            models.save(Path(path), state, self._model.config, self._tokenizer)

    def save_state(self, path: str) -> None:
        """Write the float32 master weights, from which training goes on bit by bit (rank 0; the others take part)."""
        from deepspeed.utils import safe_get_full_fp32_param
        from safetensors.torch import save_file

        state = {}
        for name, parameter in self._model.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            if not self.rank:
                state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        if not self.rank:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, target.with_suffix(".partial"))
            os.replace(target.with_suffix(".partial"), target)

    def _restore(self, path: Path) -> None:
        import deepspeed
        import torch
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
        from safetensors import safe_open

        with safe_open(path, "pt") as file, torch.no_grad():
            for name, parameter in self._model.named_parameters():
                master = file.get_tensor(name).to(self._device)
                if safe_get_full_fp32_param(parameter) is not None:
                    safe_set_full_fp32_param(parameter, master)
                if self._settings.zero_stage < 3:
                    parameter.copy_(master)
                else:
                    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                        parameter.copy_(master)

    def _full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter, whole, in the compute dtype; a shared one comes once."""
        import deepspeed

        for name, parameter in self._model.named_parameters():
            if self._settings.zero_stage == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.data.clone() if not self.rank else parameter.data
            else:
                yield name, parameter.data

    def _reference(self, micro: Micro) -> torch.Tensor | None:
        import torch

        if micro[0].reference is None:
            return None
        return torch.tensor([example.reference for example in micro], dtype=torch.float32, device=self._device)


def _deepspeed_config(settings: Learners, optimizer: Optimizer, world: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # rows; a row holds as many pairs as fit micro_batch_tokens
        "gradient_accumulation_steps": 1,  # the rank itself says where a batch ends
        "train_batch_size": world,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": settings.gpus > 0,
            **({} if settings.gpus else {"reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def plan_step(batch: Sequence[Example], ranks: int, tokens: int) -> list[list[Micro]]:
    """Share a batch among ranks: equally many passes on each, balanced by tokens, none above `tokens` if possible.

    Returns:
        For every rank its passes, each with at least one pair.

    Raises:
        ValueError: there are fewer pairs than ranks.
    """
    if len(batch) < ranks:
        raise ValueError(f"a batch of {len(batch)} pairs cannot be shared by {ranks} ranks")
    longest_first = sorted(batch, key=lambda e: (-e.tokens, e.key))
    passes = min(len(batch) // ranks, math.ceil(sum(e.tokens for e in batch) / (tokens * ranks)))
    while True:
        bins: list[Micro] = [[] for _ in range(passes * ranks)]
        for example in longest_first:
            min(bins, key=lambda micro: sum(e.tokens for e in micro)).append(example)
        full = max(sum(e.tokens for e in micro) for micro in bins) > tokens
        if not full or (passes + 1) * ranks > len(batch):
            return [bins[rank::ranks] for rank in range(ranks)]
        passes += 1


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step 0 .. steps-1: linear warm-up, then the schedule down to `min_lr_ratio`."""
    warmup = math.ceil(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    left = 1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optimizer.learning_rate * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * left)


def batches(examples: Sequence[Example], optimizer: Optimizer, ranks: int, seed: int) -> list[list[Example]]:
    """The batches of all epochs, each epoch shuffled anew; a rest too small for all ranks joins the batch before.

    Raises:
        ValueError: there are fewer pairs than ranks.
    """
    if len(examples) < ranks:
        raise ValueError(f"{len(examples)} pairs cannot be shared by {ranks} ranks; give more pairs or fewer ranks")
    order = np.random.default_rng(seed)
    size = optimizer.batch_size
    found: list[list[Example]] = []
    for _ in range(optimizer.epochs):
        shuffled = [examples[i] for i in order.permutation(len(examples))]
        epoch = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        if len(epoch) > 1 and len(epoch[-1]) < ranks:
            rest = epoch.pop()
            epoch[-1] = epoch[-1] + rest
        found += epoch
    return found


class LearnerGroup:
    """The ranks that train one model together."""

    def __init__(
        self,
        model: str,
        objective: Objective,
        settings: Learners,
        optimizer: Optimizer,
        *,
        seed: int,
        state: str | None = None,
        start_s: float,
        step_s: float,
    ) -> None:
        """Create the ranks; they load in the background until `wait_ready`."""
        from psyco_ray.placement import learner_options

        self._settings, self._optimizer, self._step_s, self._start_s = settings, optimizer, step_s, start_s
        actor = ray.remote(LearnerRank)
        options, self._group = learner_options(settings)
        self.ranks = [actor.options(**options(rank)).remote(rank, settings.actors) for rank in range(settings.actors)]
        meeting = self._get([self.ranks[0].address.remote()], start_s, "meet")[0]
        self._started = [
            rank.start.remote(meeting, model, objective, settings, optimizer, seed, state, step_s)
            for rank in self.ranks
        ]

    def wait_ready(self) -> None:
        """Wait until every rank has its model."""
        self._get(self._started, self._start_s, "load its model")

    def train(self, examples: Sequence[Example], seed: int) -> Iterator[StepResult]:
        """Train on all pairs for the optimizer's epochs and yield what each step reports.

        Raises:
            ValueError: the loss became NaN, or there are too few pairs.
        """
        from time import monotonic

        planned = batches(examples, self._optimizer, len(self.ranks), seed)
        for step, batch in enumerate(planned):
            began = monotonic()
            rate = learning_rate(self._optimizer, step, len(planned))
            shares = plan_step(batch, len(self.ranks), self._settings.micro_batch_tokens)
            sums = self._get(
                [rank.step.remote(share, len(batch), rate) for rank, share in zip(self.ranks, shares, strict=True)],
                self._step_s,
                "finish an optimizer step",
            )
            means = {name: sum(s[name] for s in sums) / len(batch) for name in sums[0] if name != "grad_norm"}
            yield StepResult(
                step=step,
                steps=len(planned),
                loss=means.pop("loss"),
                learning_rate=rate,
                grad_norm=sums[0].get("grad_norm"),
                metrics=means,
                tokens=sum(e.tokens for e in batch),
                seconds=monotonic() - began,
            )

    def values(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        """Scores or log-probabilities (chosen, rejected) under the current weights, in the order of the pairs."""
        if not examples:
            return []
        size = len(self.ranks)
        padded = list(examples) + [examples[-1]] * (-len(examples) % size)  # ZeRO-3 ranks walk in step
        share = len(padded) // size
        shares = [padded[i * share : (i + 1) * share] for i in range(size)]
        found = self._get(
            [r.values.remote([[e] for e in s]) for r, s in zip(self.ranks, shares, strict=True)],
            self._step_s,
            "compute values",
        )
        return [pair for part in found for pair in part][: len(examples)]

    def export(self, version: int, bucket_mb: int) -> Weights:
        """The current weights, in the object store."""
        found = self._get([r.export.remote(bucket_mb * 2**20) for r in self.ranks], self._step_s, "export its weights")
        refs, digest, size = found[0]
        return Weights(version=version, digest=digest, refs=tuple(refs), bytes=size)

    def reset_optimizer(self) -> None:
        """Forget Adam's moments on every rank."""
        self._get([r.reset_optimizer.remote() for r in self.ranks], self._step_s, "reset its optimizer")

    def save_model(self, path: Path) -> None:
        """Write a model directory that transformers and vLLM load."""
        self._get([r.save_model.remote(str(path.absolute())) for r in self.ranks], self._step_s, "save the model")

    def save_state(self, path: Path) -> None:
        """Write the float32 weights that `state` continues from."""
        self._get([r.save_state.remote(str(path.absolute())) for r in self.ranks], self._step_s, "save its state")

    def close(self) -> None:
        """End the ranks and free what they held."""
        for rank in self.ranks:
            ray.kill(rank)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)

    def _get(self, refs: list[ray.ObjectRef], deadline_s: float, what: str) -> list[Any]:
        """All results; the first failure at once, for the other ranks would wait in a collective for ever.

        Raises:
            TimeoutError: not all ranks answered in time.
        """
        waiting = list(refs)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=deadline_s)
            if not done:
                late = [i for i, ref in enumerate(refs) if ref in waiting]
                raise TimeoutError(f"learner ranks {late} did not {what} within {deadline_s:g} s")
            ray.get(done)
        return ray.get(refs)
