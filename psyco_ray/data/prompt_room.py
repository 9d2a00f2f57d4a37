"""Prompts of contexts that grow: what fits a model's context length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import Messages


def fitting_ids(
    tokenizer: Any, context: Context, messages_of: Callable[[Context], Messages], room: int
) -> list[int] | None:
    """The token ids of a context's prompt; a conversation loses its oldest exchanges until it fits.

    Args:
        tokenizer: with a chat template.
        context: a speech or a conversation.
        messages_of: the messages that ask for what follows a context.
        room: tokens that a prompt may have.

    Returns:
        The ids; None where the client's last turn alone does not fit.
    """
    from psyco_ray.models import templates

    while len(ids := templates.conversation_ids(tokenizer, messages_of(context))) > room:
        if not context.is_conversation:
            return None
        context = context.without_oldest()
    return ids
