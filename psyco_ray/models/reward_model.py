"""The reward model: a sequence classifier with one label, so that transformers, vLLM and RewardBench load it too."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Scorers
from psyco_ray.models.padding import Inputs, logits_of
from psyco_ray.models.reward_tokens import RewardTokenizer, Tokenized
from psyco_ray.run.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def new_model(path: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, seed: int) -> PreTrainedModel:
    """Load a language model with a new seeded reward head: N(0, 1 / (hidden + 1)) (Stiennon et al. 2020).

    A reward model keeps its own head. The pad token becomes one that ends no turn: transformers reads the score before
    trailing pad tokens, so that a pad token equal to the end of turn would move it.

    Raises:
        InputError: transformers has no classifier of this kind that reads its score off the last token.
    """
    import torch
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModelForSequenceClassification,
    )

    config = AutoConfig.from_pretrained(path, num_labels=1, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"{path} is a {config.model_type}, which transformers has no classifier of; choose another model"
        )
    has_head = any("SequenceClassification" in name for name in config.architectures or [])
    tokenizer.pad_token_id = distinct_pad(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, dtype=dtype, trust_remote_code=False
    )
    if not hasattr(model, "score"):
        raise InputError(f"{path} is a {config.model_type}, which is no decoder; choose a causal language model")
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]  # instead of the base model's class
    if not has_head:
        generator = torch.Generator().manual_seed(seed)
        # ZeRO-3 has emptied the weight and keeps its shape
        labels, hidden = getattr(model.score.weight, "ds_shape", model.score.weight.shape)
        head = torch.randn(labels, hidden, generator=generator) / (hidden + 1) ** 0.5
        import deepspeed

        with deepspeed.zero.GatheredParameters(model.score.weight, modifier_rank=0), torch.no_grad():
            if model.score.weight.numel():
                model.score.weight.copy_(head)
    return model


def distinct_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of a pad token that is neither the end of turn nor the beginning of text.

    Raises:
        InputError: the tokenizer has no special token for it.
    """
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token_id
    named = [t for t in tokenizer.get_vocab() if "pad" in t.lower() and t.startswith("<") and t.endswith(">")]
    for token in [*named, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id not in ends:
            return token_id
    raise InputError(
        f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with beside the end of turn; add one"
    )


# Not vLLM's pooling engine: on a CPU it scored 1.2 (pairs) and 1.3 times (groups of eight) as many texts a second in
# bfloat16, 1.1 times in float32. That does not pay for a second engine, which starts slower and supports fewer models.
class RewardModel:
    """A frozen reward model of any family.

    Decoders score packed rows, in which a prompt is computed once for all its responses, unless the self-test finds
    that packing changes their scores; other families score padded batches. A score equals the one that transformers
    gives to the conversation alone. The score of an unfinished response is read at its last text token, because its
    conversation has no end of turn. A model without a chat template marks no end of turn, so that `finished` does not
    change its scores.

    With `logit_token` the model is a causal language model, whose score is the logit of that token after the
    conversation, as in NVIDIA's Nemotron reward models for transformers.

    Example:
        >>> model = RewardModel("/models/reward", Scorers(), max_tokens=None)
        >>> [result] = model.score([ScoreRequest("key", ({"role": "user", "content": "Hi."},), ("Hello.",))])
        >>> result.values
    """

    def __init__(
        self,
        name: str,
        settings: Scorers,
        max_tokens: int | None,
        *,
        logit_token: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            name: directory or hub id.
            settings: dtype, device, tokens of a row. More than one GPU: the layers are spread over them.
            max_tokens: limit of a conversation with its response; None: the model's context length.
            logit_token: id of the token whose logit is the score; None: the model is a sequence classifier.
            template_options: of its chat template.

        Raises:
            InputError: the directory is incomplete, the model has more than one label or does not fit on its GPUs,
                `logit_token` does not suit it, or its chat template refuses a conversation.
        """
        import torch

        from psyco_ray.models import loading, selftest, templates
        from psyco_ray.models.packing import ResponseScores

        path = loading.resolve(name)
        spread = "auto" if settings.gpus > 1 else None
        if logit_token is None:
            model = _load_classifier(name, path, settings.dtype, spread)
        else:
            model = _load_logit_head(name, path, settings.dtype, spread, logit_token)
        if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())):
            raise InputError(f"reward model {name} does not fit on {settings.gpus:g} GPUs; raise scorers.gpus")
        decodes = logit_token is not None or is_decoder(model)
        self._row_tokens = settings.row_tokens
        self._device = torch.device("cuda" if settings.gpus else "cpu")
        self._model: Any = model.eval() if spread else model.eval().to(self._device)
        # a decoder was trained on rendered conversations; an encoder takes a question and an answer
        tokenizer = loading.load_tokenizer(path) if decodes else loading.load_any_tokenizer(path)
        templates.with_options(tokenizer, template_options or {})
        if tokenizer.chat_template:
            templates.check(tokenizer, templates.TRIAL)
        # transformers classifies before trailing pad tokens; a logit is read at the last token, whatever it is
        self._pad = None if logit_token is not None else model.config.get_text_config().pad_token_id
        self.tokens = RewardTokenizer(tokenizer, max_tokens or max_positions(model))
        self._decoder: Any = None
        self.note = ""  # how the model is computed, if a user should know
        if decodes:
            self._decoder = ResponseScores(self._model, logit_token, settings.attention)
            self.note = selftest.choose(self._decoder, name).note(f"reward model {name}")

    def score(self, requests: Sequence[ScoreRequest], tokens: Tokenized | None = None) -> list[ScoreResult]:
        """Score every conversation's responses.

        Args:
            requests: the conversations.
            tokens: of the same requests, by this model or one with the same `tokens.key`; None: tokenise them.

        Returns:
            In the given order, the raw scores; None where a response leaves no room for its prompt.
        """
        import torch

        tokens = tokens or self.tokens.tokenize(requests)
        fitting = [encoded for encoded in tokens.inputs if encoded is not None]
        with torch.inference_mode():
            scores = iter(self._score_trees(fitting) if self._decoder else self._score_padded(fitting))
        return [
            ScoreResult(request.key, None if encoded is None else tuple(next(scores)), cut)
            for request, encoded, cut in zip(requests, tokens.inputs, tokens.cuts, strict=True)
        ]

    def _score_trees(self, groups: Sequence[list[Inputs]]) -> list[list[float]]:
        """Return the scores of each group's responses, computed in batches of whole groups.

        A batch is packed while a GPU computes the one before: scores are read after the last one.
        """
        import torch

        from psyco_ray.models.packing import branch
        from psyco_ray.models.sharing import plan_trees

        trees = [branch([self._scored_ids(pair["input_ids"]) for pair in group]) for group in groups]
        scores: list[list[float]] = [[] for _ in groups]
        rows = plan_trees(trees, self._row_tokens, self._decoder.computed(self._device))
        packed = (self._decoder.pack([trees[index] for index in row], (), self._device) for row in rows)
        computed = [self._decoder(batch) for batch in packed]
        values = iter(torch.cat(computed).tolist() if computed else [])
        for index in itertools.chain.from_iterable(rows):
            scores[index] = [next(values) for _ in trees[index][1]]
        return scores

    def _scored_ids(self, ids: list[int]) -> list[int]:
        """Return a conversation up to where transformers reads its score: its last token that is not the pad token.

        In many published models the pad token is the end of turn, and the score is read at the token before it.
        """
        end = len(ids)
        while end > 2 and ids[end - 1] == self._pad:
            end -= 1
        return ids[:end]

    def _score_padded(self, groups: Sequence[list[Inputs]]) -> list[list[float]]:
        """Return the scores of each group's responses, computed in padded batches of similar lengths."""
        flat = [pair for group in groups for pair in group]
        logits = iter(logits_of(self._model, flat, self._pad, self._row_tokens, self._device))
        return [[next(logits)[0] for _ in group] for group in groups]


def _load_classifier(name: str, path: Path, dtype: str, device_map: str | None) -> Any:
    """Load a sequence classifier with one label.

    Raises:
        InputError: it has more labels.
    """
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=dtype, device_map=device_map, trust_remote_code=False
    )
    if model.config.num_labels != 1:
        raise InputError(f"reward model {name} has {model.config.num_labels} labels; one is needed")
    return model


def _load_logit_head(name: str, path: Path, dtype: str, device_map: str | None, token: int) -> Any:
    """Load a causal language model whose `score` is the output layer's row of one token.

    Raises:
        InputError: the model has no output layer, or no such token.
    """
    import torch

    from psyco_ray.models import loading

    model: Any = loading.load_causal_lm(path, dtype, device_map)
    output = model.get_output_embeddings()
    if not isinstance(output, torch.nn.Linear):
        raise InputError(f"reward model {name} has no output layer, which logit_token needs; leave this model out")
    if token >= output.out_features:
        raise InputError(
            f"logit_token {token} is not in the vocabulary of {name}, which has {output.out_features} tokens"
        )
    head = torch.nn.Linear(output.in_features, 1, output.bias is not None, output.weight.device, output.weight.dtype)
    head.load_state_dict({key: value[token : token + 1] for key, value in output.state_dict().items()})
    model.score = head
    return model


def is_decoder(model: Any) -> bool:
    """Whether a sequence classifier reads its score off a decoder's last token."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return isinstance(model, GenericForSequenceClassification)


def max_positions(model: Any) -> int | None:
    """Return the context length of a loaded model in tokens; None if its configuration has none."""
    tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    # RoBERTa's positions start after its pad token's
    pad_position = getattr(table, "padding_idx", None)
    return tokens if tokens is None or pad_position is None else tokens - pad_position - 1
