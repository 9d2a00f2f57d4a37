"""A saved reward model has the same scores in every library, and scores of every family equal those of transformers."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import families
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from psyco_ray.config.errors import NonFiniteError
from psyco_ray.config.resources import Scorers
from psyco_ray.models import layout, loading, reward_model, templates
from psyco_ray.rollout.scorer import GroupBatch, ScorerActor
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response, ScoreRequest, ScoreResult

MESSAGES = [{"role": "user", "content": "I cannot sleep and nobody knows why."}]
RESPONSES = ["That sounds tiring.", "Sleep more!", "What goes through your mind at night, when the house is quiet?"]


@pytest.fixture(scope="module")
def scorer(tiny_reward_model, tiny_model) -> ScorerActor:
    settings = Scorers(dtype="float32")
    actor = ScorerActor("scorer-0", {"reward": str(tiny_reward_model)}, str(tiny_model), settings)
    actor.ready()
    return actor


@pytest.fixture(scope="module")
def texts(tokenizer) -> list[str]:
    turns = [{"role": "assistant", "content": response} for response in RESPONSES]
    return [tokenizer.apply_chat_template([*MESSAGES, turn], tokenize=False) for turn in turns]


def test_a_new_head_is_seeded_and_a_reward_model_keeps_its_head(tiny_model, tiny_reward_model) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    first, same, other = (
        reward_model.new_model(tiny_model, tokenizer, "float32", seed).score.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    again = reward_model.new_model(tiny_reward_model, tokenizer, "float32", seed=1).score.weight
    assert torch.equal(again, reward_model.new_model(tiny_model, tokenizer, "float32", seed=3).score.weight)


def test_scores_and_log_probabilities_of_nan_name_model_and_speech(tiny_reward_model, tiny_model) -> None:
    reward, reference = tiny_reward_model, tiny_model
    actor = ScorerActor("scorer-0", {"heldout": str(reward)}, str(reference), Scorers(dtype="float32"))
    actor.ready()
    for model in (actor._rewards["heldout"]._model, actor._reference.model):  # a load refuses such weights
        with torch.no_grad():
            model.model.norm.weight[0] = torch.nan
    group = Group(Prompt("speech-7", (1,), 0), tuple(Response(a, (9,), True) for a in RESPONSES), 4)
    with pytest.raises(NonFiniteError, match=f"a score of speech-7 by heldout model {reward} is nan; its weights are"):
        actor.score(GroupBatch(((group, MESSAGES),), ("heldout",)))
    under = rf"under reference {reference} is nan"
    with pytest.raises(NonFiniteError, match=f"a log-probability of speech-7 {under}"):
        actor.score(GroupBatch(((group, MESSAGES),), ("reference",)))
    with pytest.raises(NonFiniteError, match=f"a log-probability of pair-1 {under}"):
        actor.reference_logprobs([PreferencePair("pair-1", (5,), (6,), (7,))])
    request = ScoreRequest("row-2", tuple(MESSAGES), tuple(RESPONSES))
    with pytest.raises(NonFiniteError, match="a score of row-2 by heldout model"):
        list(actor.score_many(("heldout", (request,))))


def test_a_group_scores_as_each_response_alone(scorer) -> None:
    group = Group(Prompt("s", (1,), 0), tuple(Response(a, (9,), True) for a in RESPONSES), 4)
    [scored] = scorer.score(GroupBatch(((group, MESSAGES),), ("reward",)))
    assert scored.scores["reward"] == pytest.approx(scorer.score_texts("reward", MESSAGES, RESPONSES), abs=1e-5)
    assert scored.key == "s"
    assert scored.seconds > 0
    alone = [scorer.score_texts("reward", MESSAGES, [answer])[0] for answer in RESPONSES]
    assert scored.scores["reward"] == pytest.approx(alone, abs=1e-5)
    assert len({round(s, 3) for s in alone}) == 3


def test_transformers_pipeline_gives_the_same_scores(scorer, tiny_reward_model, texts) -> None:
    """RewardBench loads a sequence classifier like this: a pipeline over rendered conversations, padded together."""
    from transformers import pipeline

    classify = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(tiny_reward_model),
        device="cpu",
    )
    scores = [
        label["score"]
        for label in classify(
            texts, batch_size=3, padding=True, truncation=True, max_length=256, function_to_apply="none"
        )
    ]
    assert scores == pytest.approx(scorer.score_texts("reward", MESSAGES, RESPONSES), abs=1e-5)


@ray.remote(num_cpus=1, runtime_env={"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}})
def vllm_scores(path: str, texts: list[str]) -> list[float]:
    from vllm import LLM, PoolingParams

    llm = LLM(
        path, runner="pooling", dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**27
    )
    outputs = llm.classify(texts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [output.outputs.probs[0] for output in outputs]


@pytest.mark.long
def test_vllm_gives_the_same_scores(local_ray, scorer, tiny_reward_model, texts) -> None:
    scores = ray.get(vllm_scores.remote(str(tiny_reward_model), texts), timeout=300)
    assert scores == pytest.approx(scorer.score_texts("reward", MESSAGES, RESPONSES), abs=1e-3)


def test_reference_logprobs_equal_those_of_the_model(scorer, tiny_model) -> None:

    example = PreferencePair("p", (5, 6, 7), (8, 9), (10, 11, 12))
    [with_reference] = scorer.reference_logprobs([example])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for ids, value in zip((example.chosen_ids, example.rejected_ids), with_reference.reference, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([example.prompt_ids + ids])).logits[0, 2:-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-4)


def test_a_classifier_with_two_labels_is_refused(tiny_model, tmp_path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 labels; one is needed"):
        ScorerActor("x", {"reward": str(tmp_path)}, None, Scorers()).ready()


WORDS = ["sleep", "work", "alone", "father", "door", "quiet", "never", "why", "tell", "friend", "again"]


def conversations(count: int, seed: int = 0, max_responses: int = 4) -> list[ScoreRequest]:
    """Conversations of one or three messages with up to `max_responses` responses, of very different lengths."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    def request(index: int) -> ScoreRequest:
        roles = ["user", "assistant", "user"] if rng.random() < 0.3 else ["user"]
        messages = tuple({"role": role, "content": text(1, 30)} for role in roles)
        return ScoreRequest(f"c{index}", messages, tuple(text(1, 40) for _ in range(rng.randint(1, max_responses))))

    return [request(index) for index in range(count)]


TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,  # far enough from zero that scores differ
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
WRITES_BOS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DECODERS: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
}
ENCODERS: dict[str, dict] = {
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 3, "type_vocab_size": 1},
    "deberta-v2": {
        "pad_token_id": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}


def saved(path: Path, kind: str, template: str | None, **changes) -> Path:
    """Saves a random reward model with a small vocabulary; without a template its tokenizer is an encoder's."""
    settings = {**TINY, **(DECODERS | ENCODERS)[kind], **changes}
    tokenizer = families.new_tokenizer(template=template)
    tokenizer.add_tokens([f" {word}" for word in [*WORDS, "so"]])
    tokenizer.pad_token_id = settings["pad_token_id"]
    start, end = (tokenizer.convert_ids_to_tokens(i) for i in (1, 2))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A" if template else f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, 1), (end, 2)],
    )
    if kind in ENCODERS:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), num_labels=1, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def by_transformers(path: Path, requests: list[ScoreRequest]) -> list[tuple[float, ...]]:
    """Scores each rendered conversation alone and unpadded."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(path)

    def score(request: ScoreRequest, response: str) -> float:
        if tokenizer.chat_template:
            whole = [*request.messages, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(whole, tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        else:
            question = "\n\n".join(m["content"] for m in request.messages)
            inputs = tokenizer(question, response, return_tensors="pt")
        with torch.no_grad():
            return model.eval()(**inputs).logits.item()

    return [tuple(score(request, response) for response in request.responses) for request in requests]


def flat(scored: list[ScoreResult]) -> list[float]:
    return [value for result in scored for value in result.values]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_scores_of_a_family_equal_those_of_transformers(kind, tmp_path) -> None:
    path = saved(tmp_path / kind, kind, WRITES_BOS if kind in DECODERS else None)
    requests = conversations(8)
    expected = [value for values in by_transformers(path, requests) for value in values]
    for row_tokens in (1, 150, 4096):
        settings = Scorers(dtype="float32", row_tokens=row_tokens)
        scored = reward_model.RewardModel(str(path), settings, None).score(requests)
        assert [result.key for result in scored] == [request.key for request in requests]
        assert flat(scored) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) > 0.9 * len(expected), "equal scores would prove nothing"


def test_a_decoder_without_a_pad_token_or_a_template(tmp_path) -> None:
    requests = conversations(5)
    for kind, changes in (
        ("gpt2", {"template": WRITES_BOS}),
        ("gpt2", {"template": None}),
        ("llama", {"template": None}),
    ):
        path = saved(tmp_path / "model", kind, **changes)
        config = AutoConfig.from_pretrained(path)
        config.pad_token_id = None
        config.save_pretrained(path)
        expected = [value for values in by_transformers(path, requests) for value in values]
        model = reward_model.RewardModel(str(path), Scorers(dtype="float32"), None)
        assert flat(model.score(requests)) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def many() -> list[ScoreRequest]:
    return conversations(60, seed=1)


@pytest.fixture(scope="module", params=["packed", "padded"])
def family(request, tiny_reward_model, tmp_path_factory) -> Path:
    if request.param == "packed":
        return tiny_reward_model
    return saved(tmp_path_factory.mktemp("models") / "deberta", "deberta-v2", None)


@pytest.fixture(scope="module")
def alone(family, many) -> tuple[reward_model.RewardModel, dict[tuple[str, str], float]]:
    """A model, and the score of every response alone."""
    model = reward_model.RewardModel(str(family), Scorers(dtype="float32", row_tokens=300), None)
    return model, {
        (request.key, response): model.score([ScoreRequest(request.key, request.messages, (response,))])[0].values[0]
        for request in many
        for response in request.responses
    }


def test_128_responses_together_score_as_each_alone(alone, many) -> None:
    model, scores = alone
    expected = [scores[request.key, response] for request in many for response in request.responses]
    assert len(expected) >= 128
    assert flat(model.score(many)) == pytest.approx(expected, abs=1e-5)


@hypothesis.settings(max_examples=25)
@given(data=st.data())
def test_scores_do_not_depend_on_batch_mates(alone, many, data) -> None:
    model, scores = alone
    chosen = data.draw(st.lists(st.sampled_from(many), min_size=1, max_size=6))
    requests = [replace(request, responses=tuple(data.draw(st.permutations(request.responses)))) for request in chosen]
    expected = [scores[request.key, response] for request in requests for response in request.responses]
    assert flat(model.score(requests)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_logit_of_a_token_is_the_score_that_generation_gives(tied, tiny_model, tmp_path) -> None:
    """As the card of Nemotron's reward model says: one token is generated after the conversation, its logits kept."""

    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=tied)
    torch.manual_seed(5)
    language_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    language_model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    actor = ScorerActor("scorer-0", {"m": str(tmp_path)}, None, Scorers(dtype="float32"), logit_token=7)
    actor.ready()
    expected = []
    for response in RESPONSES:
        turns = [*MESSAGES, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        made = language_model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        expected.append(made.scores[0][0][7].item())
    assert actor.score_texts("m", MESSAGES, RESPONSES) == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 2) for score in expected}) == 3


def test_a_token_outside_the_vocabulary_is_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match=r"logit_token 99999 is not in the vocabulary of .* which has 49152 tokens"):
        reward_model.RewardModel(str(tiny_model), Scorers(dtype="float32"), None, logit_token=99999)


def test_score_many_returns_scores_by_request_and_the_seconds(scorer, many) -> None:
    [(scored, seconds)] = scorer.score_many(("reward", tuple(many[:5])))
    assert [result.key for result in scored] == [request.key for request in many[:5]]
    assert [result.cut for result in scored] == [0] * 5
    expected = [scorer.score_texts("reward", list(request.messages), request.responses) for request in many[:5]]
    assert flat(scored) == pytest.approx(list(itertools.chain(*expected)), abs=1e-5)
    assert seconds > 0


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_a_long_prompt_is_cut_and_a_long_response_has_no_score(kind, tmp_path) -> None:
    path = saved(tmp_path / "model", kind, WRITES_BOS if kind == "llama" else None)
    tokenizer = AutoTokenizer.from_pretrained(path)
    long = "the first words of a long letter " * 9 + "and its end"
    response = "I hear you."
    messages = ({"role": "user", "content": long},)
    if kind == "llama":
        whole = templates.conversation_ids(tokenizer, [*messages, {"role": "assistant", "content": response}])
    else:
        whole = tokenizer(long, response)["input_ids"]
    over = len(whole) - 50
    ids = torch.tensor([whole[:1] + whole[1 + over :]])
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(path).eval()(ids).logits.item()
    model = reward_model.RewardModel(str(path), Scorers(dtype="float32"), 50)
    cut, none = model.score(
        [ScoreRequest("cut", messages, (response,)), ScoreRequest("none", messages, (response, "so " * 60))]
    )
    assert (cut.cut, none.values) == (over, None)
    assert cut.values == pytest.approx([expected], abs=1e-5)


def test_a_response_longer_than_the_context_is_refused(tmp_path) -> None:
    path = saved(tmp_path / "model", "roberta", None, max_position_embeddings=54)
    actor = ScorerActor("scorer-0", {"heldout": str(path)}, None, Scorers(dtype="float32"))
    actor.ready()
    messages = [{"role": "user", "content": "so " * 100}]
    assert len(actor.score_texts("heldout", messages, ["so " * 40])) == 1  # 50 positions follow the pad token's
    with pytest.raises(ValueError, match=r"fills the context of reward model .*model; lower sampling.max_tokens"):
        actor.score_texts("heldout", messages, ["so " * 60])


@pytest.mark.parametrize(
    ("kind", "decodes"), [("llama", True), ("gemma3_text", True), ("qwen3_next", True), ("gpt2", False)]
)
def test_decoders_that_read_their_last_token_are_told_from_others(kind: str, decodes: bool) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, num_labels=1, num_hidden_layers=4)
        assert reward_model.is_decoder(AutoModelForSequenceClassification.from_config(config)) is decodes


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 600), st.booleans())
def test_rows_contain_every_text_once_within_their_budget(lengths: list[int], budget: int, padded: bool) -> None:
    rows = layout.plan_rows(lengths, budget, padded)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    in_order = [lengths[index] for row in rows for index in row]
    assert in_order == sorted(lengths)
    for row in rows:
        sizes = [lengths[index] for index in row]
        assert len(row) == 1 or (max(sizes) * len(sizes) if padded else sum(sizes)) <= budget
    for row, following in itertools.pairwise(rows):
        sizes, longest = [lengths[index] for index in row], lengths[following[0]]
        assert (longest * (len(row) + 1) if padded else sum(sizes) + longest) > budget, "the row had room"
