"""Scores and log-probabilities of the tokens that a policy sampled."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import DpoConfig
from psyco_ray.learner import passes
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.models import loading, templates
from psyco_ray.models.encoding import encode
from psyco_ray.models.packing import ResponseLogprobs
from psyco_ray.models.reward_tokens import RewardTokenizer
from psyco_ray.rollout.scorer import REFERENCE, GroupBatch, ScorerActor
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response
from psyco_ray.training import pairs

ASKED = [{"role": "user", "content": "I cannot sleep and nobody knows why."}]
TEXT, OTHER = "That sounds tiring.", "Tell me more about it."


@pytest.fixture(scope="module")
def spelled(tokenizer) -> tuple[int, ...]:
    """The text in tokens of single letters, as a policy may sample it, with the end of turn."""
    ids = [token for letter in TEXT for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    assert tokenizer.decode(ids) == TEXT
    assert ids != tokenizer(TEXT, add_special_tokens=False)["input_ids"], "to decode and encode changes the tokens"
    return (*ids, tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def scorer(tiny_model, tiny_reward_model) -> ScorerActor:
    settings = Scorers(dtype="float32", threads=1)
    actor = ScorerActor("scorer-0", {"reward": str(tiny_reward_model)}, str(tiny_model), settings)
    actor.ready()
    return actor


def sampled_group(tokenizer, spelled) -> Group:
    prompt = tuple(templates.conversation_ids(tokenizer, ASKED))
    usual = tuple(tokenizer(OTHER, add_special_tokens=False)["input_ids"])
    responses = (Response(TEXT, spelled, True), Response(TEXT, spelled[:-1], False), Response(OTHER, usual, False))
    return Group(Prompt("speech", prompt, 0), responses, 0)


def test_a_reward_model_of_the_policys_vocabulary_scores_the_sampled_tokens(
    scorer, tokenizer, spelled, tiny_reward_model
) -> None:
    group = sampled_group(tokenizer, spelled)
    prompt, newline = group.prompt.token_ids, tokenizer("\n", add_special_tokens=False)["input_ids"]
    [scored] = scorer.score(GroupBatch(((group, ASKED),), ("reward",)))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    whole = ([*prompt, *spelled, *newline], [*prompt, *spelled[:-1]], [*prompt, *group.responses[2].token_ids])
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits.item() for ids in whole]
    assert scored.scores["reward"] == pytest.approx(expected, abs=1e-4)
    of_text = scorer.score_texts("reward", ASKED, [TEXT])[0]
    assert abs(of_text - scored.scores["reward"][0]) > 1e-3, "the tokens matter to the score"


def test_reference_and_pairs_keep_the_sampled_tokens(scorer, tokenizer, spelled, tiny_model) -> None:
    group = sampled_group(tokenizer, spelled)
    [scored] = scorer.score(GroupBatch(((group, ASKED),), ("reward", REFERENCE)))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    start = len(group.prompt.token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([[*group.prompt.token_ids, *spelled]])).logits[0].log_softmax(-1)
    expected = sum(logits[start + n - 1, token].item() for n, token in enumerate(spelled))
    assert scored.scores[REFERENCE][0] == pytest.approx(expected, abs=1e-3)

    pair = PreferencePair("speech", group.prompt.token_ids, spelled, group.responses[2].token_ids)
    trained = pairs.example_of(
        pairs.with_reference(pairs.row_of(pair, replace(group, scores=scored.scores)), (-1.0, -2.0))
    )
    assert (trained.prompt_ids, trained.chosen_ids, trained.rejected_ids) == (
        group.prompt.token_ids,
        spelled,
        group.responses[2].token_ids,
    )


def test_the_first_step_on_answers_starts_at_the_reference(scorer, tiny_model) -> None:
    pair = PreferencePair("pair", (5, 6, 7), (8, 9, 10, 11), (12, 13, 14), context=(3, 1))
    [referenced] = scorer.reference_logprobs([pair])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for ids, k, value in zip((pair.chosen_ids, pair.rejected_ids), pair.context, referenced.reference, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([pair.prompt_ids + ids])).logits[0].log_softmax(-1)
        expected = sum(logits[2 + n, ids[n]].item() for n in range(k, len(ids)))
        assert value == pytest.approx(expected, abs=1e-4)

    trained = replace(pair, reference=referenced.reference)
    module = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32"))
    with torch.no_grad():
        values = module(passes.packed([trained], module, torch.device("cpu")))
    objective = DpoObjective(DpoConfig(length_normalised=True))
    [inputs] = objective.loss_inputs([trained])
    assert inputs[2:] == (1.0, 2.0), "lengths are those of the trained tokens"
    _, metrics = objective(values.view(1, 2), torch.tensor([inputs]), 1.0)
    assert metrics["margin"].abs().item() < 1e-5


def test_a_batch_has_the_values_of_each_alone_and_computes_a_common_beginning_once(
    scorer, tokenizer, spelled, monkeypatch
) -> None:
    groups, pairs_ = [], []
    for number in range(5):
        system = {"role": "system", "content": "You are a counsellor. " * 20}
        asked = [system, *ASKED, {"role": "user", "content": f"{number}?"}]
        prompt = tuple(templates.conversation_ids(tokenizer, asked))
        group = replace(sampled_group(tokenizer, spelled), prompt=Prompt(f"speech-{number}", prompt, 0))
        groups.append((group, asked))
        ids = [response.token_ids for response in group.responses]
        pairs_.append(PreferencePair(f"pair-{number}", prompt, ids[0], ids[2], context=(number, 1)))
    computed: list[int] = []
    forward = scorer._reference.forward

    def counting(packed):
        computed.append(packed.input_ids.numel())
        return forward(packed)

    monkeypatch.setattr(scorer._reference, "forward", counting)
    names = ("reward", REFERENCE)
    together = scorer.score(GroupBatch(tuple(groups), names))
    in_one = sum(computed)
    for (group, asked), found in zip(groups, together, strict=True):
        [alone] = scorer.score(GroupBatch(((group, asked),), names))
        for name in names:
            assert found.scores[name] == pytest.approx(alone.scores[name], abs=1e-3)
    assert in_one < 0.6 * (sum(computed) - in_one), "the system message is computed once"

    referenced = scorer.reference_logprobs(pairs_)
    for pair, found in zip(pairs_, referenced, strict=True):
        [alone] = scorer.reference_logprobs([pair])
        assert found.reference == pytest.approx(alone.reference, abs=1e-3)


def test_the_turns_of_a_dialogue_are_scored_once(scorer, tokenizer, spelled, monkeypatch) -> None:
    """Three contexts of a dialogue, each with three responses: the longest history, and every response."""
    said = ["I cannot sleep. " * 12, "How long has it been so? " * 8, "Since my father died. " * 12, "Go on. " * 20]
    said.append("He was ill for a year, and I was never there. " * 6)
    roles = ("user", "assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    groups = []
    for turn in (2, 0, 1):  # as they arrive
        asked = messages[: 2 * turn + 1]
        prompt = Prompt(f"turn-{turn}", tuple(templates.conversation_ids(tokenizer, asked)), 0)
        groups.append((replace(sampled_group(tokenizer, spelled), prompt=prompt), asked))
    counts: dict[str, list[int]] = {"reward": [], REFERENCE: []}
    for name, module in (("reward", scorer._rewards["reward"]._decoder), (REFERENCE, scorer._reference)):

        def counting(packed, own=counts[name], forward=module.forward):
            own.append(packed.input_ids.numel())
            return forward(packed)

        monkeypatch.setattr(module, "forward", counting)
    names = ("reward", REFERENCE)
    together = scorer.score(GroupBatch(tuple(groups), names))
    in_one = {name: sum(own) for name, own in counts.items()}
    for (group, asked), found in zip(groups, together, strict=True):
        [alone] = scorer.score(GroupBatch(((group, asked),), names))
        for name in names:
            assert found.scores[name] == pytest.approx(alone.scores[name], abs=1e-3)
    prompts = [len(group.prompt.token_ids) for group, _ in groups]
    for name in names:
        saved = sum(counts[name]) - 2 * in_one[name]  # the histories of the first two turns
        assert saved == pytest.approx(sum(prompts) - max(prompts), rel=0.05)


def test_models_of_one_tokenizer_share_the_tokens(tiny_reward_model, tokenizer, spelled, monkeypatch) -> None:
    names = ("reward", "heldout")
    actor = ScorerActor("scorer-0", dict.fromkeys(names, str(tiny_reward_model)), None, Scorers(dtype="float32"))
    actor.ready()
    tokenized: list[str] = []
    tokenize = RewardTokenizer.tokenize

    def counting(self, requests):
        tokenized.append(self.key)
        return tokenize(self, requests)

    monkeypatch.setattr(RewardTokenizer, "tokenize", counting)
    [scored] = actor.score(GroupBatch(((sampled_group(tokenizer, spelled), ASKED),), names))
    assert len(tokenized) == 1
    assert scored.scores["reward"] == scored.scores["heldout"]
    shorter = RewardTokenizer(actor._rewards["reward"].tokens._tokenizer, 17)
    assert shorter.key != actor._rewards["reward"].tokens.key, "another limit cuts other prompts"


@pytest.mark.parametrize("change", ["another vocabulary", "a control token", "reasoning", "beyond the vocabulary"])
def test_tokens_that_are_not_the_text_are_not_taken(tokenizer, spelled, change) -> None:
    control = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokens = {
        "another vocabulary": tuple(token + 1 for token in spelled[:-1]),
        "a control token": (spelled[0], control, *spelled[1:]),
        "reasoning": (*tokenizer("<think>Hm.</think>", add_special_tokens=False)["input_ids"], *spelled),
        "beyond the vocabulary": (len(tokenizer) + 3, *spelled),
    }[change]
    assert encode(tokenizer, ASKED, [TEXT], None, sampled=[tokens]) == encode(tokenizer, ASKED, [TEXT], None)
    assert encode(tokenizer, ASKED, [TEXT], None, sampled=[spelled]) != encode(tokenizer, ASKED, [TEXT], None)


def test_the_texts_own_tokens_change_nothing(tiny_model) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    ids = (*tokenizer(TEXT, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    for limit in (None, 40):
        by_text = encode(tokenizer, ASKED, [TEXT, OTHER], limit, [True, False])
        other = tuple(tokenizer(OTHER, add_special_tokens=False)["input_ids"])
        assert encode(tokenizer, ASKED, [TEXT, OTHER], limit, [True, False], [ids, other]) == by_text
