"""Response log-probabilities and scores of packed sequences.

Several prompts, each with several responses, lie one behind another, and nothing is filled up; a response sees its
prompt and itself only. A prompt that responses share is computed once, and a result depends on nothing that lies
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psyco_ray.config.errors import InputError
from psyco_ray.models import attention
from psyco_ray.models.lm_head import chunked_logprobs

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt's token ids and those of each response to it."""


@dataclass(frozen=True)
class Packed:
    """R responses with S tokens in all, which with their prompts are N tokens, one behind another."""

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N], as if each response followed its prompt directly
    cells: Tensor  # [N] place of each token in the B rows of T that attention works on, flattened
    mask: Tensor  # [B, 1, T, T] bool, true where a token may look
    before: Tensor  # [S] the token whose hidden state predicts each response token
    targets: Tensor  # [S] those tokens
    owner: Tensor  # [S] the response each belongs to, 0 .. R - 1
    last: Tensor  # [R] each response's last token
    sizes: tuple[tuple[int, ...], ...]  # tokens of each tree's prompt, then of its responses

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        tensors = {name: one.to(device, non_blocking=True) for name, one in vars(self).items() if name != "sizes"}
        return Packed(**tensors, sizes=self.sizes)


def pack(trees: Sequence[Tree]) -> Packed:
    """Lay prompts and their responses one behind another, and for attention into rows as long as the longest of them.

    Attention costs the square of a row and the rest of a model does not: so there are several short rows rather than a
    long one, and short trees share a row.

    Raises:
        InputError: a prompt or a response has no tokens.
    """
    for prompt, responses in trees:
        if not prompt:
            raise InputError("a prompt without tokens cannot be packed")
        if not all(responses):
            raise InputError("a response without tokens cannot be packed")
    sizes = [len(prompt) + sum(map(len, responses)) for prompt, responses in trees]
    places, rows, width = _places(sizes)
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
            before += [prompt_end, *range(len(ids), len(ids) + len(response) - 1)]
            owner += [len(last)] * len(response)
            ids += response
            positions += range(len(prompt), len(prompt) + len(response))
            last.append(len(ids) - 1)
    same_tree = tree_of[:, :, None] == tree_of[:, None, :]
    visible = (branch_of[:, None, :] == 0) | (branch_of[:, :, None] == branch_of[:, None, :])
    mask = same_tree & visible & np.tri(width, dtype=bool)  # what fills a row up sees only itself, and nobody sees it
    return Packed(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        cells=torch.tensor(cells),
        mask=torch.from_numpy(mask)[:, None],
        before=torch.tensor(before),
        targets=torch.tensor([token for _, responses in trees for response in responses for token in response]),
        owner=torch.tensor(owner),
        last=torch.tensor(last),
        sizes=tuple((len(prompt), *map(len, responses)) for prompt, responses in trees),
    )


def _places(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Row and first column of each tree, the number of rows and their width: first fit, the longest first."""
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


def hidden_states(backbone: Any, packed: Packed) -> Tensor:
    """Last hidden states of a decoder (without its head) that attends as `attention` does, by token, [N, hidden]."""
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
    """The masks by kind of layer; transformers does not narrow a given one to a layer's sliding window itself."""
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windows: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        del windows["sliding_attention"]
    elif kinds is None:
        del windows["full_attention"]
    device = packed.mask.device
    if attention.adds_mask(config, device):
        dtype = next(backbone.parameters()).dtype
        return {kind: attention.added(packed.sizes, back, dtype, device) for kind, back in windows.items()}
    return {kind: packed.mask if back is None else _narrowed(packed, back) for kind, back in windows.items()}


def _narrowed(packed: Packed, window: int) -> Tensor:
    """The rows' mask, where a token looks back at no more than `window` tokens, itself among them."""
    rows, _, width, _ = packed.mask.shape
    position = packed.position_ids.new_zeros(rows * width).index_copy(0, packed.cells, packed.position_ids[0])
    position = position.view(rows, 1, width)
    return packed.mask & (position[..., :, None] - position[..., None, :] < window)


class ResponseLogprobs(nn.Module):
    """A causal language model that returns the log-probability of each packed response."""

    def __init__(self, model: Any, logit_rows: int = 1024) -> None:
        super().__init__()
        self.model: Any = model
        self.head = TokenLogprobs(model.lm_head, logit_rows)

    def forward(self, packed: Packed) -> Tensor:
        """Log-probabilities in nats, summed over each response's tokens, float32, shape [R]."""
        rows = hidden_states(self.model.model, packed)[packed.before]
        summed = torch.zeros(len(packed.last), dtype=torch.float32, device=rows.device)
        return summed.index_add(0, packed.owner, self.head(rows, packed.targets))


class TokenLogprobs(nn.Module):
    """The output layer, over response positions only and `logit_rows` of them at a time.

    The layer's weight is a parameter of this module: ZeRO-3 gathers it once a pass, however many chunks a rank has.
    """

    def __init__(self, layer: Any, logit_rows: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.logit_rows = logit_rows

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target token, float32, shape [S]."""
        return chunked_logprobs(rows, self.weight, self.bias, targets, self.logit_rows)


class ResponseScores(nn.Module):
    """A sequence classifier with one label that returns the score of each packed conversation."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, packed: Packed) -> Tensor:
        """Rewards, read at the last token of each response, float32, shape [R]."""
        rows = hidden_states(self.model.model, packed)[packed.last]
        return self.model.score(rows).squeeze(-1).float()


def branch(conversations: Sequence[Sequence[int]]) -> Tree:
    """Conversations that begin alike as one tree: their longest common beginning, and what each adds to it."""
    shortest = min(len(ids) for ids in conversations)
    shared = 0
    # every branch keeps a token of its own, or there would be no position to score
    while shared < shortest - 1 and len({ids[shared] for ids in conversations}) == 1:
        shared += 1
    return conversations[0][:shared], [ids[shared:] for ids in conversations]
