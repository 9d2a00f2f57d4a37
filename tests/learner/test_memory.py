"""The calculated memory of a learner rank against torch's own tracker, on tensors without data."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM

from psyco_ray.config.resources import Learners
from psyco_ray.learner import memory
from psyco_ray.models import attention
from psyco_ray.models.packing import Packed, ResponseLogprobs, pack
from psyco_ray.models.shape import SHAPES, ModelShape

PROMPT, RESPONSE = 400, 300  # tokens


def config_of(shape: ModelShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
    )


def fake(packed: Packed, mode: FakeTensorMode) -> Packed:
    tensors = {k: mode.from_tensor(v) for k, v in vars(packed).items() if isinstance(v, torch.Tensor)}
    return replace(packed, **tensors)


def tracked_peak(shape: ModelShape, settings: Learners, pairs: int) -> int:
    """Bytes at the peak of a later pass of a step in plain torch, with float32 weights beside those in bfloat16."""
    batch = pack([([5 + n] * PROMPT, [[6] * RESPONSE, [7] * RESPONSE]) for n in range(pairs)])
    mode, tracker = FakeTensorMode(), MemTracker()
    with mode:
        model = LlamaForCausalLM._from_config(config_of(shape), dtype=torch.bfloat16)
        model.set_attn_implementation(attention.NAME)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module = ResponseLogprobs(model, settings.logit_rows, "sdpa")  # as on a GPU
        master = [torch.nn.Parameter(p.detach().float()) for p in module.parameters()]
        optimizer = torch.optim.AdamW(master, foreach=False, fused=False)
        for parameter in master:
            state = {"step": torch.tensor(1.0), **{k: torch.zeros_like(parameter) for k in ("exp_avg", "exp_avg_sq")}}
            optimizer.state[parameter] = state
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)  # of an earlier pass of the step
        tracker.track_external(module, optimizer, *master)
        inputs = fake(batch, mode)
        with tracker:
            module(inputs).sum().backward()
    return max(tracker.get_tracker_snapshot("peak").values(), key=lambda part: part["Total"])["Total"]


def with_layers(shape: ModelShape, layers: int) -> ModelShape:
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    layer = 2 * shape.hidden * (queries + keys) + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return replace(shape, layers=layers, parameters=shape.parameters - (shape.layers - layers) * layer)


WHOLE = [pytest.param(shape, marks=pytest.mark.long, id=name) for name, shape in SHAPES.items()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [pytest.param(with_layers(SHAPES["smollm2-135m"], 3), id="3 layers"), *WHOLE])
def test_the_memory_of_training_is_what_torch_tracks(record_property, shape, checkpointing: bool) -> None:
    pairs, longest = 4, PROMPT + 2 * RESPONSE
    settings = Learners(
        zero_stage=1, dtype="bfloat16", micro_batch_tokens=pairs * longest, gradient_checkpointing=checkpointing
    )
    tracked, states = tracked_peak(shape, settings, pairs), 16 * shape.parameters
    of_pass = memory.pass_bytes(shape, settings, longest)
    record_property("bytes", (tracked, states, of_pass))
    assert memory.rank_memory(shape, settings, longest, ranks=1).states == states
    assert of_pass + states == pytest.approx(tracked, rel=0.1)
    assert of_pass == pytest.approx(tracked - states, rel=0.1), "without the states, which are the larger part"


def beside_the_pass(shape: ModelShape, settings: Learners) -> float:
    """Bytes of a step beside a rank's states and its pass."""
    rank = memory.rank_memory(shape, settings, 1000)
    return rank.training - rank.states - memory.pass_bytes(shape, settings, 1000)


def test_a_pass_of_zero_3_has_gathered_parameters_a_bucket_and_the_whole_embedding_beside_it() -> None:
    eight, settings = SHAPES["llama-3.1-8b"], Learners(gpus=1, actors=4, zero_stage=3)
    live, bucket, embedding = 2 * 500e6, 2 * 200e6, 2 * 128_256 * 4096
    assert beside_the_pass(eight, settings) == pytest.approx(live + bucket + embedding)
    alone = settings.model_copy(update={"actors": 1})
    assert beside_the_pass(eight, alone) == pytest.approx(bucket + embedding), "no other rank has parameters to gather"
    two = settings.model_copy(update={"zero_stage": 2})
    assert beside_the_pass(eight, two) == pytest.approx(2 * bucket)


@pytest.mark.parametrize(
    ("parameters", "ranks", "stage", "expected"),
    [
        pytest.param(8e9, 4, 3, 4 * 500e6, id="float32 gradients of a sub-group"),
        pytest.param(3e8, 1, 3, 4 * 3e8, id="of all parameters, which are fewer"),
        pytest.param(24e9, 2, 2, (4 + 2) * 12e9 / 8, id="of one of eight groups, and its weights"),
    ],
)
def test_a_small_pass_takes_less_than_the_optimizer_step(parameters, ranks, stage, expected) -> None:
    """A vocabulary of few tokens leaves the pass little to keep."""
    shape = replace(SHAPES["llama-3.1-8b"], vocabulary=1000, parameters=int(parameters))
    settings = Learners(gpus=1, actors=ranks, zero_stage=stage, micro_batch_tokens=64, gradient_checkpointing=True)
    rank = memory.rank_memory(shape, settings, 64)
    assert memory.pass_bytes(shape, settings, 64) < 0.1e9
    assert rank.training - rank.states == pytest.approx(expected)
