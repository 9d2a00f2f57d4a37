"""Dropout is off unless a job asks for it, also in layers that recompute their activations."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from psyco_ray.learner.engine import disable_dropout
from psyco_ray.models.packing import ResponseLogprobs, pack
from psyco_ray.models.selftest import values_repeat

TREES = [([5, 6, 7], [[8, 9, 10, 11], [12, 13]])]
KINDS = {
    "starcoder2": {"residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3},
    "phi": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attention_dropout": 0.3},
    "llama": {"attention_dropout": 0.5},
}


def module(kind: str, checkpointing: bool) -> ResponseLogprobs:
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **KINDS[kind])).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return ResponseLogprobs(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_repeat_and_activations_are_still_recomputed(kind: str, checkpointing: bool) -> None:
    policy = module(kind, checkpointing)
    with torch.no_grad():
        assert policy(pack(TREES)).tolist() != policy(pack(TREES)).tolist(), "the model has dropout"
    disable_dropout(policy.model)
    calls = []
    policy.model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    values = policy(pack(TREES))
    with torch.no_grad():
        assert policy(pack(TREES)).tolist() == values.tolist()
    assert len(calls) == 2
    values.sum().backward()
    assert len(calls) == (3 if checkpointing else 2)


def test_values_repeat_while_a_model_trains_with_dropout() -> None:
    policy = module("phi", checkpointing=True)
    with values_repeat(policy.model), torch.no_grad():
        assert policy(pack(TREES)).tolist() == policy(pack(TREES)).tolist()
    with torch.no_grad():
        assert policy(pack(TREES)).tolist() != policy(pack(TREES)).tolist()
