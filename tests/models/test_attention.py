"""The kernels of packed attention compute the same, and none needs the host while it runs."""

import random

import pytest
import torch
from torch.nn.attention import flex_attention, varlen

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners, Scorers
from psyco_ray.models import attention, branches, layout, loading, sharing
from psyco_ray.models.packing import Packed, ResponseLogprobs, pack

KERNELS = ("branches", "sdpa", "flex", "varlen")


def trees(count: int, seed: int = 0, start: int = 0) -> list:
    """Trees of up to 90 tokens of a prompt and 70 of a response; their prompts have so many first tokens in common."""
    rng = random.Random(seed)
    shared = [7] * start

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 40000) for _ in range(rng.randint(low, high))]

    return [(shared + ids(1, 90), [ids(1, 70) for _ in range(rng.randint(1, 4))]) for _ in range(count)]


def flash(query, key, value, query_ends, key_ends, most_queries, most_keys, *, scale, window_size, enable_gqa):
    """What torch documents of `varlen_attn`, segment by segment: causal, with queries at the end of their keys."""
    assert window_size == (-1, 0)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert most_queries == query_ends.diff().max()
    assert most_keys == key_ends.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    key, value = (shared.repeat_interleave(query.shape[1] // shared.shape[1], 1) for shared in (key, value))
    outputs = []
    for first, last, begin, end in zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False):
        queries, keys, values = query[first:last], key[begin:end], value[begin:end]
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + scores.shape[2] - scores.shape[1])
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


@pytest.fixture
def every_kernel(monkeypatch) -> None:
    """Kernels that need a GPU: torch refuses gradients of flex attention on a CPU, and has no flash kernel there."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    attention._flash_options.cache_clear()
    yield
    attention._flash_options.cache_clear()


def results(path, kernel: str, monkeypatch, packed: Packed) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    monkeypatch.setattr(attention, "kernel_of", lambda *_: kernel)
    module = ResponseLogprobs(loading.load_causal_lm(path, "float32"), logit_rows=64)
    values = module(packed)
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {name: parameter.grad for name, parameter in module.model.named_parameters()}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_kernels_have_equal_values_and_gradients(tiny_model, monkeypatch, every_kernel, kernel: str) -> None:
    packed = pack(trees(6))
    values, gradients = results(tiny_model, kernel, monkeypatch, packed)
    expected, expected_gradients = results(tiny_model, "branches", monkeypatch, packed)
    torch.testing.assert_close(values, expected, atol=2e-4, rtol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_result_does_not_depend_on_batch_mates(tiny_model, monkeypatch, every_kernel, kernel: str) -> None:
    monkeypatch.setattr(attention, "kernel_of", lambda *_: kernel)
    module = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32"))
    batch = trees(5, start=40)
    with torch.no_grad():
        alone = [module(pack([(prompt, [own])])).item() for prompt, responses in batch for own in responses]
        packed = module.pack(batch, (), torch.device("cpu"))
        tokens = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in batch)
        assert packed.input_ids.numel() == tokens - (4 * 40 if kernel in ("branches", "varlen") else 0)
        assert module(packed).tolist() == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize("kernel", ["branches", "varlen"])
@pytest.mark.parametrize("block", [8, 256])
def test_a_start_that_all_prompts_share_is_computed_once(
    tiny_model, monkeypatch, every_kernel, kernel: str, block: int
) -> None:
    """With the values and gradients of prompts that are computed one by one, context and all."""
    monkeypatch.setattr(branches, "BLOCK", block)
    batch = trees(6, start=30)
    context = [len(own) // 2 for _, responses in batch for own in responses]
    apart, together = pack(batch, context), pack(batch, context, "shared")
    assert together.input_ids.shape[1] == apart.input_ids.shape[1] - 5 * 30
    values, gradients = results(tiny_model, kernel, monkeypatch, together)
    expected, expected_gradients = results(tiny_model, "branches", monkeypatch, apart)
    torch.testing.assert_close(values, expected, atol=2e-4, rtol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-4, rtol=2e-3)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("kernel", [*KERNELS, "plain"])
def test_pairs_of_a_dialogue_have_the_values_and_gradients_of_rows_alone(
    tiny_model, monkeypatch, every_kernel, kernel: str
) -> None:
    """Several pairs of each of two turns and of another prompt; what they have in common is computed once."""
    monkeypatch.setattr(attention, "kernel_of", lambda *_: "branches" if kernel == "plain" else kernel)
    rng = random.Random(4)
    ids = [[rng.randrange(3, 40000) for _ in range(count)] for count in (80, 150, 90, *[30] * 9)]
    first, said, other, *answers = ids
    second = [*first, *said]
    prompts = [first, first, second, first, other, second]
    numbers = [(0, 1), (0, 2), (3, 4), (2, 1), (7, 8), (5, 3)]
    batch = [(p, [answers[a], answers[b]]) for p, (a, b) in zip(prompts, numbers, strict=True)]
    context = [0, 4, 0, 0, 3, 0, 0, 4, 0, 0, 0, 3]
    module = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32"), logit_rows=64)
    weights = torch.linspace(-1, 1, len(context))
    expected = []
    sides = [(prompt, own) for prompt, responses in batch for own in responses]
    for (prompt, own), skipped, weight in zip(sides, context, weights, strict=True):
        value = module(pack([(prompt, [own])], [skipped]))
        (value * weight).sum().backward()
        expected.append(value.item())
    gradients = {name: parameter.grad for name, parameter in module.model.named_parameters()}
    module.model.zero_grad()
    module.set_plain(kernel == "plain")
    packed = module.pack(batch, context, torch.device("cpu"))
    prompts_tokens = len(first) + len(second) + len(other) if kernel == "plain" else len(second) + len(other)
    assert packed.input_ids.numel() == prompts_tokens + (3 + 3 + 2) * 30
    values = module(packed)
    assert values.tolist() == pytest.approx(expected, abs=2e-4)
    (values * weights).sum().backward()
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=2e-3)


def test_a_shared_start_is_what_every_segment_attends_to() -> None:
    packed = pack([([5, 6, 7], [[1, 2], [3]]), ([5, 6, 8, 9], [[4]])], computed="shared")
    assert packed.input_ids.tolist() == [[5, 6, 7, 1, 2, 3, 8, 9, 4]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 2, 3, 4]]
    assert packed.before.tolist() == [2, 3, 2, 7]
    assert packed.last.tolist() == [4, 5, 8]
    assert packed.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 1, 6, 7, 0, 1, 6, 7, 8]
    assert packed.query_ends.tolist() == [0, 2, 3, 5, 6, 8, 9]
    nested = pack([([5, 6], [[1]]), ([5, 6, 7], [[2]])], computed="shared")
    assert nested.input_ids.tolist() == [[5, 6, 1, 7, 2]], "a prompt with which the others begin is the start"
    assert nested.before.tolist() == [1, 3]


def test_rows_and_blocks_hide_the_same(monkeypatch) -> None:
    """The oracle goes cell by cell; three prompts begin alike, and two of them with the third."""
    monkeypatch.setattr(layout, "ROW_MULTIPLE", 8)
    monkeypatch.setattr(sharing, "LEAST", 2)
    nested = [([4] * 2, [[5]]), ([4] * 3 + [6], [[7] * 2]), ([4] * 3 + [8], [[9] * 2])]
    packed = pack([([1] * 3, [[2] * 2, [3] * 4]), *nested, ([6] * 6, [[7] * 2])])
    forest = packed.forest
    assert [len(forest.path(leaf)) for leaf in packed.leaves] == [2, 2, 2, 4, 4, 2]
    positions = torch.zeros(packed.ends.numel(), dtype=torch.int64)
    positions[packed.cells] = packed.position_ids[0]
    count, width = packed.ends.shape
    own_segment: dict[int, int] = {}
    for segment, (start, tokens) in enumerate(zip(forest.starts, forest.tokens, strict=True)):
        own_segment |= dict.fromkeys(packed.cells[start : start + tokens].tolist(), segment)
    assert count > 1, "there is more than one row"
    assert len(own_segment) == packed.input_ids.numel() < count * width
    for window in (None, 3):
        rows = attention.Rows(packed.ends, positions.view(count, width), window)
        mask = attention.row_mask(rows, torch.float32)
        assert mask.shape == (count, 1, width, width)
        assert (mask == 0).any(-1).all(), "every cell attends to one"
        seen = attention.block_mask(rows).mask_mod
        for row in range(count):
            for query in range(width):
                for key in range(width):
                    of_query, of_key = (own_segment.get(row * width + column) for column in (query, key))
                    if of_query is None:
                        continue
                    near = window is None or rows.positions[row, query] - rows.positions[row, key] < window
                    expected = bool(of_key in forest.path(of_query) and near and key <= query)
                    assert (mask[row, 0, query, key] == 0) == expected
                    assert bool(seen(*map(torch.tensor, (row, 0, query, key)))) == expected


def test_packing_makes_nothing_of_the_square_of_a_row() -> None:
    """A mask made by the host takes longer than the pass, and the GPU waits for it."""
    packed = pack([([1] * 2000, [[n] * 500 for n in (2, 3, 4)])])
    tokens = packed.input_ids.shape[1]
    for name, tensor in vars(packed).items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.numel() <= 3 * tokens, name


def test_rows_have_few_widths_and_cudnn_plans_none() -> None:
    widths = {pack([([1] * length, [[2] * 40])]).ends.shape[1] for length in range(30, 300)}
    assert widths == {128, 256, 384}
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_backend_that_does_not_compute_a_model_is_refused(tiny_model) -> None:
    config = loading.load_config(tiny_model)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert attention.kernel_of("auto", config, [None], cpu) == "branches"
    assert attention.kernel_of("auto", config, [None], gpu) == "sdpa"
    assert attention.kernel_of("sdpa", config, [None, 64], cpu) == "sdpa"
    assert attention.kernel_of("varlen", config, [None], gpu) == "varlen"
    with pytest.raises(InputError, match=r"^attention: varlen runs on GPUs alone; leave attention out"):
        attention.kernel_of("varlen", config, [None], cpu)
    with pytest.raises(InputError, match=r"^attention: varlen does not compute the sliding attention of llama"):
        attention.kernel_of("varlen", config, [None, 64], gpu)
    config.attn_logit_softcapping = 30.0
    assert attention.kernel_of("auto", config, [None], gpu) == "branches"
    with pytest.raises(InputError, match=r"^attention: flex does not bound scores, as llama does"):
        attention.kernel_of("flex", config, [None], gpu)


def test_kernels_without_dropout_say_so(tiny_model) -> None:
    heads, packed = torch.zeros(1, 2, 3, 8), pack([([1], [[2], [3]])])
    with pytest.raises(InputError, match=r"^attention: varlen has no dropout; choose sdpa, or set optimizer.dropout"):
        attention.attention(
            *(None, heads, heads, heads, None),
            dropout=0.1,
            kernel="varlen",
            cells=packed.cells,
            forest=packed.forest,
            segments=(packed.keys, packed.query_ends, packed.key_ends),
        )


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        (Learners, {"attention": "flex"}, "learners.attention flex has no gradients on a CPU; leave it out"),
        (Learners, {"attention": "varlen"}, "learners.attention varlen runs on GPUs alone; leave it out"),
        (Scorers, {"attention": "varlen"}, "scorers.attention varlen runs on GPUs alone; leave it out"),
        (Scorers, {"attention": "flex", "gpus": 2}, "scorers.attention flex keeps its mask on one GPU; leave it out"),
        (Learners, {"attention": "varlen", "gpus": 1, "dtype": "float32"}, "learners.attention varlen has no float32"),
    ],
)
def test_a_job_names_no_kernel_that_its_devices_lack(section, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**settings)
