"""Chat templates: conversations as text and as token ids, the same in training, sampling and scoring."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.models import control_tokens
from psyco_ray.run import reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TODAY = date(2024, 7, 26)  # the default of Llama 3.2's template
_USER, _SYSTEM, _ANSWER = "Is this text kept?", "Keep this instruction.", "This answer is kept."
_NEXT = "And this one?"
TRIAL = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER})
"""A conversation of psyco_ray's own words, to try a template with."""

_log = logging.getLogger(__name__)


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], finished: bool = True
) -> list[int]:
    """Return the token ids of a conversation; it ends with the generation prompt unless the assistant spoke last.

    The template writes the special tokens, so none is added (no double BOS), and none comes out of a message, see
    `control_tokens`. A template that writes the current date (Llama 3.2) gets a fixed one, so that a seed gives the
    same run on every day. A system message that the template refuses or leaves out stands before the first user message
    instead.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        finished: whether the last message is complete; an unfinished one ends without end of turn.

    Raises:
        InputError: the chat template refuses the conversation, or changes the text of the unfinished message.
    """
    return _ids(tokenizer, _render(tokenizer, control_tokens.protect(tokenizer, messages), finished))


def turn_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    texts: Sequence[str],
    finished: Sequence[bool],
) -> tuple[list[int], list[list[int]]]:
    """Return a prompt and the assistant's turns after it, as a policy sees the one and writes the others.

    The prompt is that of a rollout, with the generation prompt, and a turn begins where a policy begins to write. Most
    templates render a conversation that begins with its prompt, and the turn is the rest of it. Where the rest begins
    within a token of the conversation (Qwen3.5), the rest is tokenised alone. Some templates render a past turn
    otherwise than they ask for a new one: DeepSeek-R1's and QwQ's prompt opens `<think>`, but past turns have no
    reasoning. There the turn is what a policy would have written after the prompt: the text's reasoning, or at once the
    closing tag, then the answer, then what the template writes after an answer.

    Args:
        tokenizer: with a chat template.
        messages: the conversation before the turns.
        texts: of the turns.
        finished: for each text, whether it is complete; the turn of an unfinished one has no end.

    Raises:
        InputError: the chat template refuses the conversation, or leaves out or changes a response.
    """
    messages = control_tokens.protect(tokenizer, messages)
    answers = control_tokens.protect(tokenizer, [{"role": "assistant", "content": text} for text in texts])
    prompt = _render(tokenizer, messages)
    prompt_ids = _ids(tokenizer, prompt)
    turns = []
    for answer, ends in zip(answers, finished, strict=True):
        rest = _rest(tokenizer, messages, prompt, answer["content"], ends)
        whole = _ids(tokenizer, prompt + rest)
        is_prefix = whole[: len(prompt_ids)] == prompt_ids
        turns.append(whole[len(prompt_ids) :] if is_prefix else _ids(tokenizer, rest))
    return prompt_ids, turns


def with_options(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Make options, such as `enable_thinking`, the defaults of a tokenizer's chat template.

    They are written into the template, so that a saved model has them too, wherever it is served. An option that a
    server's client gives takes precedence.

    Args:
        tokenizer: whose template is changed.
        options: name -> true, false, a number or a text.

    Raises:
        InputError: the template does not use an option.
    """
    if not options:
        return
    from jinja2 import Environment, TemplateError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path} has no chat template; leave template_options out")
    template = tokenizer.get_chat_template()
    try:
        environment: Environment = _compile_jinja_template(template).environment
        variables = meta.find_undeclared_variables(environment.parse(template))
    except TemplateError as error:
        raise InputError(f"the chat template of {tokenizer.name_or_path} is invalid: {error}") from None
    variables -= {"messages", "tools", "documents", "add_generation_prompt", *tokenizer.special_tokens_map}
    for name in options:
        if name not in variables:
            raise InputError(
                f"template_options has {name}, which the chat template of {tokenizer.name_or_path} does not use; "
                f"leave it out (its options: {', '.join(sorted(variables)) or 'none'})"
            )
    defaults = (
        f"{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}\n"
        for name, value in options.items()
    )
    tokenizer.chat_template = "".join(defaults) + template


def check(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> None:
    """Render a prompt with an answer as a trial, and log it if the template has no place for the system message.

    Raises:
        InputError: the chat template refuses the prompt, or leaves out a message.
    """
    answered = [*messages, {"role": "assistant", "content": _ANSWER}]
    texts = [_render(tokenizer, messages), _render(tokenizer, answered)]
    for message in answered:
        if message["content"].strip() not in texts[message["role"] == "assistant"]:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path} leaves out or changes the {message['role']} message; "
                "use a chat template that keeps it"
            )
    if any(message["role"] == "system" for message in messages) and _folds_system(tokenizer, _key(tokenizer)):
        _log.info(
            f"the chat template of {tokenizer.name_or_path} has no system role: the system message stands before the "
            "first user message"
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return control_tokens.token_ids(tokenizer, text)


def _key(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.chat_template)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], finished: bool = True) -> str:
    if any(message["role"] == "system" for message in messages) and _folds_system(tokenizer, _key(tokenizer)):
        messages = _without_system(messages)
    return _apply(tokenizer, messages, finished)


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], finished: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] != "assistant",
            continue_final_message=not finished,
            strftime_now=_TODAY.strftime,
        )
    )


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], finished: bool = True) -> str:
    from jinja2 import TemplateError

    try:
        return _text(tokenizer, messages, finished)
    except (TemplateError, TypeError):
        roles = ", ".join(message["role"] for message in messages)
        try:  # a reason may quote the conversation, so it is that of another one
            _text(tokenizer, [{**message, "content": _USER} for message in messages], finished)
        except (TemplateError, TypeError) as error:
            reason = str(error).partition("\n")[0]
        else:
            reason = "it accepts these roles, but not these texts"
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of {roles}: {reason}; use another "
            "chat template, or another prompt"
        ) from None
    except ValueError:  # its message holds the conversation
        if finished:
            raise
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} changes the text of a response that was cut; "
            "use a chat template that keeps it"
        ) from None


@functools.lru_cache(maxsize=16)
def _folds_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether the template refuses a system message (Gemma 2) or leaves it out; `template` is the cache's key."""
    try:
        return _SYSTEM not in _apply(tokenizer, TRIAL)
    except InputError:
        return True


def _without_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with the system messages before the text of the first user message."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [dict(message) for message in messages if message["role"] != "system"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        raise InputError("a conversation has a system message, but no user message before which it could stand")
    first["content"] = "\n\n".join([*system, first["content"]])
    return turns


def after_answer(tokenizer: PreTrainedTokenizerBase, continued: bool = False) -> str:
    """Return what the chat template writes after an answer, such as its end of turn.

    Args:
        tokenizer: with a chat template.
        continued: whether a user speaks next; else the answer is the last message.

    Raises:
        InputError: the template leaves out or changes the text of an answer.
    """
    return _after_answer(tokenizer, _key(tokenizer), continued)


@functools.lru_cache(maxsize=32)
def _after_answer(tokenizer: PreTrainedTokenizerBase, template: str, continued: bool) -> str:
    """As `after_answer`; `template` is part of the cache's key."""
    trial = [TRIAL[1], {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    _, found, tail = _apply(tokenizer, trial if continued else trial[:2]).rpartition(_ANSWER)
    if not found:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} leaves out or changes the text of a response; use a chat "
            "template that keeps it"
        )
    return tail.partition(_NEXT)[0] if continued else tail


def _rest(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], prompt: str, text: str, finished: bool
) -> str:
    """What follows a prompt where the assistant says a text."""
    thoughts, _ = reasoning.split(text)
    if not thoughts:
        whole = _render(tokenizer, [*messages, {"role": "assistant", "content": text}], finished)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
    # the template leaves out the reasoning of a past turn, or its prompt opens one
    return reasoning.continued(prompt, text.strip()) + (after_answer(tokenizer) if finished else "")
