"""The inputs of a reward model: conversations with their responses as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psyco_ray.models.padding import Inputs
from psyco_ray.run import reasoning
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import ScoreRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenized:
    """A reward model's inputs for some conversations; models with the same `tokenization` share them."""

    inputs: list[list[Inputs] | None]  # of each response; None where a response leaves no room for its prompt
    cuts: list[int]  # prompt tokens that were cut off


class RewardTokenizer:
    """Turns conversations into a reward model's inputs.

    Example:
        >>> tokenizer = RewardTokenizer(loading.load_tokenizer(path), max_tokens=4096)
        >>> tokens = tokenizer.tokenize([ScoreRequest("key", ({"role": "user", "content": "Hi."},), ("Hello.",))])
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> None:
        """Take a model's tokenizer.

        Args:
            tokenizer: with the model's chat template; without one a conversation is a pair of texts.
            max_tokens: limit of a conversation with its response; None: no limit.
        """
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self.key = _key(tokenizer, max_tokens)

    def tokenize(self, requests: Sequence[ScoreRequest]) -> Tokenized:
        """The inputs for every conversation."""
        from psyco_ray.models.encoding import ResponseTooLongError

        inputs: list[list[Inputs] | None] = []
        cuts: list[int] = []
        for request in requests:
            try:
                encoded, cut = self._inputs(request)
                inputs.append(encoded)
            except ResponseTooLongError:
                cut = 0
                inputs.append(None)
            cuts.append(cut)
        return Tokenized(inputs, cuts)

    def _inputs(self, request: ScoreRequest) -> tuple[list[Inputs], int]:
        """Return the model's inputs for each response, and the number of prompt tokens that were cut off."""
        from psyco_ray.models.encoding import encode

        answers = tuple(reasoning.split(text)[1] for text in request.responses)  # as a client reads them
        request = replace(request, responses=answers)
        if not self._tokenizer.chat_template:
            return self._paired_inputs(request)
        encoded = encode(
            self._tokenizer, request.messages, answers, self._max_tokens, request.finished, request.token_ids
        )
        conversations = [[*encoded.prompt_ids, *ids] for ids in encoded.response_ids]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in conversations], encoded.cut

    def _paired_inputs(self, request: ScoreRequest) -> tuple[list[Inputs], int]:
        """As `_inputs`, but without a chat template: a pair of texts, of which the question is cut at its left."""
        from psyco_ray.models.control_tokens import plain_pair
        from psyco_ray.models.encoding import ResponseTooLongError

        question = "\n\n".join(message["content"] for message in request.messages)
        # a sequence's own separators, such as [SEP], cannot come from a text
        pairs = [plain_pair(self._tokenizer, question, text) for text in request.responses]
        inputs = [dict(tokenizer(*texts)) for tokenizer, *texts in pairs]
        excess = max(len(pair["input_ids"]) for pair in inputs) - self._max_tokens if self._max_tokens else 0
        if excess <= 0:
            return inputs, 0
        if excess >= min(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for tokenizer, text, _ in pairs):
            raise ResponseTooLongError
        for tokenizer, *_ in pairs:
            tokenizer.truncation_side = "left"
        return [
            dict(tokenizer(*texts, truncation="only_first", max_length=len(pair["input_ids"]) - excess))
            for (tokenizer, *texts), pair in zip(pairs, inputs, strict=True)
        ], excess


def _key(tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> str:
    """A key that is equal for two tokenizers only if they make the same inputs of every conversation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return f"{id(tokenizer)}"
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return key_of(backend.to_str(), str(tokenizer.chat_template), special, max_tokens)
