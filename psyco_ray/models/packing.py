"""Response log-probabilities and scores of packed sequences.

Several prompts, each with several responses, are concatenated without padding; a response attends to its prompt and to
itself. A prompt is computed once for all its responses, and a result does not depend on its batch mates.

Hand-written, with `attention` and `lm_head`: together they train 2.3 times TRL's pairs per second in the project's
benchmark (benchmarks/learner.py), because TRL pads and computes a prompt again for each response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from psyco_ray.config.errors import InputError
from psyco_ray.models import attention
from psyco_ray.models import plain as plain_forward
from psyco_ray.models.lm_head import chunked_logprobs

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt's token ids and those of each response to it."""


@dataclass(frozen=True)
class Packed:
    """Prompts and their responses, concatenated: N tokens, with R responses.

    S response tokens count. For attention on a GPU the tokens are also laid out in B rows of T cells.
    """

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N], as if each response followed its prompt directly
    cells: Tensor  # [N], cell of each token in the flattened rows, 0 .. B * T - 1
    mask: Tensor  # [B, 1, T, T] bool, true where a cell attends
    before: Tensor  # [S], the token whose hidden state predicts each response token that counts
    targets: Tensor  # [S], their ids
    owner: Tensor  # [S], the response of each, 0 .. R - 1
    last: Tensor  # [R], each response's last token
    sizes: tuple[tuple[int, ...], ...]  # tokens of each tree's prompt, then of its responses
    context: tuple[int, ...]  # of each response, its first tokens that do not count

    def to(self, device: torch.device) -> Packed:
        """Copy the tensors to a device."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Packed(**tensors, sizes=self.sizes, context=self.context)


def pack(trees: Sequence[Tree], context: Sequence[int] = ()) -> Packed:
    """Concatenate prompts and responses, and lay them out in rows as long as the longest tree.

    Attention costs the square of a row's length and the rest of a model does not; so short trees share a row, and
    several short rows replace a long one.

    Args:
        trees: prompts and their responses.
        context: for each response of all trees, how many of its first tokens do not count in its log-probability: the
            others attend to them. Empty: all count.

    Example:
        >>> packed = pack([([5, 6, 7], [[8, 9], [10]]), ([5], [[11]])])  # two prompts, three responses
        >>> ResponseScores(model)(packed).shape
        torch.Size([3])
    """
    assert all(prompt and all(responses) for prompt, responses in trees), "prompts and responses have tokens"
    branches = [response for _, responses in trees for response in responses]
    context = tuple(context) or (0,) * len(branches)
    assert all(0 <= k < len(ids) for k, ids in zip(context, branches, strict=True)), "every response has a token to sum"
    sizes = [len(prompt) + sum(map(len, responses)) for prompt, responses in trees]
    places, rows, width = _place(sizes)
    tree_of = np.full((rows, width), -1)
    branch_of = np.zeros((rows, width), np.int64)  # 0: the prompt
    ids: list[int] = []
    positions: list[int] = []
    cells: list[int] = []
    before: list[int] = []
    owner: list[int] = []
    last: list[int] = []
    for tree, ((prompt, responses), (row, start)) in enumerate(zip(trees, places, strict=True)):
        tree_of[row, start : start + sizes[tree]] = tree
        cells += range(row * width + start, row * width + start + sizes[tree])
        ids += prompt
        positions += range(len(prompt))
        prompt_end, column = len(ids) - 1, start + len(prompt)
        for branch, response in enumerate(responses, start=1):
            branch_of[row, column : column + len(response)] = branch
            column += len(response)
            skipped = context[len(last)]
            before += [prompt_end, *range(len(ids), len(ids) + len(response) - 1)][skipped:]
            owner += [len(last)] * (len(response) - skipped)
            ids += response
            positions += range(len(prompt), len(prompt) + len(response))
            last.append(len(ids) - 1)
    same_tree = tree_of[:, :, None] == tree_of[:, None, :]
    visible = (branch_of[:, None, :] == 0) | (branch_of[:, :, None] == branch_of[:, None, :])
    mask = same_tree & visible & np.tri(width, dtype=bool)  # padding cells attend to padding only
    return Packed(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        cells=torch.tensor(cells),
        mask=torch.from_numpy(mask)[:, None],
        before=torch.tensor(before),
        targets=torch.tensor([token for k, ids in zip(context, branches, strict=True) for token in ids[k:]]),
        owner=torch.tensor(owner),
        last=torch.tensor(last),
        sizes=tuple((len(prompt), *map(len, responses)) for prompt, responses in trees),
        context=context,
    )


def _place(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Place trees by first fit, longest first; return row and first column of each, number of rows, and width."""
    width = max(sizes)
    filled: list[int] = []
    places = [(0, 0)] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda tree: -sizes[tree]):
        row = next((r for r, used in enumerate(filled) if used + sizes[tree] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[tree] = (row, filled[row])
        filled[row] += sizes[tree]
    return places, len(filled), width


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


def hidden_states(backbone: Any, packed: Packed) -> Tensor:
    """Return the last hidden states of a decoder body that uses `attention`, by token, shape [N, hidden]."""
    masks = _masks(packed, backbone)
    output = backbone(
        input_ids=packed.input_ids,
        attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
        position_ids=packed.position_ids,
        use_cache=False,
        cells=packed.cells,
        sizes=packed.sizes,
    )
    return output.last_hidden_state[0]


def _masks(packed: Packed, backbone: Any) -> dict[str, Tensor]:
    """Return a mask by kind of layer; transformers does not narrow a given mask to a layer's sliding window."""
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windows: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        del windows["sliding_attention"]
    elif kinds is None:
        del windows["full_attention"]
    device = packed.mask.device
    if attention.uses_additive_mask(config, device):
        dtype = next(backbone.parameters()).dtype
        return {kind: attention.additive_mask(packed.sizes, size, dtype, device) for kind, size in windows.items()}
    return {kind: packed.mask if size is None else _narrowed(packed, size) for kind, size in windows.items()}


def _narrowed(packed: Packed, window: int) -> Tensor:
    """Return the rows' mask, limited to the last `window` tokens including the token itself, shape [B, 1, T, T]."""
    rows, _, width, _ = packed.mask.shape
    position = packed.position_ids.new_zeros(rows * width).index_copy(0, packed.cells, packed.position_ids[0])
    position = position.view(rows, 1, width)
    return packed.mask & (position[..., :, None] - position[..., None, :] < window)


class _Responses(nn.Module):
    """A model of transformers over packed sequences.

    `selftest` decides whether packed rows compute the model right; otherwise `plain` does.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._longest = _longest(body_of(model).config)
        self.set_plain(False)

    def set_plain(self, plain: bool) -> None:
        """Compute the model in packed rows, or by transformers' own forward."""
        self.plain = plain
        implementation = plain_forward.attention_name(body_of(self.model)) if plain else attention.NAME
        self.model.set_attn_implementation(implementation)

    def _check_lengths(self, packed: Packed) -> None:
        """Check that all conversations have the positions that they have alone.

        Raises:
            InputError: one is longer than that.
        """
        tokens = max(prompt + max(own) for prompt, *own in packed.sizes)
        if self._longest is not None and tokens > self._longest:
            raise InputError(
                f"a conversation has {tokens} tokens; beyond {self._longest} {type(self.model).__name__} rescales the "
                "positions of every conversation in a pass; lower sampling.max_tokens or reward.max_tokens"
            )


class ResponseLogprobs(_Responses):
    """A causal language model that returns the log-probability of each packed response."""

    def __init__(self, model: Any, logit_rows: int = 1024) -> None:
        super().__init__(model)
        self.logit_rows = logit_rows
        self.head = TokenLogprobs(model.get_output_embeddings(), logit_rows)

    def forward(self, packed: Packed) -> Tensor:
        """Return log-probabilities in nats, summed over each response's tokens that count, float32, shape [R]."""
        self._check_lengths(packed)
        if self.plain:
            return plain_forward.response_logprobs(
                self.model, packed.input_ids, packed.sizes, packed.context, self.logit_rows
            )
        rows = hidden_states(body_of(self.model), packed)[packed.before]
        sums = torch.zeros(len(packed.last), dtype=torch.float32, device=rows.device)
        return sums.index_add(0, packed.owner, self.head(rows, packed.targets))


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

    def __init__(self, model: Any, token: int | None = None) -> None:
        super().__init__(model)
        self.token = token

    def forward(self, packed: Packed) -> Tensor:
        """Return rewards, read at the last token of each response, float32, shape [R]."""
        self._check_lengths(packed)
        if self.plain:
            return plain_forward.response_scores(self.model, packed.input_ids, packed.sizes, self.token)
        hidden = hidden_states(body_of(self.model), packed)
        rows = hidden[packed.last.to(hidden.device)]  # the layers of a large model may be on several GPUs
        return self.model.score(rows).squeeze(-1).float()


def branch(conversations: Sequence[Sequence[int]]) -> Tree:
    """Return conversations as a tree: their longest common prefix, and the rest of each, which is never empty."""
    shortest = min(len(ids) for ids in conversations)
    shared = 0
    while shared < shortest - 1 and len({ids[shared] for ids in conversations}) == 1:
        shared += 1
    return conversations[0][:shared], [ids[shared:] for ids in conversations]
