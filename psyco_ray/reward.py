"""The reward model: a sequence classifier with one label, so that transformers, vLLM and RewardBench load it too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config import Scorers
from psyco_ray.records import Example, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def new_model(
    path: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, seed: int, gpus: float = 0
) -> PreTrainedModel:
    """A reward model over a language model's body, with a new seeded head: N(0, 1 / (hidden + 1)) (Stiennon 2020).

    The pad token becomes one that ends no turn: transformers reads the score before trailing pad tokens, so that
    a pad equal to the end of turn would move it. Given a reward model, its own head stays.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from psyco_ray import models

    config = AutoConfig.from_pretrained(path, num_labels=1)
    trained = any("SequenceClassification" in name for name in config.architectures or [])
    tokenizer.pad_token_id = distinct_pad(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=models.attention(gpus)
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]  # it still names the base model's class
    if not trained:
        generator = torch.Generator().manual_seed(seed)
        head = torch.randn(model.score.weight.shape, generator=generator) / (config.hidden_size + 1) ** 0.5
        import deepspeed

        with deepspeed.zero.GatheredParameters(model.score.weight, modifier_rank=0), torch.no_grad():
            if model.score.weight.numel():
                model.score.weight.copy_(head)
    return model


def distinct_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token that can pad without being mistaken for the end of a turn.

    Raises:
        ValueError: the tokenizer has no special token to spare.
    """
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token_id
    named = [t for t in tokenizer.get_vocab() if "pad" in t.lower() and t.startswith("<") and t.endswith(">")]
    spare = [*named, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    for token in spare:
        found = tokenizer.convert_tokens_to_ids(token)
        if found not in ends:
            return found
    raise ValueError(
        f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with beside the end of turn; add one"
    )


class ScorerActor:
    """Frozen models that turn responses into numbers: reward models by name, and the reference policy."""

    def __init__(self, name: str, rewards: dict[str, str], reference: str | None, settings: Scorers) -> None:
        """Say which models; `ready` loads them.

        Args:
            name: of this actor, in messages.
            rewards: a reward model's name (`reward`, `heldout`) -> its directory or hub id.
            reference: the reference policy.
            settings: dtype and device.
        """
        self.name, self._settings = name, settings
        self._reward_specs, self._reference_spec = rewards, reference

    def ready(self) -> str:
        """Load the models.

        Raises:
            ValueError: a directory is not complete, or a reward model has not one label.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        from psyco_ray import models
        from psyco_ray.logprobs import ResponseLogprobs, ResponseScores

        torch.set_num_threads(self._settings.threads)
        self._device = torch.device("cuda" if self._settings.gpus else "cpu")
        self._rewards: dict[str, tuple[Any, torch.nn.Module]] = {}
        for key, spec in self._reward_specs.items():
            path = models.resolve(spec)
            model = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=self._settings.dtype, attn_implementation=models.attention(self._settings.gpus)
            )
            if model.config.num_labels != 1:
                raise ValueError(f"reward model {spec} has {model.config.num_labels} labels; one is needed")
            self._rewards[key] = (models.load_tokenizer(path), ResponseScores(model.eval().to(self._device)))
        self._reference = None
        if self._reference_spec:
            policy = models.load_causal_lm(
                models.resolve(self._reference_spec), self._settings.dtype, self._settings.gpus
            )
            self._reference = ResponseLogprobs(policy.to(self._device))
        return self.name

    def score(self, item: tuple[Group, list[dict[str, str]], tuple[str, ...]]) -> Iterator[tuple[Group, float]]:
        """Score a group's responses.

        Args:
            item: the group, the conversation that it answers, the names of the reward models to ask.

        Yields:
            The group with its scores, and the seconds that took.
        """
        began = time.perf_counter()
        group, messages, names = item
        scores = {name: tuple(self.score_texts(name, messages, [r.text for r in group.responses])) for name in names}
        yield (
            Group(group.prompt, group.responses, group.version, {**group.scores, **scores}),
            time.perf_counter() - began,
        )

    def score_texts(self, name: str, messages: list[dict[str, str]], responses: list[str]) -> list[float]:
        """Raw scores of responses to one conversation: the rendered conversation through its end of turn."""
        import torch

        from psyco_ray.logprobs import branch, pack
        from psyco_ray.models import conversation_ids

        tokenizer, model = self._rewards[name]
        ids = [conversation_ids(tokenizer, [*messages, {"role": "assistant", "content": text}]) for text in responses]
        with torch.inference_mode():
            return model(pack([branch(ids)]).to(self._device)).tolist()

    def reference(self, example: Example) -> Iterator[tuple[Example, float]]:
        """The example with its reference log-probabilities, and the seconds that took."""
        import torch

        from psyco_ray.logprobs import pack

        assert self._reference is not None, "this scorer was made without a reference model"
        began = time.perf_counter()
        tree = (example.prompt_ids, [example.chosen_ids, example.rejected_ids])
        with torch.inference_mode():
            chosen, rejected = self._reference(pack([tree]).to(self._device)).tolist()
        yield replace(example, reference=(chosen, rejected)), time.perf_counter() - began
