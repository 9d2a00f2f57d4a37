"""Response log-probabilities and scores of packed sequences.

Several prompts, each with several responses, are concatenated without padding; a response attends to its prompt and to
itself. A prompt is computed once for all its responses, and a response once however often it is given. What prompts
begin with is computed once too: a system prompt with examples, or the history of a dialogue; see `sharing`. A result
does not depend on its batch mates.

Hand-written, with `attention` and `lm_head`: together they train 2.3 times TRL's pairs per second in the project's
benchmark (benchmarks/learner.py), because TRL pads and computes a prompt again for each response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Attention
from psyco_ray.models import attention, branches, layout
from psyco_ray.models import plain as plain_forward
from psyco_ray.models.layout import Forest
from psyco_ray.models.lm_head import chunked_logprobs
from psyco_ray.models.sharing import Computed, Tree, join


@dataclass(frozen=True)
class Packed:
    """Prompts and their responses, concatenated: N tokens, with R responses, of which D are different.

    S tokens of different responses count. Segments are what is computed once: a response, or a prompt or the part of
    one that others do not begin with. Kernels of a GPU take the tokens in B rows of T cells, or each segment's queries
    with the K keys before it and its own. Rows are empty where all prompts are one tree, which is too long for one.
    """

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N], as if each response followed its prompt directly
    cells: Tensor  # [N], cell of each token in the flattened rows, 0 .. B * T - 1
    ends: Tensor  # [B, T] int32, the column behind the last one that attends to each cell; T: padding
    keys: Tensor  # [K], token of each key, segment by segment
    query_ends: Tensor  # [1 + segments] int32, 0 and the end of each segment's queries
    key_ends: Tensor  # [1 + segments] int32, 0 and the end of each segment's keys
    before: Tensor  # [S], the token whose hidden state predicts each response token that counts
    targets: Tensor  # [S], their ids
    owner: Tensor  # [S], the different response of each, 0 .. D - 1
    last: Tensor  # [D], the last token of each different response
    distinct: Tensor  # [R], which of the different responses each response is
    forest: Forest  # the segments
    leaves: tuple[int, ...]  # the segment of each different response
    context: tuple[int, ...]  # of each different response, its first tokens that do not count

    def to(self, device: torch.device) -> Packed:
        """Copy the tensors from the host to a device, without waiting for work that a GPU has."""
        copies: dict[str, Any] = {
            key: copied(value, device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **copies)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device; out of pinned memory, because a copy out of other memory waits for the GPU."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def pack(trees: Sequence[Tree], context: Sequence[int] = (), computed: Computed = "packed") -> Packed:
    """Concatenate prompts and responses, and lay them out in rows about as long as the longest tree.

    Attention costs the square of a row's length and the rest of a model does not; so short trees share a row, and
    several short rows replace a long one. A mask is no part of the result: `attention` builds it on the device.

    Args:
        trees: prompts and their responses.
        context: for each response of all trees, how many of its first tokens do not count in its log-probability: the
            others attend to them. Empty: all count.
        computed: how the model computes them; see `sharing.Computed`.

    Example:
        >>> packed = pack([([5, 6, 7], [[8, 9], [10]]), ([5], [[11]])])  # two prompts, three responses
        >>> ResponseScores(model)(packed).shape
        torch.Size([3])
    """
    assert all(prompt and all(responses) for prompt, responses in trees), "prompts and responses have tokens"
    answers = [(tuple(prompt), tuple(response)) for prompt, responses in trees for response in responses]
    context = tuple(context) or (0,) * len(answers)
    counted = [len(ids) - skipped for skipped, (_, ids) in zip(context, answers, strict=True)]
    assert min(counted) > 0 <= min(context), "every response has a token to sum"
    joined = join(trees, computed)
    forest, starts = joined.forest, joined.forest.starts
    values = [(joined.leaves[answer], skipped) for answer, skipped in zip(answers, context, strict=True)]
    different = {key: number for number, key in enumerate(dict.fromkeys(values))}
    before, targets, owner = [], [], []
    for number, (leaf, skipped) in enumerate(different):
        prompt, begin, end = forest.parents[leaf], starts[leaf], starts[leaf] + forest.tokens[leaf]
        before += [starts[prompt] + forest.tokens[prompt] - 1, *range(begin, end - 1)][skipped:]
        targets += joined.ids[begin + skipped : end]
        owner += [number] * (end - begin - skipped)
    cells, ends = np.zeros(0, np.int64), np.zeros((0, 0), np.int32)
    if computed == "packed":
        cells, ends = layout.in_rows(forest)
    segment_keys, query_ends, key_ends = layout.in_segments(forest)
    positions = [
        place for begin, own in zip(forest.before, forest.tokens, strict=True) for place in range(begin, begin + own)
    ]
    return Packed(
        input_ids=torch.tensor([joined.ids]),
        position_ids=torch.tensor([positions]),
        cells=torch.from_numpy(cells),
        ends=torch.from_numpy(ends),
        keys=torch.from_numpy(segment_keys),
        query_ends=torch.from_numpy(query_ends),
        key_ends=torch.from_numpy(key_ends),
        before=torch.tensor(before),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
        last=torch.tensor([starts[leaf] + forest.tokens[leaf] - 1 for leaf, _ in different]),
        distinct=torch.tensor([different[value] for value in values]),
        forest=forest,
        leaves=tuple(leaf for leaf, _ in different),
        context=tuple(skipped for _, skipped in different),
    )


def body_of(model: Any) -> Any:
    """Return the decoder without its output layer; of a multimodal model, the text part's."""
    body = model.get_decoder()
    if not isinstance(body, PreTrainedModel):
        body = model.base_model
    while body.get_output_embeddings() is not None and isinstance(getattr(body, "model", None), PreTrainedModel):
        body = body.model  # Llama 4's text part is a causal language model
    return body


def _longest(config: Any) -> int | None:
    """Return the tokens beyond which positions depend on a pass's longest conversation; None for most models."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            return rope.get("original_max_position_embeddings") or config.max_position_embeddings
    return None


def hidden_states(backbone: Any, packed: Packed, backend: Attention) -> Tensor:
    """Return the last hidden states of a decoder body that uses `attention`, by token, shape [N, hidden]."""
    windows = _windows(backbone.config)
    kernel = attention.kernel_of(backend, backbone.config, windows.values(), packed.input_ids.device)
    assert packed.cells.numel() or attention.shares_start(kernel), f"{kernel} computes rows"
    dtype = next(backbone.parameters()).dtype
    masks = {kind: _mask(packed, kernel, window, dtype) for kind, window in windows.items()}
    output = backbone(
        input_ids=packed.input_ids,
        attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
        position_ids=packed.position_ids,
        use_cache=False,
        kernel=kernel,
        cells=packed.cells,
        forest=packed.forest,
        segments=(packed.keys, packed.query_ends, packed.key_ends),
    )
    return output.last_hidden_state[0]


def _windows(config: Any) -> dict[str, int | None]:
    """Return the tokens that each kind of layer attends to, itself included; None: all before it."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windows: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        del windows["sliding_attention"]
    elif kinds is None:
        del windows["full_attention"]
    return windows


def _mask(packed: Packed, kernel: attention.Kernel, window: int | None, dtype: torch.dtype) -> Any:
    """Return a kernel's mask, built on the device; transformers does not narrow a given mask to a layer's window."""
    if kernel == "varlen":
        return None
    if kernel == "branches":
        return branches.mask(packed.forest, window, dtype, packed.input_ids.device)
    positions = packed.position_ids.new_zeros(packed.ends.numel()).index_copy(0, packed.cells, packed.position_ids[0])
    rows = attention.Rows(packed.ends, positions.view_as(packed.ends), window)
    return attention.block_mask(rows) if kernel == "flex" else attention.row_mask(rows, dtype)


class _Responses(nn.Module):
    """A model of transformers over packed sequences.

    `selftest` decides whether packed rows compute the model right; otherwise `plain` does.
    """

    def __init__(self, model: Any, backend: Attention) -> None:
        super().__init__()
        self.model: Any = model
        self.backend = backend
        self._longest = _longest(body_of(model).config)
        self.set_plain(False)

    def set_plain(self, plain: bool) -> None:
        """Compute the model in packed rows, or by transformers' own forward."""
        self.plain = plain
        implementation = plain_forward.attention_name(body_of(self.model)) if plain else attention.NAME
        self.model.set_attn_implementation(implementation)

    def computed(self, device: torch.device) -> Computed:
        """How the model computes the texts of a pass on a device."""
        if self.plain:
            return "plain"
        config = body_of(self.model).config
        kernel = attention.kernel_of(self.backend, config, _windows(config).values(), device)
        return "shared" if attention.shares_start(kernel) else "packed"

    def pack(self, trees: Sequence[Tree], context: Sequence[int], device: torch.device) -> Packed:
        """Pack trees as this model computes them, and copy them to its device."""
        return pack(trees, context, self.computed(device)).to(device)

    def _check_lengths(self, packed: Packed) -> None:
        """Check that all conversations have the positions that they have alone.

        Raises:
            InputError: one is longer than that.
        """
        tokens = max(packed.forest.before[leaf] + packed.forest.tokens[leaf] for leaf in packed.leaves)
        if self._longest is not None and tokens > self._longest:
            raise InputError(
                f"a conversation has {tokens} tokens; beyond {self._longest} {type(self.model).__name__} rescales the "
                "positions of every conversation in a pass; lower sampling.max_tokens or reward.max_tokens"
            )


class ResponseLogprobs(_Responses):
    """A causal language model that returns the log-probability of each packed response."""

    def __init__(self, model: Any, logit_rows: int = 1024, backend: Attention = "auto") -> None:
        super().__init__(model, backend)
        self.logit_rows = logit_rows
        self.head = TokenLogprobs(model.get_output_embeddings(), logit_rows)

    def forward(self, packed: Packed) -> Tensor:
        """Return log-probabilities in nats, summed over each response's tokens that count, float32, shape [R]."""
        self._check_lengths(packed)
        if self.plain:
            values = plain_forward.response_logprobs(
                self.model, packed.input_ids, (packed.forest, packed.leaves), packed.context, self.logit_rows
            )
            return values.index_select(0, packed.distinct)
        rows = hidden_states(body_of(self.model), packed, self.backend)[packed.before]
        sums = torch.zeros(len(packed.last), dtype=torch.float32, device=rows.device)
        sums = sums.index_add(0, packed.owner, self.head(rows, packed.targets))
        return sums.index_select(0, packed.distinct)


class TokenLogprobs(nn.Module):
    """The output layer, over response positions only and `logit_rows` of them at a time.

    The layer's weight is a parameter of this module, so that ZeRO-3 gathers it once a pass for any number of chunks.
    """

    def __init__(self, layer: Any, logit_rows: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.logit_rows = logit_rows

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each target token in nats, float32, shape [S]."""
        return chunked_logprobs(rows, self.weight, self.bias, targets, self.logit_rows)


class ResponseScores(_Responses):
    """A decoder with a `score` layer of one output that returns the reward of each packed conversation.

    With `token` the model is a causal language model, whose `score` layer is the output layer's row of this token.
    """

    def __init__(self, model: Any, token: int | None = None, backend: Attention = "auto") -> None:
        super().__init__(model, backend)
        self.token = token

    def forward(self, packed: Packed) -> Tensor:
        """Return rewards, read at the last token of each response, float32, shape [R]."""
        self._check_lengths(packed)
        if self.plain:
            texts = packed.forest, packed.leaves
            scores = plain_forward.response_scores(self.model, packed.input_ids, texts, self.token)
            return scores.index_select(0, packed.distinct)
        hidden = hidden_states(body_of(self.model), packed, self.backend)
        rows = hidden[packed.last.to(hidden.device)]  # the layers of a large model may be on several GPUs
        return self.model.score(rows).squeeze(-1).float().index_select(0, packed.distinct.to(hidden.device))


def branch(conversations: Sequence[Sequence[int]]) -> Tree:
    """Return conversations as a tree: their longest common prefix, and the rest of each, which is never empty."""
    shortest = min(len(ids) for ids in conversations)
    shared = 0
    while shared < shortest - 1 and len({ids[shared] for ids in conversations}) == 1:
        shared += 1
    return conversations[0][:shared], [ids[shared:] for ids in conversations]
