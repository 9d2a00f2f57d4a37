"""Conversations as token ids, the same in training and in scoring."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psyco_ray.config.errors import InputError
from psyco_ray.models import stop_tokens, templates
from psyco_ray.models.packing import branch
from psyco_ray.run import reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]


class ResponseTooLongError(Exception):
    """A response leaves no room for a single token of its prompt."""


@dataclass(frozen=True)
class Encoded:
    """A conversation with several responses: the shared prefix, and each response through its end of turn.

    An unfinished response ends with its last text token.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    cut: int  # prompt tokens removed at the left
    reasoning_tokens: tuple[int, ...] = ()  # of each response, its first ones before the answer; by `encode_turn` only


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    responses: Sequence[str],
    max_tokens: int | None,
    finished: Sequence[bool] = (),
    sampled: Sequence[Sequence[int]] = (),
) -> Encoded:
    """Render a conversation with each response, and cut the prompt at its left until the longest fits.

    Args:
        tokenizer: with a chat template, which writes all special tokens.
        messages: the conversation up to the responses.
        responses: texts of the assistant's next turn.
        max_tokens: limit of the conversation with its longest response; None: no limit.
        finished: for each response, whether it ended by itself; an unfinished one is rendered without end of turn.
            Empty: all are finished.
        sampled: for each response, the tokens that a policy sampled. They stand for the text where they are the text in
            this tokenizer's vocabulary: tokenising it again may give others. Empty: texts are tokenised.

    Returns:
        The longest common prefix of the rendered conversations, and the rest of each.

    Raises:
        ResponseTooLongError: a response would have to be cut; only prompts are.

    Example:
        >>> encoded = encode(tokenizer, [{"role": "user", "content": "I cannot sleep."}], ["Why?", "Oh."], 512)
        >>> len(encoded.prompt_ids) + len(encoded.response_ids[0])
    """
    finished = finished or [True] * len(responses)
    conversations = [
        templates.conversation_ids(tokenizer, [*messages, {"role": "assistant", "content": text}], ends)
        for text, ends in zip(responses, finished, strict=True)
    ]
    if sampled:
        asked = templates.conversation_ids(tokenizer, messages)
        end = tokenizer(templates.after_answer(tokenizer), add_special_tokens=False)["input_ids"]
        bodies = _sampled_texts(tokenizer, responses, sampled)
        conversations = [
            ids if body is None else _as_sampled(asked, ids, body, end if ends else [])
            for ids, body, ends in zip(conversations, bodies, finished, strict=True)
        ]
    excess = max(len(ids) for ids in conversations) - max_tokens if max_tokens else 0
    if excess > 0:
        prompt_tokens = _prompt_tokens(tokenizer, messages, conversations)
        conversations = [_cut(tokenizer, ids, excess, prompt_tokens) for ids in conversations]
    prompt, answers = branch(conversations)
    return Encoded(tuple(prompt), tuple(tuple(ids) for ids in answers), max(0, excess))


def encode_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    responses: Sequence[str],
    max_tokens: int | None,
    finished: Sequence[bool] = (),
) -> Encoded:
    """As `encode`, but a response starts where a policy begins to write and ends with its stop token, as a sampled one.

    An unfinished response ends with its last text token. See `templates.turn_ids` and `stop_tokens`.

    Raises:
        ResponseTooLongError: a response would have to be cut; only prompts are.
        InputError: a response has no text.
    """
    finished = finished or [True] * len(responses)
    prompt, turns = templates.turn_ids(tokenizer, messages, responses, finished)
    stops = stop_tokens.stop_tokens(tokenizer)
    turns = [_ended(tokenizer, turn, stops) if ends else turn for turn, ends in zip(turns, finished, strict=True)]
    if not all(set(turn) - set(stops) for turn in turns):
        raise InputError(
            f"a response of a pair has no text, or the chat template of {tokenizer.name_or_path} leaves it out; remove "
            "pairs without text, or use a chat template that keeps it"
        )
    before = tuple(reasoning.tokens_before_answer(tokenizer, prompt, turn) for turn in turns)
    excess = len(prompt) + max(map(len, turns)) - max_tokens if max_tokens else 0
    if excess > 0:
        prompt = _cut(tokenizer, prompt, excess, len(prompt))
    return Encoded(tuple(prompt), tuple(map(tuple, turns)), max(0, excess), before)


def _sampled_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sampled: Sequence[Sequence[int]]
) -> list[list[int] | None]:
    """The sampled tokens of each text without its end of turn; None where they are not this text.

    They are not where another tokenizer made them, where they have reasoning before the text, or control tokens.
    """
    special, size = {*tokenizer.all_special_ids, *stop_tokens.stop_tokens(tokenizer)}, len(tokenizer)
    bodies: list[list[int] | None] = []
    for text, tokens in zip(texts, sampled, strict=True):
        body = list(tokens)
        while body and body[-1] in special:  # the template writes the end of turn
            del body[-1]
        is_text = special.isdisjoint(body) and max(body, default=0) < size
        is_text = is_text and tokenizer.decode(body, clean_up_tokenization_spaces=False) == text
        bodies.append(body if is_text else None)
    return bodies


def _as_sampled(prompt: list[int], conversation: list[int], body: list[int], end: list[int]) -> list[int]:
    """The conversation with the sampled tokens of its last text, if prompt and end of turn stand around the text."""
    if conversation[: len(prompt)] != prompt or conversation[len(conversation) - len(end) :] != end:
        return conversation
    return [*prompt, *body, *end]


def _ended(tokenizer: PreTrainedTokenizerBase, turn: list[int], stops: Collection[int]) -> list[int]:
    """The turn through its first stop token, without what the template writes behind it; every turn gets one."""
    end = next((position for position, token in enumerate(turn) if token in stops), None)
    return [*turn, stop_tokens.end_of_turn(tokenizer)] if end is None else turn[: end + 1]


def _cut(tokenizer: PreTrainedTokenizerBase, ids: list[int], excess: int, prompt_tokens: int) -> list[int]:
    """Remove tokens of the prompt at its left, but not the beginning-of-text token."""
    bos = int(ids[0] == tokenizer.bos_token_id)
    if excess + bos >= prompt_tokens:
        raise ResponseTooLongError
    return ids[:bos] + ids[bos + excess :]


def _prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, conversations: Sequence[Sequence[int]]
) -> int:
    """Return the number of tokens before any response."""
    prompt = templates.conversation_ids(tokenizer, list(messages))
    shared = 0
    while shared < len(prompt) and all(shared < len(ids) and ids[shared] == prompt[shared] for ids in conversations):
        shared += 1
    return shared
