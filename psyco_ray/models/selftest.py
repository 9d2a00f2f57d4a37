"""Decides how a loaded model is computed: packed, or plain where packing would be wrong.

Layers that are known to mix packed responses are read off the configuration. Every other model computes a few made-up
trees both ways. `models.packing` must agree with `models.plain`, and a response must not change with its siblings.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from psyco_ray.config.errors import InputError
from psyco_ray.models import attention
from psyco_ray.models.packing import Packed, ResponseLogprobs, ResponseScores, body_of, pack
from psyco_ray.models.sharing import Tree

# tokens of each made-up tree's prompt and of its responses, and of the start that the prompts share
_SIZES = ((4, (5, 6)), (3, (6, 3)))
_START = 3
# of sliding layers during the test, so that it needs no text longer than the model's own window
_WINDOW = 4
# largest relative difference that rounding explains: of a state, and of a log-probability, which averages them
# (measured on SmolLM2-135M, 30 layers: 1e-6, 3e-3, 2e-2, and 3e-7, 4e-4, 2e-3)
_STATE_TOLERANCE = {torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_VALUE_TOLERANCE = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
# of a response when its siblings change: same shapes and same sums, so rounding explains nothing
_LEAK_TOLERANCE = 1e-6
# what a model raises that cannot take packed tokens, or any
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Choice:
    """How a model is computed."""

    plain: bool
    reason: str = ""  # why not packed
    difference: float | None = None  # largest relative one of packed and plain; None: packed was not tried

    def note(self, name: str) -> str:
        """Return the line for the log; empty if the model is packed."""
        if not self.plain:
            return ""
        return f"{name} is computed one conversation a row, without sharing prompts, which is slower: {self.reason}"


@dataclass(frozen=True)
class _Result:
    values: Tensor  # [R]
    states: list[Tensor]  # of each response's tokens, [tokens, hidden]
    prompts: list[Tensor]  # of each response's prompt where it was computed; plain only


def choose(
    module: ResponseLogprobs | ResponseScores, name: str, compute: Callable[[Packed], Tensor] | None = None
) -> Choice:
    """Test a loaded model and set the module to the way that computes it right.

    With torch.distributed all ranks call it together, and they choose alike.

    Args:
        module: over the model.
        name: of the model, for messages.
        compute: what runs the module, such as its DeepSpeed engine; None: the module itself.

    Raises:
        InputError: transformers' own forward fails, is not finite, or looks ahead, as encoders do.
    """
    trees = _trees(module.model)
    test = _Test(module, compute or module)
    with values_repeat(module.model), _short_windows(module.model):
        plain = _plain_result(test, trees, name)
        module.set_plain(False)
        reason, difference = unpackable(module), None
        if not reason:
            reason, difference = _compare(test, trees, plain)
        if _any_rank(bool(reason), plain.values.device) and not reason:
            reason = "another rank found a difference"
    module.set_plain(bool(reason))
    return Choice(bool(reason), reason, difference)


@contextlib.contextmanager
def values_repeat(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and every other noise of training in a model, so that its values repeat."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unpackable(module: ResponseLogprobs | ResponseScores) -> str:
    """Return why a model cannot be packed, as far as its configuration tells; empty if it may be."""
    model = module.model
    body = body_of(model)
    config = body.config
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if body._is_stateful:
        return f"it has layers with a running state ({', '.join(kinds) or config.model_type})"
    if kinds:
        return f"it has layers that do not attend to single tokens ({', '.join(kinds)})"
    if any(name.endswith("sinks") for name, _ in body.named_parameters()):
        return "it has attention sinks"
    if getattr(config, "attn_temperature_tuning", None):
        return "it scales attention by the position in the row (attn_temperature_tuning)"
    if config._attn_implementation != attention.NAME:
        return f"the attention of {type(body).__name__} cannot be exchanged"
    if isinstance(module, ResponseLogprobs) or module.token is not None:
        changed = _changed_logits(config)
        if changed:
            return f"it changes its logits after the output layer ({', '.join(changed)})"
    return ""


def _changed_logits(config: Any) -> list[str]:
    """Return the configuration's options that scale or bound logits after the output layer."""
    options = {key: value for key, value in config.to_dict().items() if type(value) in (int, float)}
    return sorted(
        key
        for key, value in options.items()
        if value not in (0, 1)
        and (key in ("lm_head_multiplier", "output_multiplier") or "logit" in key)
        and not any(part in key for part in ("attn", "attention", "router", "num_"))
    )


class _Test:
    """Computes trees and keeps their hidden states, which tell more than values do: a new head may be all zeros."""

    def __init__(self, module: ResponseLogprobs | ResponseScores, compute: Callable[[Packed], Tensor]) -> None:
        self.module, self._compute = module, compute
        self.body = body_of(module.model)
        weight = next(module.model.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    def run(self, trees: list[Tree], plain: bool) -> _Result:
        """Compute trees, packed or plain."""
        kept: list[Tensor] = []
        self.module.set_plain(plain)
        hook = self.body.register_forward_hook(lambda _, __, output: kept.append(output.last_hidden_state.detach()))
        packed = pack(trees, (), self.module.computed(self.device))
        try:
            with torch.no_grad():
                values = self._compute(packed.to(self.device)).float()
        finally:
            hook.remove()
        rows = [row.float().cpu() for states in kept for row in states]
        prompts = []
        if plain:
            before, tokens = packed.forest.before, packed.forest.tokens
            spans = [(before[leaf], before[leaf] + tokens[leaf]) for leaf in packed.leaves]
            prompts = [row[:start] for row, (start, _) in zip(rows, spans, strict=True)]
        else:
            [row] = rows
            spans = _packed_spans(packed)
            rows = [row] * len(spans)
        return _Result(values.cpu(), [row[start:end] for row, (start, end) in zip(rows, spans, strict=True)], prompts)


def _packed_spans(packed: Packed) -> list[tuple[int, int]]:
    starts, tokens = packed.forest.starts, packed.forest.tokens
    return [(starts[leaf], starts[leaf] + tokens[leaf]) for leaf in packed.leaves]


def _plain_result(test: _Test, trees: list[Tree], name: str) -> _Result:
    """Compute trees by transformers' own forward.

    Raises:
        InputError: it fails, is not finite, or a prompt changes with its response.
    """
    kind = type(test.module.model).__name__
    try:
        plain = test.run(trees, plain=True)
    except _FAILURES as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{name} ({kind}) cannot compute a text: {lines[0]}; choose another model") from error
    if not all(torch.isfinite(tensor).all() for tensor in (plain.values, *plain.states)):
        raise InputError(f"{name} ({kind}) gives values that are not finite; check its weights, or set dtype: float32")
    first = 0
    for _, responses in trees:
        for prompt in plain.prompts[first : first + len(responses)]:
            if _difference(prompt, plain.prompts[first]) > _STATE_TOLERANCE[test.dtype]:
                raise InputError(f"{name} ({kind}) looks ahead in its text; choose a causal language model")
        first += len(responses)
    return plain


def _compare(test: _Test, trees: list[Tree], plain: _Result) -> tuple[str, float | None]:
    """Compare packed with plain.

    Returns:
        What is wrong with packed, empty if nothing is; and the largest relative difference.
    """
    described = _described(test.body.config)
    try:
        packed, exchanged = (test.run(some, plain=False) for some in (trees, _exchanged(trees)))
    except InputError:
        raise  # the job names an attention that does not compute this model
    except _FAILURES as error:
        [what, *_] = str(error).splitlines() or [type(error).__name__]
        return f"it cannot take packed tokens: {what}{described}", None
    # experts take a different number of tokens after an exchange, and their sums are rounded differently
    routed = any(name.endswith("experts") for name, _ in test.body.named_modules())
    leak = _largest(exchanged.states[1:], packed.states[1:])
    if not leak <= (_STATE_TOLERANCE[test.dtype] if routed else _LEAK_TOLERANCE):
        return f"packed responses change each other, by {leak:.2g}{described}", leak
    state = _largest(packed.states, plain.states)
    value = ((packed.values - plain.values).abs().max() / plain.values.abs().max().clamp(min=1e-6)).item()
    # a score near zero is rounded like the large terms that cancel in it
    exact = isinstance(test.module, ResponseLogprobs) or test.dtype == torch.float32
    if not (state <= _STATE_TOLERANCE[test.dtype] and (value <= _VALUE_TOLERANCE[test.dtype] or not exact)):
        return f"packed differs from transformers by {max(state, value):.2g}{described}", max(state, value)
    return "", max(state, value)


def _largest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(_difference(one, other) for one, other in zip(some, others, strict=True))


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the mean difference of states, relative to their size."""
    sizes = other.norm(dim=-1).clamp(min=1e-12)
    return ((one - other).norm(dim=-1) / sizes).mean().item()


def _described(config: Any) -> str:
    """Return what is special about a configuration's layers, for the reason."""
    special = {
        "sliding_window": "sliding attention",
        "attention_chunk_size": "chunked attention",
        "attn_logit_softcapping": "soft cap of attention",
    }
    kinds = [kind for option, kind in special.items() if getattr(config, option, None)]
    return f" (its layers: {', '.join(kinds)})" if kinds else ""


@contextlib.contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Narrow the windows of sliding layers."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    unique = {id(config): config for one in configs for config in (one, one.get_text_config())}
    windows = [(c, c.sliding_window) for c in unique.values() if getattr(c, "sliding_window", None)]
    for config, _ in windows:
        config.sliding_window = _WINDOW
    try:
        yield
    finally:
        for config, window in windows:
            config.sliding_window = window


def _trees(model: Any) -> list[Tree]:
    """Return made-up trees of tokens without a meaning of their own, such as that of an image or of padding."""
    special: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        named = [value for key, value in config.to_dict().items() if key.endswith(("token_id", "token_index"))]
        special.update(token for value in named for token in (value if isinstance(value, list) else [value]))
    draw = random.Random(0)
    tokens = [token for token in range(model.config.get_text_config().vocab_size) if token not in special]
    start = draw.choices(tokens, k=_START)
    return [
        (start + draw.choices(tokens, k=prompt), [draw.choices(tokens, k=own) for own in sizes])
        for prompt, sizes in _SIZES
    ]


def _exchanged(trees: list[Tree]) -> list[Tree]:
    """Return trees whose very first response has other tokens."""
    [(prompt, [first, *others]), *rest] = trees
    used = sorted({token for ids in (prompt, first, *others) for token in ids})
    after = dict(zip(used, used[1:] + used[:1], strict=True))
    return [(prompt, [[after[token] for token in first], *others]), *rest]


def _any_rank(found: bool, device: torch.device) -> bool:
    """Return whether any rank found something; without torch.distributed, whether this process did."""
    if not torch.distributed.is_initialized():
        return found
    flag = torch.tensor(int(found), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
