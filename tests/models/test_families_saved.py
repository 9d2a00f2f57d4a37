"""A checkpoint of every family holds what its base's files hold, and computes the same when it is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import families, family_checks

from psyco_ray.models import loading, reward_model, saving
from psyco_ray.models.weight_files import WeightFiles, persistent_tensors

QUICK = {"llama", "gpt2", "phi", "qwen3-moe", "glm4-moe", "gemma4", "llama4", "qwen3.5-images"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in families.CAUSAL]
)
def test_a_checkpoint_is_whole_and_computes_the_same(name: str, tmp_path: Path) -> None:
    base, target = family_checks.write_base(name, tmp_path / "base"), tmp_path / "saved"
    before, after = family_checks.saved(base, target)
    assert after == pytest.approx(before, abs=1e-5)
    assert after != pytest.approx(family_checks.alone(base), abs=1e-2), "the changed weights were saved"
    shapes = family_checks.file_shapes(base)
    assert family_checks.file_shapes(target) == shapes
    assert {file.name for file in base.iterdir()} <= {file.name for file in target.iterdir()}
    written = json.loads((target / "generation_config.json").read_text())
    assert written == family_checks.CONFIGURED | {"eos_token_id": sorted({families.END, *written["eos_token_id"]})}
    assert set(family_checks.CONFIGURED["eos_token_id"]) < set(written["eos_token_id"])
    assert json.loads((target / "config.json").read_text())["architectures"] == [
        *json.loads((base / "config.json").read_text())["architectures"]
    ]
    assert (target / "chat_template.jinja").read_text() == families.TEMPLATE


def test_what_training_does_not_touch_is_copied(tmp_path: Path, caplog) -> None:
    """Predictors of later tokens (DeepSeek-V3, Qwen3-Next) are in the files and not in the model."""
    base = family_checks.write_base("llama", tmp_path / "base")
    extra = {"model.layers.2.eh_proj.weight": torch.randn(4, 8), "mtp.norm.weight": torch.randn(8)}
    save_file({**load_file(base / "model.safetensors"), **extra}, base / "model.safetensors", {"format": "pt"})
    with caplog.at_level("INFO"):
        family_checks.saved(base, tmp_path / "saved")
    assert "2 tensors in the weight files of" in caplog.text
    assert "model.layers.2.eh_proj.weight" in caplog.text
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in extra.items())


def test_a_tied_head_that_a_base_stores_is_not_saved_stale(tmp_path: Path) -> None:
    base = family_checks.write_base("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    before, after = family_checks.saved(base, tmp_path / "saved")
    assert after == pytest.approx(before, abs=1e-5)
    assert "lm_head.weight" not in family_checks.file_shapes(tmp_path / "saved")


def test_files_without_the_prefix_of_the_body_keep_their_names(tmp_path: Path) -> None:
    """GPT-2's published files begin with `h.0`, transformers' model with `transformer.h.0`."""
    base = family_checks.write_base("gpt2", tmp_path / "base")
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    before, after = family_checks.saved(base, tmp_path / "saved")
    assert after == pytest.approx(before, abs=1e-5)
    assert family_checks.file_shapes(tmp_path / "saved").keys() == tensors.keys()


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.gate.e_score_correction_bias", "lm_head.weight"])
def test_a_base_without_one_of_its_tensors_is_refused(tmp_path: Path, lost: str) -> None:
    base = family_checks.write_base("glm4-moe", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors[lost]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lack 1 tensors of Glm4MoeForCausalLM, .* such as {lost}; give a complete"):
        WeightFiles(family_checks.load(base), base)


def test_a_checkpoint_in_several_files_is_the_base_of_the_next(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(saving, "_MAX_SHARD", "60KB")
    base = family_checks.write_base("glm4-moe", tmp_path / "base")
    family_checks.saved(base, tmp_path / "first")
    assert len([*(tmp_path / "first").glob("*.safetensors")]) > 2
    before, after = family_checks.saved(tmp_path / "first", tmp_path / "second")
    assert after == pytest.approx(before, abs=1e-5)
    assert family_checks.file_shapes(tmp_path / "second") == family_checks.file_shapes(base)
    (tmp_path / "first" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json has no weight_map; copy the model again"):
        WeightFiles(families.new_model("glm4-moe"), tmp_path / "first")


def test_a_quantised_base_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    base = family_checks.write_base("llama", tmp_path / "base")
    model = family_checks.load(base)
    model.config.quantization_config = {"quant_method": "mxfp4"}
    with pytest.raises(
        ValueError, match=r"base is quantised, which cannot be trained; give the model that it was made"
    ):
        WeightFiles(model, base)


def test_a_reward_model_has_its_own_head_and_the_rest_of_its_base(tmp_path: Path) -> None:
    base = family_checks.write_base("deepseek-v3", tmp_path / "base")
    tokenizer = loading.load_tokenizer(base)
    model = reward_model.new_model(base, tokenizer, "float32", seed=0)
    saving.save_loaded(tmp_path / "reward", model, tokenizer, base)
    shapes = family_checks.file_shapes(base)
    del shapes["lm_head.weight"]
    assert family_checks.file_shapes(tmp_path / "reward") == shapes | {"score.weight": [1, 64]}
    reloaded = families.load(tmp_path / "reward", "encoder")
    ids = torch.tensor([[*family_checks.PROMPT, *family_checks.RESPONSE]])
    with torch.no_grad():
        assert reloaded(ids).logits.item() == pytest.approx(model.eval()(ids).logits.item(), abs=1e-5)
    assert reloaded.config.pad_token_id == families.PAD


def test_each_persistent_tensor_comes_once_and_with_its_layer() -> None:
    model = families.new_model("glm4-moe")
    names = [name for name, _ in persistent_tensors(model)]
    assert len(names) == len(set(names))
    assert set(names) == set(model.state_dict())
    bias = names.index("model.layers.1.mlp.gate.e_score_correction_bias")
    assert names[bias - 1] == "model.layers.1.mlp.gate.weight"
    tied = families.new_model("llama")
    assert set(tied.state_dict()) - {name for name, _ in persistent_tensors(tied)} == {"lm_head.weight"}
