"""Sampled tokens as responses: where a thinking model's answer begins, and whether it is complete."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from psyco_ray.run import reasoning
from psyco_ray.run.types import Response

_PROMPT_END = 16  # tokens of a prompt that hold a tag at its end


class ResponseReader:
    """Reads sampled tokens with a model's tokenizer.

    Example:
        >>> reader = ResponseReader(llm.get_tokenizer())
        >>> reader.read(prompt.token_ids, completion.text, completion.token_ids, stopped=True).text
        'I am sorry for your loss.'
    """

    def __init__(self, tokenizer: Any) -> None:
        """Find the special tokens that mark reasoning, which a decoded text lacks."""
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        self._marks = {self._special[token] for token in reasoning.special_parts([*self._special])}

    def read(self, prompt_ids: Sequence[int], text: str, token_ids: Sequence[int], stopped: bool) -> Response:
        """Return a response whose text is the answer, which is all that a client reads.

        Args:
            prompt_ids: of the prompt, whose end may open the reasoning.
            text: of the sampled tokens, without special tokens.
            token_ids: as they were sampled.
            stopped: whether the policy ended its turn. A response without an answer is unfinished all the same.
        """
        marked = not self._marks.isdisjoint(token_ids)
        if marked:
            text = self._decode(token_ids, marked)
        prompt_end = self._tokenizer.decode(list(prompt_ids[-_PROMPT_END:]), skip_special_tokens=False)
        thoughts, answer = reasoning.split(text, opened=reasoning.opening_tag(prompt_end) is not None)
        if marked:
            for token in self._special:
                answer = answer.replace(token, "")
        return Response(
            text=answer,
            token_ids=tuple(token_ids),
            finished=stopped and bool(answer.strip()),
            reasoning=thoughts,
            reasoning_tokens=self._tokens_of(thoughts, token_ids, marked),
        )

    def _tokens_of(self, thoughts: str, token_ids: Sequence[int], marked: bool) -> int:
        """The number of tokens at the beginning whose text holds the reasoning."""
        return bisect.bisect_left(
            range(len(token_ids) if thoughts else 0),
            len(thoughts),
            key=lambda count: len(self._decode(token_ids[:count], marked)),
        )

    def _decode(self, token_ids: Sequence[int], marked: bool) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not marked)
