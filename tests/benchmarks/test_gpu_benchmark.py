"""`benchmarks/gpu.py`: its arithmetic, its random models, and its errors."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT
from torch.utils.flop_counter import FlopCounterMode

from psyco_ray.cli.plan import cost_model
from psyco_ray.config.errors import InputError
from psyco_ray.models import attention, loading
from psyco_ray.models.packing import ResponseLogprobs, pack

SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu  # noqa: E402 - a script beside the package
import shapes  # noqa: E402

PAIRS = [(30, 25, 20), (7, 1, 12)]
H100 = gpu.Gpu("NVIDIA H100 80GB HBM3", 85_000_000_000)


def shape(name: str) -> SimpleNamespace:
    return SimpleNamespace(**shapes.LLAMAS[name])


def options(model: str) -> argparse.Namespace:
    return argparse.Namespace(model=model, zero=2, micro=None, checkpointing=False)


@pytest.mark.parametrize(("name", "layer"), [("tiny", 36_864), ("3b", 100_663_296), ("8b", 218_103_808)])
def test_parameters_of_a_layer_by_hand(name: str, layer: int) -> None:
    assert shapes.layer_parameters(shape(name)) == layer


@pytest.mark.parametrize(("name", "known"), [("3b", "llama-3.2-3b"), ("8b", "llama-3.1-8b")])
def test_the_shapes_have_the_parameters_that_plan_knows(name: str, known: str) -> None:
    config = shape(name)
    matrices = config.num_hidden_layers * shapes.layer_parameters(config)
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert matrices + ends + norms == cost_model.SHAPES[known].parameters


def test_flops_by_hand() -> None:
    # a prompt of 3 attends to 1 + 2 + 3 tokens, a response of 2 to 4 + 5, a response of 1 to 4
    layers, head, attention = 2 * 2 * 36_864 * 6, 2 * 64 * 50_048 * 3, 4 * 2 * 2 * 32 * (6 + 9 + 4)
    assert shapes.forward_flops(shape("tiny"), [(3, 2, 1)]) == layers + head + attention == 20_112_896
    assert shapes.training_flops(shape("tiny"), [(3, 2, 1)] * 5) == 15 * 20_112_896
    # short responses without prompts: little more than 6 FLOPs per parameter and token
    tokens = 6 * cost_model.SHAPES["llama-3.2-3b"].parameters * 2000
    assert shapes.training_flops(shape("3b"), [(0, 1000, 1000)]) == pytest.approx(tokens, rel=0.06)


@pytest.mark.parametrize("training", [False, True])
def test_flops_equal_those_that_torch_counts(tiny_model, training: bool) -> None:
    policy = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32"))
    packed = pack([([5] * prompt, [[6] * chosen, [7] * rejected]) for prompt, chosen, rejected in PAIRS])
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logprobs = policy(packed)
        if training:
            logprobs.sum().backward()
    # torch also counts the masked part of each block of queries
    config = policy.model.config
    assert max(map(max, PAIRS)) <= attention.BLOCK
    masked = sum(p * (p - 1) // 2 + sum(r * (r - 1) // 2 for r in responses) for p, *responses in PAIRS)
    masked *= 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    counted = counter.get_total_flops() - (3 if training else 1) * masked
    assert counted == (shapes.training_flops if training else shapes.forward_flops)(config, PAIRS)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_peaks_by_name(name: str, peak: float) -> None:
    assert gpu.peak_of(gpu.Gpu(name, 1), None) == peak
    assert gpu.peak_of(gpu.Gpu(name, 1), 5e12) == 5e12


def test_an_unknown_peak_is_an_error() -> None:
    with pytest.raises(InputError, match="the peak of Radeon is unknown; pass --peak"):
        gpu.peak_of(gpu.Gpu("Radeon", 1), None)
    assert gpu.peak_of(gpu.Gpu("Radeon", 1), 5e12) == 5e12


def test_a_memory_shortage_is_explained() -> None:
    def shortage(name: str, device: gpu.Gpu | None) -> str | None:
        return gpu.memory_shortage(gpu.job_of(name, options(name), on_gpu=True), name, device)

    assert shortage("135m", H100) is shortage("3b", H100) is shortage("8b", None) is None
    assert shortage("8b", gpu.Gpu("NVIDIA B200", 192_000_000_000)) is None
    reason = shortage("8b", H100)
    assert reason is not None
    assert reason.startswith("learner and sync of 8b are left out: ")
    assert reason.endswith("and NVIDIA H100 80GB HBM3 has 76")


def test_mfu_of_the_median_round(monkeypatch) -> None:
    monkeypatch.setattr(gpu.Gpu, "here", lambda: H100)
    namespace = argparse.Namespace(model="3b", peak=1e15)
    line = gpu.mfu_line("learner", namespace, flop_count=10**15, seconds=[99.0, 2.0, 4.0, 2.5])
    assert (line["ratio"], line["bar"], line["pass"]) == (0.4, 0.4, True)
    assert line["ours"] / line["peer"] == pytest.approx(0.4, rel=1e-3)
    assert gpu.mfu_line("learner", namespace, flop_count=10**15, seconds=[1.0, 3.0])["pass"] is False
    assert gpu.mfu_line("forward", namespace, flop_count=10**15, seconds=[1.0, 3.0])["bar"] is None


def test_random_models_are_complete_and_reproducible(tmp_path) -> None:
    for name in ("one", "two"):
        shapes.write("tiny", str(tmp_path / name))
    one, two = (loading.load_causal_lm(loading.resolve(str(tmp_path / name)), "float32") for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight, norm = one.model.layers[1].mlp.up_proj.weight, one.model.norm.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert norm.eq(1).all()
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert loading.load_tokenizer(tmp_path / "one").eos_token_id == one.config.eos_token_id


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_ends_with_an_explanation() -> None:
    command = [sys.executable, str(SCRIPT), "--model", "8b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    expected = "--model 8b needs an NVIDIA GPU; --model tiny runs on the CPU\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
