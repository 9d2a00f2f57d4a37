"""The kernels of packed attention on a GPU, and that the passes of a step never wait for it."""

import random

import pytest
import torch

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


def results(path, backend: str, dtype: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and the gradient of the embedding, which every layer changes."""
    module = ResponseLogprobs(loading.load_causal_lm(path, dtype).to(device), backend=backend)
    assert not selftest.choose(module, backend).plain
    values = module(module.pack(trees(6), (), torch.device(device)))
    (values * torch.linspace(-1, 1, len(values), device=device)).sum().backward()
    return values.detach().cpu(), module.model.get_input_embeddings().weight.grad.float().cpu()


@pytest.mark.parametrize(
    ("backend", "dtype"), [("sdpa", "float32"), ("sdpa", "bfloat16"), ("flex", "bfloat16"), ("varlen", "bfloat16")]
)
def test_every_kernel_computes_what_the_cpu_computes(tiny_model, backend: str, dtype: str) -> None:
    values, gradient = results(tiny_model, backend, dtype, "cuda")
    expected, expected_gradient = results(tiny_model, "auto", "float32", "cpu")
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
