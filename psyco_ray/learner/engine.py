"""The model, AdamW and DeepSpeed engine of one learner worker.

Only a worker imports this module, after it has set `DS_ACCELERATOR`, which DeepSpeed reads on import.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from psyco_ray.config.optimizer import Optimizer
from psyco_ray.config.resources import Learners
from psyco_ray.learner import lora, memory, rendezvous
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, reward_model, selftest
from psyco_ray.models.packing import ResponseLogprobs, ResponseScores
from psyco_ray.models.weight_files import WeightFiles

REDUCE_BUCKET = 2**25  # gradient elements in one all-reduce on a CPU, which copies them


@dataclass(frozen=True)
class LearnerEngine:
    """A DeepSpeed engine and the objects it was built from."""

    engine: Any  # deepspeed.DeepSpeedEngine over `ResponseScores` or `ResponseLogprobs`
    model: PreTrainedModel  # whose parameter names are exported
    optimizer: torch.optim.AdamW
    tokenizer: PreTrainedTokenizerBase
    files: WeightFiles  # how the model is sent and saved
    note: str  # why the model is computed the plain way; empty if it is packed


def init_process_group(
    spec: WorkerSpec, rank: int, world_size: int, address: rendezvous.Address, listener: socket.socket | None
) -> torch.device:
    """Seed torch and join the process group: NCCL on GPUs, gloo on CPUs.

    Args:
        spec: of the worker.
        rank: of this worker.
        world_size: number of workers.
        address: where rank 0 listens.
        listener: of rank 0 alone.

    Returns:
        The device of this worker.
    """
    on_gpu = spec.settings.gpus > 0
    torch.set_num_threads(spec.settings.threads)
    torch.manual_seed(spec.seed)
    # DeepSpeed compiles its own CPU collectives on first use; a killed build blocks every later one, and they leak
    # shared memory. gloo has neither problem.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(seconds=spec.deadlines.step_s)
    rendezvous.join(backend, address, rank, world_size, timeout, listener)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def build_engine(spec: WorkerSpec, world_size: int) -> LearnerEngine:
    """Load the model, build AdamW and the DeepSpeed engine over it, and choose how the model is computed.

    Raises:
        InputError: the model cannot be trained; see `selftest.choose`.
    """
    stage = spec.settings.zero_stage
    config = _deepspeed_config(spec.settings, spec.optimizer, world_size)
    module, tokenizer, files = _load_module(spec, config)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameter_groups(trainable) if stage in (1, 2) else trainable,
        lr=spec.optimizer.learning_rate,
        betas=spec.optimizer.betas,
        weight_decay=spec.optimizer.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=module.train(), optimizer=optimizer, config=config)
    if not spec.optimizer.dropout:
        disable_dropout(files.model)
    if stage == 0:
        # DeepSpeed would copy all gradients into one buffer, even for a single worker; the worker reduces them itself
        engine.enable_backward_allreduce = False
    kind = "new reward model" if spec.objective.head == "reward" else "policy"
    choice = selftest.choose(module, spec.model, engine)
    return LearnerEngine(engine, files.model, optimizer, tokenizer, files, choice.note(f"{kind} {spec.model}"))


def disable_dropout(model: PreTrainedModel) -> None:
    """Put a model into eval mode, in which layers still recompute activations if they are to.

    transformers recomputes the activations of layers in training mode only.
    """
    model.eval()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = True
            layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "training", False))
            layer.register_forward_hook(lambda layer, *_: setattr(layer, "training", True), always_call=True)


def _load_module(
    spec: WorkerSpec, config: dict[str, Any]
) -> tuple[ResponseLogprobs | ResponseScores, PreTrainedTokenizerBase, WeightFiles]:
    """Load the module that the engine trains, its tokenizer, and how the transformers model inside it is written."""
    settings = spec.settings
    # transformers loads a model in ZeRO-3 shards while this object exists
    zero3 = HfDeepSpeedConfig(config) if settings.zero_stage == 3 else None
    path = loading.resolve(spec.model, digests=True)
    tokenizer = loading.load_tokenizer(path, template_options=spec.template_options)
    module: ResponseLogprobs | ResponseScores
    if spec.objective.head == "reward":
        model = reward_model.new_model(path, tokenizer, settings.dtype, spec.seed)
        module = ResponseScores(model, backend=settings.attention)
    else:
        model = loading.load_causal_lm(path, settings.dtype)
        module = ResponseLogprobs(model, settings.logit_rows, settings.attention)
    del zero3  # no later model is loaded in shards
    files = WeightFiles(model, path)
    if spec.lora is not None:
        lora.inject(model, spec.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _freeze_image_parts(model)
    return module, tokenizer, files


def _freeze_image_parts(model: PreTrainedModel) -> None:
    """Train the text part alone: no pair has an image, and weight decay would wear away what sees no gradient."""
    if model.config.get_text_config() is model.config:
        return
    text = [model.get_decoder(), model.get_output_embeddings(), getattr(model, "score", None)]
    trained = {id(parameter) for part in text if part is not None for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def parameter_groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Split parameters, in order, into up to eight optimizer groups of about the same size.

    In its step ZeRO-1 and ZeRO-2 hold a float32 copy of one group's gradients. A single group would make this copy the
    peak of the training's memory.
    """
    capacity = -(-sum(parameter.numel() for parameter in parameters) // memory.PARAMETER_GROUPS)
    groups: list[dict[str, Any]] = []
    filled = capacity
    for parameter in parameters:
        if filled >= capacity:
            groups.append({"params": []})
            filled = 0
        groups[-1]["params"].append(parameter)
        filled += parameter.numel()
    return groups


def _deepspeed_config(settings: Learners, optimizer: Optimizer, world_size: int) -> dict[str, Any]:
    bucket = memory.REDUCE_BUCKET if settings.gpus else REDUCE_BUCKET
    zero: dict[str, Any] = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if settings.gpus:
        zero |= {
            "stage3_max_live_parameters": memory.LIVE_PARAMETERS,
            "stage3_max_reuse_distance": memory.LIVE_PARAMETERS,
            "sub_group_size": memory.SUB_GROUP,
        }
    # the sum of many passes loses small gradients in bfloat16
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if memory.accumulates_float32(settings) else {}
    return {
        **sums,
        "train_micro_batch_size_per_gpu": 1,  # rows; a row holds as many pairs as fit into micro_batch_tokens
        "gradient_accumulation_steps": 1,  # the worker marks the end of a batch
        "train_batch_size": world_size,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": {"stage": settings.zero_stage, "overlap_comm": settings.gpus > 0, **zero},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
