"""A saved reward model gives the same score to every loader: ours, transformers' pipeline, vLLM's pooling engine."""

import pytest
import ray
import torch

from psyco_ray import config, models, reward
from psyco_ray.records import Example, Group, Prompt, Response

ASKED = [{"role": "user", "content": "I cannot sleep and nobody knows why."}]
ANSWERS = ["That sounds tiring.", "Sleep more!", "What goes through your mind at night, when the house is quiet?"]


@pytest.fixture(scope="module")
def scorer(tiny_reward_model, tiny_model) -> reward.ScorerActor:
    settings = config.Scorers(dtype="float32")
    actor = reward.ScorerActor("scorer-0", {"reward": str(tiny_reward_model)}, str(tiny_model), settings)
    actor.ready()
    return actor


@pytest.fixture(scope="module")
def texts(tokenizer) -> list[str]:
    return [
        tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "content": a}], tokenize=False) for a in ANSWERS
    ]


def test_the_head_is_seeded_and_the_models_own_head_stays(tiny_model, tiny_reward_model) -> None:
    tokenizer = models.load_tokenizer(tiny_model)
    first, same, other = (reward.new_model(tiny_model, tokenizer, "float32", seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    again = reward.new_model(tiny_reward_model, tokenizer, "float32", seed=1).score.weight
    assert torch.equal(again, reward.new_model(tiny_model, tokenizer, "float32", seed=3).score.weight)


def test_score_of_a_group(scorer) -> None:
    group = Group(Prompt("s", (1,), 0), tuple(Response(a, (9,), True) for a in ANSWERS), 4)
    [(scored, seconds)] = scorer.score((group, ASKED, ("reward",)))
    assert scored.scores["reward"] == pytest.approx(scorer.score_texts("reward", ASKED, ANSWERS), abs=1e-5)
    assert scored.version == 4
    assert seconds > 0
    alone = [scorer.score_texts("reward", ASKED, [answer])[0] for answer in ANSWERS]
    assert scored.scores["reward"] == pytest.approx(alone, abs=1e-5)
    assert len({round(s, 3) for s in alone}) == 3


def test_transformers_pipeline_gives_the_same_scores(scorer, tiny_reward_model, texts) -> None:
    """As RewardBench loads a sequence classifier: a pipeline over rendered conversations, padded together."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    classify = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(tiny_reward_model),
        device="cpu",
    )
    theirs = [
        found["score"]
        for found in classify(
            texts, batch_size=3, padding=True, truncation=True, max_length=256, function_to_apply="none"
        )
    ]
    assert theirs == pytest.approx(scorer.score_texts("reward", ASKED, ANSWERS), abs=1e-5)


@ray.remote(num_cpus=1, runtime_env={"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}})
def vllm_scores(path: str, texts: list[str]) -> list[float]:
    from vllm import LLM, PoolingParams

    llm = LLM(
        path, runner="pooling", dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**27
    )
    found = llm.classify(texts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [output.outputs.probs[0] for output in found]


def test_vllm_gives_the_same_scores(local_ray, scorer, tiny_reward_model, texts) -> None:
    theirs = ray.get(vllm_scores.remote(str(tiny_reward_model), texts), timeout=300)
    assert theirs == pytest.approx(scorer.score_texts("reward", ASKED, ANSWERS), abs=1e-3)


def test_reference_logprobs_are_those_of_the_model(scorer, tiny_model) -> None:
    from transformers import AutoModelForCausalLM

    example = Example("p", (5, 6, 7), (8, 9), (10, 11, 12))
    [(found, _)] = scorer.reference(example)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for ids, value in zip((example.chosen_ids, example.rejected_ids), found.reference, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([example.prompt_ids + ids])).logits[0, 2:-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-4)


def test_a_classifier_with_two_labels_is_no_reward_model(tiny_model, tmp_path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 labels; one is needed"):
        reward.ScorerActor("x", {"reward": str(tmp_path)}, None, config.Scorers()).ready()
