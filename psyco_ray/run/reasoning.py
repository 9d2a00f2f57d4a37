"""What a thinking model writes before its answer, and where the answer begins."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

_TAGS = {
    "<think>": "</think>",  # Qwen3, DeepSeek-R1, QwQ
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",  # Magistral
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",  # gpt-oss
}
"""Opening tag -> closing tag."""
_PROMPT_END = 16  # tokens of a prompt that hold a tag at its end


def split(text: str, opened: bool = False) -> tuple[str, str]:
    """Split a model's text into its reasoning and its answer, which is all that a client reads.

    The answer begins after the last closing tag, whether or not its opening tag is in the text: a generation prompt
    may have opened the reasoning. Reasoning that never closes has no answer.

    Args:
        text: as it was sampled.
        opened: whether the generation prompt opened the reasoning.

    Returns:
        The reasoning, with its tags, and the answer; either may be empty.

    Example:
        >>> split("<think>She grieves.</think>I am sorry.")
        ('<think>She grieves.</think>', 'I am sorry.')
        >>> split("<think>She gr")
        ('<think>She gr', '')
    """
    ends = [text.rfind(tag) + len(tag) for tag in _TAGS.values() if tag in text]
    if ends:
        return text[: max(ends)], text[max(ends) :].lstrip()
    if opened or text.lstrip().startswith(tuple(_TAGS)):
        return text, ""
    return "", text


def tokens_before_answer(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> int:
    """Return how many tokens of a response precede its answer: its reasoning and the blank space behind it.

    A token that holds the end of the one and the beginning of the other belongs to the answer. Reasoning that never
    closes is all of the response.

    Args:
        tokenizer: of the policy.
        prompt_ids: of the prompt, whose end may open the reasoning.
        token_ids: of the response.
    """

    def decoded(count: int) -> str:
        return str(tokenizer.decode(list(token_ids[:count]), skip_special_tokens=False))

    text = decoded(len(token_ids))
    thoughts, answer = split(text, opened_by(tokenizer, prompt_ids))
    if not thoughts or not answer:
        return len(token_ids) if thoughts else 0
    begin = len(text) - len(answer)
    count = bisect.bisect_left(range(len(token_ids)), begin, key=lambda count: len(decoded(count)))
    return count if len(decoded(count)) == begin else count - 1


def opened_by(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Return whether the end of a prompt opens the reasoning."""
    return opening_tag(tokenizer.decode(list(prompt_ids[-_PROMPT_END:]), skip_special_tokens=False)) is not None


def opening_tag(prompt: str) -> str | None:
    """Return the tag with which a generation prompt opens the reasoning; None if it opens none."""
    return next((tag for tag in _TAGS if prompt.rstrip().endswith(tag)), None)


def continued(prompt: str, text: str) -> str:
    """Return what a policy would have written after a generation prompt to say a text.

    Where the prompt opens the reasoning, the text's own reasoning goes on from there; a text without reasoning closes
    it at once, as templates with reasoning switched off do.
    """
    thoughts, answer = split(text)
    if prompt.rstrip().endswith(tuple(_TAGS.values())):  # reasoning is switched off
        return answer
    tag = opening_tag(prompt)
    if tag is None:
        return text
    if thoughts:
        return text.lstrip().removeprefix(tag).lstrip("\n")
    newlines = "\n" if prompt.endswith("\n") else "\n\n"
    return f"{newlines}{_TAGS[tag]}\n\n{text}"


def special_parts(tokens: list[str]) -> list[str]:
    """Return the tokens that are tags, or parts of tags."""
    return [token for token in tokens if any(token in part for tags in _TAGS.items() for part in tags)]


def is_open(text: str) -> bool:
    """Whether a text opens reasoning that it does not close."""
    return any(text.rfind(opening) > text.rfind(closing) for opening, closing in _TAGS.items())
