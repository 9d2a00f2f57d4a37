"""The GPU memory of a learner rank, calculated from the sizes of its model and settings.

It follows DeepSpeed 0.19.8 with the sizes below, and the activations that transformers' Llama keeps in its eager
forward pass with this package's attention and loss. ``tests/learner/test_memory.py`` compares it with torch's tracker.
"""

from __future__ import annotations

from dataclasses import dataclass

from psyco_ray.config.resources import Learners
from psyco_ray.models.shape import ModelShape, value_bytes

REDUCE_BUCKET = 200_000_000  # gradient elements in one reduction on GPUs
LIVE_PARAMETERS = 500_000_000  # of other ranks that ZeRO-3 has gathered at a time
SUB_GROUP = 500_000_000  # parameters of a rank whose float32 gradients ZeRO-3 has at a time
PARAMETER_GROUPS = 8  # of the optimizer; ZeRO-1 and ZeRO-2 have the float32 gradients of one at a time


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank on its GPU.

    Attributes:
        states: weights, gradients, float32 weights and moments.
        weights: those in the compute dtype, which it has while it sends them.
        gathered: the largest parameter, whole.
        training: states, buffers and activations at the peak of a step.
    """

    states: float
    weights: float
    gathered: float
    training: float


def accumulates_float32(settings: Learners) -> bool:
    """Whether the gradients of several passes are summed in float32, on GPUs alone.

    ZeRO-1 sums them in the compute dtype: with another one DeepSpeed uses an optimizer that cannot leave the GPU.
    """
    return settings.gpus > 0 and settings.dtype == "bfloat16" and settings.zero_stage in (2, 3)


def rank_memory(shape: ModelShape, settings: Learners, longest: int, ranks: int | None = None) -> RankMemory:
    """The memory of one rank.

    Args:
        shape: of the trained model.
        settings: of the learner.
        longest: tokens of the longest prompt with both of its responses.
        ranks: number of ranks; None: `settings.actors`.
    """
    ranks = ranks or settings.actors
    value = value_bytes(settings.dtype)
    gradient = 4 if accumulates_float32(settings) else value
    own = shape.parameters / ranks  # parameters whose optimizer states are here
    weights = value * (shape.parameters if settings.zero_stage < 3 else own)
    # float32 weights and both moments; at stage 0 the weights are float32 themselves
    optimizer = 8 * shape.parameters if settings.zero_stage == 0 else 12 * own
    states = weights + gradient * (shape.parameters if settings.zero_stage < 2 else own) + optimizer
    largest = value * shape.vocabulary * shape.hidden
    bucket = value * min(REDUCE_BUCKET, shape.parameters)
    if settings.zero_stage == 3:
        live = 0 if ranks == 1 else value * min(LIVE_PARAMETERS, shape.parameters)
        buffers = live + bucket + largest
        step = 4 * min(SUB_GROUP, own)
    else:
        buffers = 2 * bucket if settings.zero_stage else 0  # one is reduced while the other fills
        step = (4 + value) * own / PARAMETER_GROUPS
    training = states + max(buffers + pass_bytes(shape, settings, longest), step)
    return RankMemory(states, weights, largest, training)


def pass_bytes(shape: ModelShape, settings: Learners, longest: int) -> float:
    """Bytes of a forward and backward pass beside weights and their gradients, at its peak; `longest` as above."""
    value, tokens = value_bytes(settings.dtype), settings.micro_batch_tokens
    layer = tokens * layer_values(shape) * value
    mask = tokens * longest * value
    checkpointed = settings.gradient_checkpointing
    kept = mask + shape.layers * (tokens * shape.hidden * value if checkpointed else layer)
    recomputed = layer if checkpointed else 0.0
    embedding = value * shape.vocabulary * shape.hidden
    # a layer's gradients; the output layer's, where it is the embedding, waits for the embedding's until the end
    backward = recomputed + tokens * (3 * shape.intermediate + 2 * shape.hidden) * value
    waiting = embedding if shape.tied else 0.0
    return max(kept + head_bytes(shape, settings), kept + backward + waiting, 3 * waiting)


def layer_values(shape: ModelShape) -> float:
    """Values of a token that a layer keeps for its backward pass, in units of the compute dtype.

    Of each of the two norms: the input in float32, normalised, and scaled (4 units). Of attention: queries, keys and
    values; the same laid out in rows, with keys and values expanded; its output in rows and by token. Of the
    feed-forward part: both projections, the activation, and the product.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return 8 * shape.hidden + 6 * queries + 2 * keys + 4 * shape.intermediate


def head_bytes(shape: ModelShape, settings: Learners) -> float:
    """Bytes of the output layer: logits in the compute dtype and in float32, the weight's gradient, the last norm."""
    value = value_bytes(settings.dtype)
    logits = min(settings.logit_rows, settings.micro_batch_tokens) * shape.vocabulary * (value + 4)
    return logits + value * shape.hidden * (shape.vocabulary + 5 * settings.micro_batch_tokens)
