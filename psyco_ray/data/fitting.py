"""Conversations that leave room for a response in a model's context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.config.training import Job
from psyco_ray.data.turns import without_oldest


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
    from psyco_ray.models import templates

    context = Context.of(text)
    while context.is_conversation:
        if len(templates.conversation_ids(tokenizer, prompt_messages(prompt, context.text))) <= most:
            break
        context = without_oldest(context)
    return context.text
