"""Lengths of texts that a plan assumes."""

from __future__ import annotations

import functools

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.reading import Reading
from psyco_ray.config.simulate import Simulation
from psyco_ray.config.training import Prompts

CLIENT_TOKENS = 100
"""Mean tokens of a simulated client's turn, unless its `max_tokens` is lower."""
EXCHANGE_TOKENS = 150
"""Mean tokens of a client's turn and the therapist's answer in a file of conversations."""
RESPONSE_TOKENS = 256
"""Mean tokens of a response (about 190 words), unless `sampling.max_tokens` is lower or a run has measured them."""
SPEECH_CHARS, CHARS_PER_TOKEN, TEMPLATE_TOKENS = 300, 4.0, 10  # a speech; English text; a chat template


def prompt_tokens(prompts: Prompts, reading: Reading) -> float:
    """Tokens of a rendered prompt with a speech of `SPEECH_CHARS`, or with half of the turns that a context may have.

    Raises:
        InputError: the prompts file or its entry does not exist.
    """
    tokens = _entry_tokens(prompts)
    if reading.conversations == "contexts":
        tokens += min((reading.max_turns - 1) / 2 * EXCHANGE_TOKENS, reading.max_context_chars / CHARS_PER_TOKEN)
    return tokens


@functools.cache
def _entry_tokens(prompts: Prompts) -> float:
    texts = prompt_messages(load_prompt(prompts), "x" * SPEECH_CHARS)
    return sum(len(text["content"]) for text in texts) / CHARS_PER_TOKEN + TEMPLATE_TOKENS


def reply_tokens(simulate: Simulation) -> float:
    """Mean tokens of a simulated client's turn."""
    return min(float(simulate.client.max_tokens), CLIENT_TOKENS)
