"""Conversations as token ids, alike wherever a reward model is trained or asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psyco_ray.models import loading
from psyco_ray.models.packing import branch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]


class ResponseTooLongError(Exception):
    """A response that leaves no room for a token of its prompt."""


@dataclass(frozen=True)
class Encoded:
    """Responses to one conversation: what they share, and what each adds through its end of turn."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    cut: int  # prompt tokens that were cut off at the left


def encode(
    tokenizer: PreTrainedTokenizerBase, asked: Messages, responses: Sequence[str], max_tokens: int | None
) -> Encoded:
    """Render a conversation with each response and cut the prompt's left until the longest fits.

    Args:
        tokenizer: with a chat template, which writes all special tokens.
        asked: the conversation up to the responses.
        responses: texts of the assistant's next turn.
        max_tokens: of a conversation with its longest response; None: no bound.

    Raises:
        ResponseTooLongError: a response would have to be cut; it never is.
    """
    whole = [
        loading.conversation_ids(tokenizer, [*asked, {"role": "assistant", "content": text}]) for text in responses
    ]
    over = max(len(ids) for ids in whole) - max_tokens if max_tokens else 0
    if over > 0:
        # a beginning-of-text token stays where it is
        first = int(whole[0][0] == tokenizer.bos_token_id)
        if over + first >= _prompt_tokens(tokenizer, asked, whole):
            raise ResponseTooLongError
        whole = [ids[:first] + ids[first + over :] for ids in whole]
    prompt, answers = branch(whole)
    return Encoded(tuple(prompt), tuple(tuple(ids) for ids in answers), max(0, over))


def encode_turn(
    tokenizer: PreTrainedTokenizerBase, asked: Messages, responses: Sequence[str], max_tokens: int | None
) -> Encoded:
    """As `encode`, but split where a policy begins to write, and ended where it stops: at the end of turn.

    Raises:
        ResponseTooLongError: a response would have to be cut; it never is.
    """
    found = encode(tokenizer, asked, responses, max_tokens)
    prompt = loading.conversation_ids(tokenizer, list(asked))
    turns = []
    for ids in found.response_ids:
        # what both responses begin with stands in the shared part, of which the left may be missing
        whole = [*found.prompt_ids, *ids]
        turn = whole[len(prompt) - found.cut :]
        ends = [place for place, token in enumerate(turn) if token == tokenizer.eos_token_id]
        turns.append(tuple(turn[: ends[-1] + 1] if ends else turn))
    before = [*found.prompt_ids, *found.response_ids[0]][: len(prompt) - found.cut]
    return Encoded(tuple(before), tuple(turns), found.cut)


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, asked: Messages, whole: Sequence[Sequence[int]]) -> int:
    """How many tokens stand before any response."""
    alone = loading.conversation_ids(tokenizer, list(asked))
    same = 0
    while same < len(alone) and all(same < len(ids) and ids[same] == alone[same] for ids in whole):
        same += 1
    return same
