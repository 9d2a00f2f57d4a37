"""Sampled tokens as responses: where a thinking model's answer begins, and whether it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyco_ray.run import reasoning
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Response


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
            text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        thoughts, answer = reasoning.split(text, reasoning.opened_by(self._tokenizer, prompt_ids))
        if marked:
            for token in self._special:
                answer = answer.replace(token, "")
        before = reasoning.tokens_before_answer(self._tokenizer, prompt_ids, token_ids) if thoughts else 0
        return Response(
            text=answer,
            token_ids=TokenIds(token_ids),
            finished=stopped and bool(answer.strip()),
            reasoning=thoughts,
            reasoning_tokens=before,
        )
