"""The reward model: a sequence classifier with one label, so that transformers, vLLM and RewardBench load it too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Scorers
from psyco_ray.run.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Inputs = dict[str, list[int]]
"""A conversation with one response as a model takes it: `input_ids`, `attention_mask`, perhaps `token_type_ids`."""


def new_model(path: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, seed: int) -> PreTrainedModel:
    """A reward model over a language model's body, with a new seeded head: N(0, 1 / (hidden + 1)) (Stiennon 2020).

    The pad token becomes one that ends no turn: transformers reads the score before trailing pad tokens, so that
    a pad equal to the end of turn would move it. Given a reward model, its own head stays. It attends to packed
    sequences.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from psyco_ray.models import attention

    config = AutoConfig.from_pretrained(path, num_labels=1)
    trained = any("SequenceClassification" in name for name in config.architectures or [])
    tokenizer.pad_token_id = distinct_pad(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=attention.NAME
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]  # it still names the base model's class
    if not trained:
        generator = torch.Generator().manual_seed(seed)
        # ZeRO-3 has emptied the weight already and keeps its shape aside
        labels, hidden = getattr(model.score.weight, "ds_shape", model.score.weight.shape)
        head = torch.randn(labels, hidden, generator=generator) / (hidden + 1) ** 0.5
        import deepspeed

        with deepspeed.zero.GatheredParameters(model.score.weight, modifier_rank=0), torch.no_grad():
            if model.score.weight.numel():
                model.score.weight.copy_(head)
    return model


def distinct_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token that can pad without being mistaken for the end of a turn.

    Raises:
        InputError: the tokenizer has no special token to spare.
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
    raise InputError(
        f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with beside the end of turn; add one"
    )


# On a CPU vLLM's pooling engine scored 1.2 (pairs) and 1.3 times (groups of eight) as many texts a second in bfloat16,
# 1.1 times in float32: too little for a second engine, its start of some ten seconds and its narrower choice of models.
class RewardModel:
    """A frozen reward model of any family.

    Decoders score packed rows, in which a prompt is computed once for all its responses; models of other families
    score padded batches. In both a score depends on its own conversation only, and is the one that transformers gives
    to that conversation alone.
    """

    def __init__(self, spec: str, settings: Scorers, max_tokens: int | None) -> None:
        """Load the model.

        Args:
            spec: its directory or hub id.
            settings: dtype, device, tokens of a row.
            max_tokens: of a conversation with its response; None: as many as the model has positions.

        Raises:
            InputError: the directory is not complete, or the model has not one label.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from psyco_ray.models import attention, loading
        from psyco_ray.models.packing import ResponseScores

        path = loading.resolve(spec)
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=settings.dtype)
        if model.config.num_labels != 1:
            raise InputError(f"reward model {spec} has {model.config.num_labels} labels; one is needed")
        self._row_tokens = settings.row_tokens
        self._device = torch.device("cuda" if settings.gpus else "cpu")
        self._model: Any = model.eval().to(self._device)
        # a decoder was trained on rendered conversations; an encoder takes question and answer
        self._tokenizer = loading.load_tokenizer(path) if can_pack(model) else AutoTokenizer.from_pretrained(path)
        self._pad = model.config.get_text_config().pad_token_id
        self._max_tokens = max_tokens or positions(model)
        self._packed: Any = None
        if can_pack(model):
            model.set_attn_implementation(attention.NAME)
            self._packed = ResponseScores(model)

    def score(self, asked: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Raw scores of every conversation's responses, in the given order."""
        import torch

        from psyco_ray.models.encoding import ResponseTooLongError

        inputs: list[list[Inputs] | None] = []
        cuts: list[int] = []
        for one in asked:
            try:
                found, cut = self._inputs(one)
            except ResponseTooLongError:
                found, cut = None, 0
            inputs.append(found)
            cuts.append(cut)
        fitting = [found for found in inputs if found is not None]
        with torch.inference_mode():
            values = iter(self._score_packed(fitting) if self._packed else self._score_padded(fitting))
        return [
            ScoreResult(one.key, None if found is None else tuple(next(values)), cut)
            for one, found, cut in zip(asked, inputs, cuts, strict=True)
        ]

    def _inputs(self, asked: ScoreRequest) -> tuple[list[Inputs], int]:
        """The model's inputs for each response, and how many tokens of the prompt were cut off."""
        from psyco_ray.models.encoding import encode

        if not self._tokenizer.chat_template:
            return self._paired_inputs(asked)
        found = encode(self._tokenizer, asked.messages, asked.responses, self._max_tokens)
        whole = [[*found.prompt_ids, *ids] for ids in found.response_ids]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in whole], found.cut

    def _paired_inputs(self, asked: ScoreRequest) -> tuple[list[Inputs], int]:
        """Without a chat template: question and answer as a pair of texts, the question cut at its left."""
        from psyco_ray.models.encoding import ResponseTooLongError

        question = "\n\n".join(message["content"] for message in asked.messages)
        whole = [dict(self._tokenizer(question, text)) for text in asked.responses]
        over = max(len(one["input_ids"]) for one in whole) - self._max_tokens if self._max_tokens else 0
        if over <= 0:
            return whole, 0
        ids = self._tokenizer(question, add_special_tokens=False)["input_ids"]
        if over >= len(ids):
            raise ResponseTooLongError
        self._tokenizer.truncation_side = "left"
        return [
            dict(self._tokenizer(question, text, truncation="only_first", max_length=len(one["input_ids"]) - over))
            for text, one in zip(asked.responses, whole, strict=True)
        ], over

    def _score_packed(self, groups: Sequence[list[Inputs]]) -> list[list[float]]:
        """Scores of each group's responses, through rows of whole groups."""
        from psyco_ray.models.packing import branch, pack

        trees = [branch([self._read_through(one["input_ids"]) for one in group]) for group in groups]
        sizes = [len(prompt) + sum(map(len, responses)) for prompt, responses in trees]
        scores: list[list[float]] = [[] for _ in groups]
        for row in rows(sizes, self._row_tokens):
            values = iter(self._packed(pack([trees[place] for place in row]).to(self._device)).tolist())
            for place in row:
                scores[place] = [next(values) for _ in trees[place][1]]
        return scores

    def _read_through(self, ids: list[int]) -> list[int]:
        """A conversation up to where transformers reads its score: the last token that is not the pad token.

        Where that is the end of turn as well, as in many published models, this is the token before it.
        """
        end = len(ids)
        while end > 2 and ids[end - 1] == self._pad:
            end -= 1
        return ids[:end]

    def _score_padded(self, groups: Sequence[list[Inputs]]) -> list[list[float]]:
        """Scores of each group's responses, through padded batches of conversations that are about as long."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        flat = [one for group in groups for one in group]
        lengths = [len(one["input_ids"]) for one in flat]
        # a model without a pad token takes one conversation at a time
        budget = 0 if self._pad is None else self._row_tokens
        found = [0.0] * len(flat)
        for row in rows(lengths, budget, padded=True):
            batch = {
                name: pad_sequence(
                    [torch.tensor(flat[place][name]) for place in row],
                    batch_first=True,
                    padding_value=self._pad if name == "input_ids" and self._pad is not None else 0,
                ).to(self._device)
                for name in flat[row[0]]
            }
            for place, score in zip(row, self._model(**batch).logits[:, 0].float().tolist(), strict=True):
                found[place] = score
        values = iter(found)
        return [[next(values) for _ in group] for group in groups]


def can_pack(model: Any) -> bool:
    """Whether a sequence classifier is a plain decoder: its layers attend, and the score is read at the last token.

    Layers with a running state (Mamba, linear attention) would carry it from one response into the next.
    """
    from transformers.modeling_layers import GenericForSequenceClassification

    config = model.config
    return (
        isinstance(model, GenericForSequenceClassification)
        and model.base_model_prefix == "model"
        and config.get_text_config() is config
        and not model._is_stateful
        and set(getattr(config, "layer_types", None) or []) <= {"full_attention", "sliding_attention"}
    )


def positions(model: Any) -> int | None:
    """Tokens that a model has positions for; None where it tells no number."""
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    # RoBERTa counts from behind its pad token
    skipped = getattr(table, "padding_idx", None)
    return own if own is None or skipped is None else own - skipped - 1


def rows(lengths: Sequence[int], budget: int, padded: bool = False) -> list[list[int]]:
    """Texts sorted into rows by length, the shortest first.

    Args:
        lengths: tokens of each text.
        budget: tokens that a row holds; a longer text has a row of its own.
        padded: count every text of a row as long as its longest.

    Returns:
        The positions of each row's texts.
    """
    found: list[list[int]] = []
    held = 0
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        wanted = lengths[place] * (len(found[-1]) + 1) if padded and found else held + lengths[place]
        if found and wanted <= budget:
            found[-1].append(place)
            held = wanted
        else:
            found.append([place])
            held = lengths[place]
    return found
