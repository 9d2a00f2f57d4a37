import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

from psyco_ray.models import attention, branches, loading
from psyco_ray.models.lm_head import chunked_logprobs
from psyco_ray.models.packing import ResponseLogprobs, ResponseScores, branch, pack


def trees(count: int, seed: int = 0) -> list:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 40000) for _ in range(rng.randint(low, high))]

    return [(ids(1, 30), [ids(1, 25) for _ in range(rng.randint(1, 4))]) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tiny_model):
    """The model with transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(params=["branches", "sdpa"])
def packing(request, tiny_model, monkeypatch):
    """The same model with packed attention, by branches as on a CPU and in rows as on a GPU."""
    monkeypatch.setattr(attention, "kernel_of", lambda *_: request.param)
    return loading.load_causal_lm(tiny_model, "float32")


@pytest.fixture(scope="module")
def scorer(tiny_reward_model):
    return AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def packing_scorer(tiny_reward_model):
    return ResponseScores(
        AutoModelForSequenceClassification.from_pretrained(
            tiny_reward_model, dtype=torch.float32, attn_implementation=attention.NAME
        ).eval()
    )


def plain_logprob(model, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()


def test_packed_logprobs_equal_one_plain_forward_each(model, packing) -> None:
    batch = trees(5)
    with torch.no_grad():
        packed = ResponseLogprobs(packing, logit_rows=7)(pack(batch)).tolist()
    plain = [plain_logprob(model, prompt, response) for prompt, responses in batch for response in responses]
    assert packed == pytest.approx(plain, abs=2e-4)


def test_tokens_of_context_are_attended_to_and_not_counted(model, packing) -> None:
    batch = trees(5, seed=3)
    context = [len(response) // 2 for _, responses in batch for response in responses]
    assert min(context) == 0 < max(context)
    results = []
    for plain in (False, True):
        module = ResponseLogprobs(packing, logit_rows=7)
        module.set_plain(plain)
        values = module(pack(batch, context))
        values.square().sum().backward()
        results.append((values.tolist(), {name: p.grad for name, p in packing.named_parameters()}))
        packing.zero_grad()
    sides = [(prompt, response) for prompt, responses in batch for response in responses]
    expected = [plain_logprob(model, [*p, *ids[:k]], ids[k:]) for (p, ids), k in zip(sides, context, strict=True)]
    (packed, gradients), (plain, others) = results
    assert packed == pytest.approx(expected, abs=2e-4)
    assert plain == pytest.approx(expected, abs=2e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-2, rtol=2e-3)


def test_without_context_every_token_counts() -> None:
    batch = trees(4)
    branches = [response for _, responses in batch for response in responses]
    packed, zeros = pack(batch), pack(batch, [0] * len(branches))
    assert packed.targets.tolist() == [token for response in branches for token in response]
    for name, value in vars(packed).items():
        assert torch.equal(value, vars(zeros)[name]) if isinstance(value, torch.Tensor) else value == vars(zeros)[name]
    with pytest.raises(AssertionError, match="has a token to sum"):
        pack([([1], [[2, 3], [4]])], [1, 1])


def test_gradients_equal_those_of_plain_forwards(model, packing) -> None:
    batch = trees(3, seed=1)
    weights = torch.randn(sum(len(r) for _, r in batch), generator=torch.Generator().manual_seed(0))
    (ResponseLogprobs(packing, logit_rows=5)(pack(batch)) * weights).sum().backward()
    packed = {name: p.grad for name, p in packing.named_parameters()}
    index = 0
    for prompt, responses in batch:
        for response in responses:
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()
            (chosen * weights[index]).backward()
            index += 1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=2e-4, rtol=2e-3)
    model.zero_grad()


def test_gradients_do_not_depend_on_the_size_of_a_block(model, packing, monkeypatch) -> None:
    monkeypatch.setattr(branches, "BLOCK", 4)
    test_gradients_equal_those_of_plain_forwards(model, packing)


@pytest.mark.parametrize("window", [3, 12])
def test_a_sliding_window_limits_attention_in_rows_and_branches(tiny_model, monkeypatch, window: int) -> None:
    """The oracle is transformers, one conversation at a time."""
    config = MistralConfig(**{**AutoConfig.from_pretrained(tiny_model).to_dict(), "model_type": "mistral"})
    config.sliding_window = window
    torch.manual_seed(1)
    model = MistralForCausalLM(config).eval()
    batch = trees(4, seed=5)
    plain = [plain_logprob(model, prompt, response) for prompt, responses in batch for response in responses]
    model.set_attn_implementation(attention.NAME)
    monkeypatch.setattr(branches, "BLOCK", 8)
    for backend in ("auto", "sdpa", "flex"):
        with torch.no_grad():
            values = ResponseLogprobs(model, backend=backend)(pack(batch)).tolist()
        assert values == pytest.approx(plain, abs=2e-4), backend


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logit_rows", [7, 25, 50, 64])
def test_the_chunked_head_is_as_exact_as_a_plain_one(dtype: torch.dtype, logit_rows: int, biased: bool) -> None:
    """The oracle is float64; the error of a plain head in the same dtype sets the bound."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(50, 16), (300, 16), (300,)][: 3 if biased else 2]
    tensors = [torch.randn(*shape, generator=draw).to(dtype) for shape in shapes]
    targets, slopes = torch.randint(300, (50,), generator=draw), torch.randn(50, generator=draw)

    def results(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
        values = function(*leaves)
        (values * slopes).sum().backward()
        return [values.double(), *(leaf.grad.double() for leaf in leaves)]

    def plain(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        logits = linear(rows, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)

    def chunked(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return chunked_logprobs(rows, weight, bias, targets, logit_rows)

    computed = (results(plain, torch.float64), results(plain, dtype), results(chunked, dtype))
    for exact, usual, tested in zip(*computed, strict=True):
        scale, usual_error = exact.abs().max(), (usual - exact).abs().max()
        assert (tested - exact).abs().max() <= 1.5 * usual_error + 1e-6 * scale


def test_the_head_computes_no_gradient_of_frozen_tensors() -> None:
    rows, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    chunked_logprobs(rows, weight, None, torch.arange(6), 4).sum().backward()
    assert rows.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not chunked_logprobs(rows, weight, None, torch.arange(6), 4).requires_grad


def test_gradient_checkpointing_does_not_change_gradients(tiny_model) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = loading.load_causal_lm(tiny_model, "float32").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ResponseLogprobs(model, logit_rows=64)(pack(trees(4))).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_scores_equal_those_of_transformers_and_do_not_depend_on_batch_mates(scorer, packing_scorer) -> None:
    batch = trees(8, seed=2)
    with torch.no_grad():
        alone = [packing_scorer(pack([(p, [r])])).item() for p, rs in batch for r in rs]
        together = packing_scorer(pack(batch)).tolist()
        backwards = packing_scorer(pack(batch[::-1])).tolist()
        expected = [scorer(torch.tensor([p + r])).logits.item() for p, rs in batch for r in rs]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(expected, abs=1e-5)
    assert sorted(backwards) == pytest.approx(sorted(alone), abs=1e-5)


def test_padding_in_transformers_does_not_change_a_score(scorer, tiny_reward_model) -> None:
    """A text that ends with the end-of-turn token keeps its score in a padded batch, because the pad token differs."""
    tokenizer = loading.load_tokenizer(tiny_reward_model)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert scorer.config.pad_token_id == tokenizer.pad_token_id
    texts = ["Hello<|im_end|>", "A much longer answer, with many more words in it than the other one.<|im_end|>"]
    with torch.no_grad():
        padded = scorer(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
        alone = [scorer(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    assert padded == pytest.approx(alone, abs=1e-5)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5))
def test_branch_loses_no_token(conversations: list[list[int]]) -> None:
    shared, rests = branch(conversations)
    assert [[*shared, *rest] for rest in rests] == conversations
    assert all(rests)


def test_empty_sequences_are_refused() -> None:
    for tree in (([], [[1]]), ([1], [[]])):
        with pytest.raises(AssertionError, match="prompts and responses have tokens"):
            pack([tree])


def test_only_attention_is_padded() -> None:
    batch = trees(9, seed=4)
    packed = pack(batch)
    tokens = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in batch)
    assert packed.input_ids.shape == packed.position_ids.shape == (1, tokens)
    assert len(set(packed.cells.tolist())) == tokens
    rows, width = packed.ends.shape
    assert width == 128 >= max(len(prompt) + sum(map(len, responses)) for prompt, responses in batch)
    assert rows < len(batch), "short trees share a row"
