"""The kernels of packed attention on a GPU, and that the passes of a step never wait for it."""

import random
import statistics
import time
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from psyco_ray.config.training import DpoConfig
from psyco_ray.learner import passes
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.models import loading, selftest
from psyco_ray.models.packing import ResponseLogprobs
from psyco_ray.run.types import PreferencePair

pytestmark = [pytest.mark.slow, pytest.mark.gpus(1)]


def trees(count: int) -> list:
    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 40000) for _ in range(rng.randint(low, high))]

    start = ids(100, 100)
    made = [(start + ids(20, 200), [ids(20, 90) for _ in range(rng.randint(2, 4))]) for _ in range(count - 1)]
    return [*made, ([*made[0][0], *ids(150, 150)], [made[0][1][0], ids(20, 90)])]  # the next turn of the first


def loaded(path, backend: str, dtype: str, device: str) -> ResponseLogprobs:
    module = ResponseLogprobs(loading.load_causal_lm(path, dtype).to(device), backend=backend)
    assert not selftest.choose(module, backend).plain
    return module


def results(module: ResponseLogprobs, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and the gradient of the embedding, which every layer changes."""
    module.zero_grad()
    values = module(module.pack(trees(6), (), torch.device(device)))
    (values * torch.linspace(-1, 1, len(values), device=device)).sum().backward()
    return values.detach().cpu(), module.model.get_input_embeddings().weight.grad.float().cpu()


@pytest.mark.parametrize(
    ("backend", "dtype"), [("sdpa", "float32"), ("sdpa", "bfloat16"), ("flex", "bfloat16"), ("varlen", "bfloat16")]
)
def test_every_kernel_computes_what_the_cpu_computes(tiny_model, backend: str, dtype: str) -> None:
    values, gradient = results(loaded(tiny_model, backend, dtype, "cuda"), "cuda")
    expected, expected_gradient = results(loaded(tiny_model, "auto", "float32", "cpu"), "cpu")
    exact = dtype == "float32"
    torch.testing.assert_close(values, expected, rtol=1e-4 if exact else 2e-2, atol=1e-2 if exact else 1.0)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > (0.9999 if exact else 0.99)


@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_no_pass_of_a_step_waits_for_the_gpu(tiny_model, backend: str) -> None:
    device, rng = torch.device("cuda"), random.Random(1)

    def ids(high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(rng.randint(3, high)))

    pairs = [PreferencePair(f"pair-{i}", ids(300), ids(90), ids(90), (-300.0, -300.0)) for i in range(8)]
    policy = ResponseLogprobs(loading.load_causal_lm(tiny_model, "bfloat16").to(device), backend=backend)

    def run() -> passes.StepValues:
        micro_batches = [pairs[i : i + 4] for i in (0, 4)]
        objective = DpoObjective(DpoConfig())
        return passes.run(micro_batches, objective, 45.0, device, policy, policy, lambda loss, _: loss.backward())

    run().read("policy", "", "")  # libraries wait while they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.read("policy", "", "")["loss"] > 0


class AttentionKernels(TorchDispatchMode):
    """Writes down which kernels torch chooses for attention."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "attention" in name:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def test_rows_with_a_mask_have_a_fused_kernel(tiny_model) -> None:
    """Not the one that keeps all scores; and not cuDNN's, which plans every new shape."""
    fused = "_scaled_dot_product_efficient_attention"
    module = loaded(tiny_model, "sdpa", "bfloat16", "cuda")
    with AttentionKernels() as chosen:
        values, gradient = results(module, "cuda")
    assert chosen.names == {fused, f"{fused}_backward"}
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):  # torch raises where it cannot run
        expected, expected_gradient = results(module, "cuda")
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.9999, "sums on a GPU have no fixed order"


def test_a_new_shape_takes_about_as_long_as_a_repeated_one(tiny_model, record_property) -> None:
    """A kernel that is planned or compiled anew for every shape takes several times as long."""
    device = torch.device("cuda")
    module = ResponseLogprobs(loading.load_causal_lm(tiny_model, "bfloat16").to(device), backend="sdpa")

    def seconds(rows: int, width: int) -> float:
        """Of a forward and backward pass over rows of one width, with a response of 40 tokens each."""
        texts = [([5 + row] * (width - 40), [[7 + row] * 40]) for row in range(rows)]
        packed = module.pack(texts, (), device)
        assert packed.ends.shape == (rows, width)
        torch.cuda.synchronize()
        began = time.perf_counter()
        module(packed).sum().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    shapes = [(rows, width) for rows in range(3, 8) for width in (128, 256, 384, 512)]
    for rows, width in ((8, 640), (2, 128), (1, 640), (8, 128)):  # libraries and memory, with none of the shapes
        seconds(rows, width)
    new = [seconds(*shape) for shape in shapes]
    repeated = [seconds(*shape) for _ in range(2) for shape in shapes]
    medians = statistics.median(new), statistics.median(repeated)
    record_property("seconds_of_new_and_repeated_shapes", medians)
    assert medians[0] < 3 * medians[1]
