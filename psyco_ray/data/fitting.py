"""Conversations that leave room for what follows in a model's context length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import Messages, prompt_messages
from psyco_ray.config.training import Job


def room(job: Job) -> int:
    """Tokens that a prompt may have in a training job."""
    return job.rollouts.max_model_len - job.sampling.max_tokens


def fitted(text: str, tokenizer: Any, prompt: Mapping[str, Any], most: int) -> str:
    """A context without as many of its oldest exchanges as it takes for its prompt to fit.

    A single turn that does not fit stays as it is.

    Args:
        text: of the context.
        tokenizer: of the model.
        prompt: the entry of a prompts file that asks for a response.
        most: tokens of the prompt.
    """
    context, _ = _fitted(tokenizer, Context.of(text), lambda context: prompt_messages(prompt, context.text), most)
    return context.text


def fitting_ids(
    tokenizer: Any, context: Context, messages_of: Callable[[Context], Messages], most: int
) -> list[int] | None:
    """The token ids of a context's prompt; a conversation loses its oldest exchanges until it fits.

    Args:
        tokenizer: with a chat template.
        context: a speech or a conversation.
        messages_of: the messages that ask for what follows a context.
        most: tokens of the prompt.

    Returns:
        The ids; None where the client's last turn alone does not fit.
    """
    _, ids = _fitted(tokenizer, context, messages_of, most)
    return ids if len(ids) <= most else None


def _fitted(
    tokenizer: Any, context: Context, messages_of: Callable[[Context], Messages], most: int
) -> tuple[Context, list[int]]:
    """What is left of a context, and the token ids of its prompt."""
    from psyco_ray.models import templates

    while len(ids := templates.conversation_ids(tokenizer, messages_of(context))) > most and context.is_conversation:
        context = context.without_oldest()
    return context, ids
