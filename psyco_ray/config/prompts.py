"""The prompts file: reads, checks and fills its texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from psyco_ray.config import job_file
from psyco_ray.config.contexts import THERAPIST, Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import dotted
from psyco_ray.config.training import Principle, Prompts

PACKAGED = Path(__file__).with_name("prompts.yaml")
"""The prompts of the package; a job's own file replaces them."""

PRINCIPLES: tuple[str, ...] = get_args(Principle)
"""The principles, which are keys in a prompts file."""

SPEECH, CONVERSATION = "{client_speech}", "{conversation}"
"""Placeholders of a speech, and of a conversation's transcript."""

Messages = list[dict[str, str]]
"""A conversation; each message has ``role`` and ``content``."""


@dataclass(frozen=True)
class ContextEntry:
    """The entry that asks about a speech, and the one that asks the same about a conversation.

    Example:
        >>> entry = PromptsFile("default").context_entry("judge", True, "{response_a}", "{response_b}")
        >>> entry.of("I cannot sleep.") is entry.speech
        True
    """

    speech: dict[str, Any]
    conversation: dict[str, Any] | None  # None: nothing is asked about conversations

    def of(self, speech: str) -> dict[str, Any]:
        """The entry that asks about a context, given as its text."""
        if not Context.of(speech).is_conversation:
            return self.speech
        assert self.conversation is not None, "a context is a conversation, and its entry was not loaded"
        return self.conversation

    def placeholder(self, speech: str) -> str:
        """What stands in that entry for the context: SPEECH or CONVERSATION."""
        return CONVERSATION if Context.of(speech).is_conversation else SPEECH

    def map(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> ContextEntry:
        """The entries with both changed."""
        return ContextEntry(change(self.speech), self.conversation and change(self.conversation))

    def key(self) -> list[dict[str, Any]]:
        """What answers depend on: the entries in use."""
        return [self.speech] if self.conversation is None else [self.speech, self.conversation]


class PromptsFile:
    """A prompts file. Every text is checked when it is read.

    Example:
        >>> prompts = PromptsFile("default")
        >>> prompts.entry("rank", "{response_1}", "{response_2}")["user"]
    """

    def __init__(self, file: str) -> None:
        """Read the file.

        Args:
            file: a path, or `default` for the prompts of the package.

        Raises:
            InputError: the file is missing or holds no YAML.
        """
        self.path = PACKAGED if file == "default" else Path(file)
        texts = job_file.read_yaml(self.path, "prompts file")
        self._texts = texts if isinstance(texts, dict) else {}

    def entry(self, name: str, *placeholders: str) -> dict[str, Any]:
        """The texts of one prompt: `user` and, in some entries, `system` and `examples`.

        `examples` is a list of turns before the speech (few-shot); each has `client` and `response`.

        Numbered placeholders may be spelled ``{response1}``, as in the paper, or ``{response_1}``; the texts that come
        back have ``{response_1}``.

        Args:
            name: the entry.
            placeholders: what the user text must contain, such as ``{client_speech}``.

        Raises:
            InputError: the entry or a placeholder is missing, or an example lacks a text.
        """
        if name not in self._texts:
            known = ", ".join(dotted([str(key)]) for key in self._texts) or "nothing"
            raise InputError(f"prompts file {self.path} has no entry {name}; it has {known}")
        entry = self._texts[name]
        if isinstance(entry, dict):
            entry = {role: _one_spelling(text) if isinstance(text, str) else text for role, text in entry.items()}
        user = entry.get("user") if isinstance(entry, dict) else None
        for placeholder in placeholders:
            if not isinstance(user, str) or placeholder not in user:
                raise InputError(f"prompts file {self.path}: the user text of {name} does not contain {placeholder}")
        self._check_examples(name, entry)
        return entry

    def context_entry(self, name: str, conversations: bool, *placeholders: str) -> ContextEntry:
        """The entry `name`, which asks about speeches, and its like for conversations, `name`-conversation.

        Args:
            name: of the entry for speeches.
            conversations: whether any context is a conversation; without, the second entry may be missing.
            placeholders: of both, beside SPEECH in the one and CONVERSATION in the other.

        Raises:
            InputError: an entry or a placeholder is missing.
        """
        speech = self.entry(name, SPEECH, *placeholders)
        return ContextEntry(
            speech, self.entry(f"{name}-conversation", CONVERSATION, *placeholders) if conversations else None
        )

    def _check_examples(self, name: str, entry: Any) -> None:
        examples = entry.get("examples") if isinstance(entry, dict) else None
        if examples is None:
            return
        if not isinstance(examples, list) or "{response" in str(entry.get("user")):
            raise InputError(
                f"prompts file {self.path}: examples of {name} must be a list of turns, "
                "and only a prompt that asks for a response to a speech can have them"
            )
        for number, example in enumerate(examples, start=1):
            texts = [example.get(key) for key in ("client", "response")] if isinstance(example, dict) else [None]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise InputError(
                    f"prompts file {self.path}: example {number} of {name} needs the texts client and response"
                )

    def lists(self, name: str, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The lists of texts of an entry, by key.

        Args:
            name: the entry.
            keys: of the lists that it must have.

        Raises:
            InputError: the entry or a list is missing, or a list has no text or something else.
        """
        entry = self._texts.get(name)
        lists = {key: entry.get(key) if isinstance(entry, dict) else None for key in keys}
        for key, texts in lists.items():
            if not (
                isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
            ):
                raise InputError(f"prompts file {self.path}: {name} needs {key}, a list of texts")
        return {key: tuple(texts or ()) for key, texts in lists.items()}

    def principles(self) -> dict[str, dict[str, str]]:
        """`title` and `text` of every principle, by name.

        Raises:
            InputError: a principle lacks one of them.
        """
        principles = self._texts.get("principles") or {}
        for name in PRINCIPLES:
            if not {"title", "text"} <= set(principles.get(name) or {}):
                raise InputError(f"prompts file {self.path}: principles has no {name} with title and text")
        return principles

    def principles_text(self) -> str:
        """Titles and texts of all principles, as a judge reads them.

        Raises:
            InputError: a principle lacks its title or text.
        """
        principles = self.principles()
        return "\n\n".join(f"{principles[name]['title']}\n{principles[name]['text']}" for name in PRINCIPLES)


def _one_spelling(text: str) -> str:
    return re.sub(r"\{response(\d+)\}", r"{response_\1}", text)


def load_prompt(prompts: Prompts) -> dict[str, Any]:
    """The prompt that asks for a response, as a job names it.

    Raises:
        InputError: the file or the entry is missing, or its user text lacks ``{client_speech}``.
    """
    return PromptsFile(prompts.file).entry(prompts.respond, "{client_speech}")


def prompt_messages(prompt: Mapping[str, Any], speech: str) -> Messages:
    """The conversation that asks for a response to a context: system text, examples and the context's turns.

    The client's first turn stands in the prompt's `user` text, so that the prompts of a conversation's turns begin
    alike. Later ones stand in its `later` text, or alone.

    Args:
        prompt: an entry of a prompts file.
        speech: the text of a context.
    """
    system = [{"role": "system", "content": prompt["system"]}] if prompt.get("system") else []
    turns: Messages = []
    for example in prompt.get("examples") or ():
        turns += [_user_turn(prompt, example["client"]), {"role": THERAPIST, "content": example["response"]}]
    first, *others = Context.of(speech).messages
    later = {"user": prompt.get("later", "{client_speech}")}
    said = (turn if turn["role"] == THERAPIST else _user_turn(later, turn["content"]) for turn in others)
    return [*system, *turns, _user_turn(prompt, first["content"]), *said]


def _user_turn(prompt: Mapping[str, Any], speech: str) -> dict[str, str]:
    return {"role": "user", "content": prompt["user"].replace("{client_speech}", speech)}


def without_examples(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt as reward models read it: examples show a policy the form, and are no part of the client's session."""
    return {key: value for key, value in prompt.items() if key != "examples"}


def whole_text(prompt: Mapping[str, Any]) -> str:
    """The texts of a prompt in one."""
    return "\n".join(text for text in prompt.values() if isinstance(text, str))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace all placeholders at once; other braces, such as those of a JSON example, and values stay as they are."""
    pattern = "|".join(re.escape(placeholder) for placeholder in values)
    return re.sub(pattern, lambda match: values[match[0]], template) if values else template


def filled_messages(prompt: Mapping[str, str], values: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """A prompt's `system` text, if it has one, and its `user` text, with all placeholders filled."""
    return tuple(
        {"role": role, "content": fill(prompt[role], values)} for role in ("system", "user") if prompt.get(role)
    )
