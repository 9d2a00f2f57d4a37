"""Which way a model is computed, and that a wrong one is found out."""

import random
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from psyco_ray.config.errors import InputError
from psyco_ray.models import packing, selftest
from psyco_ray.models.packing import ResponseLogprobs, ResponseScores, pack

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,  # layers that matter, as in a trained model
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STATE = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
CONV = {"layer_types": ["conv", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny(kind: str, auto=AutoModelForCausalLM, dtype=torch.float32, **options):
    """A model of random weights; its attention is the one that transformers picks."""
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    torch.manual_seed(0)
    return auto.from_config(config, dtype=dtype).eval()


def trees(vocabulary: int = 200) -> list[packing.Tree]:
    """Three trees of up to 60 tokens."""
    draw = random.Random(1)
    sizes = ((20, (30, 9)), (4, (25, 25, 3)), (11, (7,)))
    ids = range(3, vocabulary)
    return [(draw.choices(ids, k=prompt), [draw.choices(ids, k=own) for own in owns]) for prompt, owns in sizes]


def alone(model) -> torch.Tensor:
    """The oracle: each conversation by itself, with the attention that has all its terms."""
    model.set_attn_implementation("eager")
    values = []
    for prompt, responses in trees():
        for response in responses:
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
            values.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(values)


TEXT = {**SIZES, "sliding_window": 6, "model_type": "gemma3_text"}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = [
    ("llama", {}, ""),
    ("mistral", {"sliding_window": 6}, ""),
    ("gemma3_text", {"sliding_window": 6}, ""),
    ("gemma3", {"text_config": TEXT, "vision_config": VISION}, ""),
    ("qwen3_moe", EXPERTS, ""),
    ("qwen3_next", STATE | EXPERTS | {"shared_expert_intermediate_size": 32}, "running state .*linear_attention"),
    ("lfm2", CONV, r"do not attend to single tokens \(conv\)"),
    ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 96}, "chunked_att"),
    ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}, "attention sinks"),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, "final_logit_softcapping"),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": None, "sliding_window": 6}, ""),
    ("granite", {"logits_scaling": 4.0}, "logits_scaling"),
    ("cohere", {"logit_scale": 0.25}, "logit_scale"),
    ("stablelm", {}, "StableLmAttention does not pass the places of packed tokens on"),
]


@pytest.mark.parametrize(("kind", "options", "reason"), FAMILIES)
def test_log_probabilities_equal_those_of_each_conversation_alone(kind: str, options: dict, reason: str) -> None:
    """Packed where that is right, otherwise plain, which says why."""
    module = ResponseLogprobs(tiny(kind, **options), logit_rows=7)
    choice = selftest.choose(module, kind)
    assert choice.plain is module.plain is bool(reason), choice.reason
    assert re.search(reason, choice.note("policy x"))
    with torch.no_grad():
        values, expected = module(pack(trees())), alone(module.model)
    torch.testing.assert_close(values, expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(("kind", "options"), [("gemma2", {}), ("lfm2", CONV)])
def test_gradients_of_the_plain_path_are_those_of_each_conversation_alone(kind: str, options: dict) -> None:
    module = ResponseLogprobs(tiny(kind, **options), logit_rows=7)
    assert selftest.choose(module, kind).plain
    slopes = torch.linspace(-1, 1, 6)
    gradients = []
    for values in (module(pack(trees())), alone(module.model)):
        gradients.append(torch.autograd.grad((values * slopes).sum(), list(module.model.parameters())))
    for plain, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_that_no_configuration_tells_of_is_found(monkeypatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(selftest, "unpackable", lambda _: "")
    choice = selftest.choose(ResponseLogprobs(tiny("lfm2", dtype=dtype, **CONV)), "new")
    assert choice.plain
    assert "packed responses change each other" in choice.reason


def test_logits_that_no_configuration_tells_of_are_found(monkeypatch) -> None:
    monkeypatch.setattr(selftest, "unpackable", lambda _: "")
    choice = selftest.choose(ResponseLogprobs(tiny("granite", logits_scaling=4.0)), "new")
    assert "packed differs from transformers by" in choice.reason
    assert choice.difference > 0.1


def test_a_window_that_packing_leaves_out_is_found_however_long_it_is(monkeypatch) -> None:
    """The made-up trees are shorter than any model's window, so the test narrows it."""
    model = tiny("mistral", sliding_window=4096)
    mask = packing._mask
    monkeypatch.setattr(packing, "_mask", lambda packed, kernel, _, dtype: mask(packed, kernel, None, dtype))
    choice = selftest.choose(ResponseLogprobs(model, backend="sdpa"), "new")
    assert re.search(r"packed differs from transformers by .*sliding attention", choice.reason)
    assert model.config.sliding_window == 4096


def test_an_attention_that_does_not_compute_a_model_is_refused() -> None:
    """The job names it, so that no slower way takes its place."""
    model = tiny("gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=None)
    with pytest.raises(InputError, match=r"^attention: flex does not bound scores, as gemma2 does"):
        selftest.choose(ResponseLogprobs(model, backend="flex"), "new")


def test_a_head_of_zeros_hides_no_leak(monkeypatch) -> None:
    monkeypatch.setattr(selftest, "unpackable", lambda _: "")
    classifier = tiny("llama", AutoModelForSequenceClassification, num_labels=1)
    leaking = tiny("lfm2", **CONV)  # transformers has no classifier of this kind
    leaking.score = torch.nn.Linear(64, 1, bias=False)
    for model in (classifier, leaking):
        torch.nn.init.zeros_(model.score.weight)
    assert not selftest.choose(ResponseScores(classifier), "llama").plain
    assert selftest.choose(ResponseScores(leaking, token=7), "lfm2").plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_plain_classifiers_equal_those_of_transformers(dtype: torch.dtype) -> None:
    options = STATE | EXPERTS | {"shared_expert_intermediate_size": 32, "num_labels": 1}
    model = tiny("qwen3_next", AutoModelForSequenceClassification, dtype, **options)
    module = ResponseScores(model)
    assert selftest.choose(module, "qwen3_next").plain
    with torch.no_grad():
        values = module(pack(trees())).tolist()
        expected = [model(torch.tensor([p + r])).logits.item() for p, responses in trees() for r in responses]
        model.config.pad_token_id = None  # as many published models have none
        unpadded = module(pack(trees())).tolist()
    assert values == pytest.approx(expected, abs=1e-4 if dtype == torch.float32 else 0.1)
    assert unpadded == pytest.approx(expected, abs=1e-4 if dtype == torch.float32 else 0.1)


def test_the_logit_of_a_token_is_a_score_with_everything_the_model_does_to_logits() -> None:
    model = tiny("gemma2", final_logit_softcapping=2.0)
    model.score = torch.nn.Linear(64, 1, bias=False)
    model.score.weight.data.copy_(model.lm_head.weight[7:8])
    module = ResponseScores(model, token=7)
    selftest.choose(module, "gemma2")
    with torch.no_grad():
        expected = [model(torch.tensor([p + r])).logits[0, -1, 7].item() for p, responses in trees() for r in responses]
        assert module(pack(trees())).tolist() == pytest.approx(expected, abs=1e-5)


def test_what_no_way_computes_is_refused_in_one_sentence() -> None:
    broken = tiny("llama")
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"^x \(LlamaForCausalLM\) gives values that are not finite; check its weights"
    ):
        selftest.choose(ResponseLogprobs(broken), "x")
    encoder = tiny("bert", max_position_embeddings=64)
    with pytest.raises(InputError, match=r"^x \(BertLMHeadModel\) looks ahead in its text; choose a causal"):
        selftest.choose(ResponseLogprobs(encoder), "x")


def test_the_test_runs_without_dropout_and_leaves_the_model_as_it_was() -> None:
    model = tiny("starcoder2", residual_dropout=0.5, embedding_dropout=0.5).train()
    model.lm_head.eval()
    assert not selftest.choose(ResponseLogprobs(model), "starcoder2").plain
    assert model.model.training
    assert not model.lm_head.training


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_conversation_are_refused(rope: str) -> None:
    """These models rescale all positions of a pass in which one conversation is long."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if rope == "longrope" else {}
    parameters = {
        "rope_type": rope,
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        **factors,
    }
    module = ResponseLogprobs(tiny("llama", max_position_embeddings=128, rope_parameters=parameters))
    assert not selftest.choose(module, "x").plain
    short = [([5] * 20, [[6, 7, 8]])]
    with torch.no_grad():
        alone = module(pack(short)).item()
        assert module(pack([*short, ([5] * 20, [[9] * 12])])).tolist()[0] == pytest.approx(alone, abs=1e-4)
        with pytest.raises(InputError, match="has 33 tokens; beyond 32 LlamaForCausalLM rescales the positions"):
            module(pack([*short, ([5] * 20, [[9] * 13])]))
